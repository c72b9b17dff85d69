"""A model of every part that compiles in seconds; its weights follow from their names."""

import numpy as np

from sv3d_jax.models.config import ModelConfig
from sv3d_jax.pipeline import Pipeline
from tests.reference_weights import reference_params

SIZE = 32
COMPILE_QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""In the environment of a program that compiles more than it computes, as tests/conftest.py does for the tests."""

CONFIG = ModelConfig.from_dict(
    {
        "name": "tiny",
        "unet": {
            "model_channels": 16,
            "channel_mult": [1, 2],
            "num_res_blocks": 1,
            "attention_levels": [1],
            "head_width": 8,
            "context_width": 8,
            "ff_mult": 1,
            "norm_groups": 4,
        },
        "vae": {"channels": 8, "channel_mult": [1, 1, 2], "num_res_blocks": 1, "norm_groups": 4},
        "tower": {"image_size": 28, "width": 8, "layers": 1, "head_width": 4, "output_width": 8},
        "latent_factor": [0.2, 0.3, 0.25, 0.35],
        "native_size": SIZE,
        "num_frames": 5,
        "sigma_max": 20.0,
        "num_steps": 4,
    }
)


def tiny_pipeline(**options) -> Pipeline:
    return Pipeline(reference_params(CONFIG), CONFIG, **options)


def picture(seed: int = 0, side: int = 40) -> np.ndarray:
    """uint8 (side, side, 4): a coloured box on a transparent ground."""
    rgba = np.zeros((side, side, 4), np.uint8)
    rgba[8:-8, 12:-12, :3] = np.random.default_rng(seed).integers(0, 255, 3)
    rgba[8:-8, 12:-12, 3] = 255
    return rgba
