"""Reproducible random weights of the reference data: every tensor follows from its name, shape and a seed."""

import math
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from sv3d_jax.models.config import ModelConfig
from sv3d_jax.weights.key_map import PREFIXES, model_parameters, tree_from_leaves

BASE_SEED = 20240318


def reference_tensor(name: str, shape: Iterable[int], base_seed: int = BASE_SEED) -> np.ndarray:
    """The float32 tensor of a published name, in published layout."""
    shape = tuple(shape)
    normal = np.random.RandomState(zlib.crc32(name.encode()) ^ base_seed).standard_normal(shape)
    if name.endswith("mix_factor"):
        value = normal
    elif len(shape) <= 1:
        value = (1.0 if name.endswith(".weight") else 0.0) + 0.1 * normal
    else:
        value = normal / math.sqrt(math.prod(shape[1:]))
    return np.asarray(value, np.float32)


def reference_params(
    config: ModelConfig, base_seed: int = BASE_SEED, parts: Iterable[str] = tuple(PREFIXES)
) -> dict[str, Any]:
    """The parameter tree of some parts of a model: `unet`, `image_tower`, `vae_encoder`, `vae_decoder`."""
    return tree_from_leaves(
        (parameter.path, parameter.to_tree(reference_tensor(parameter.name, parameter.shape, base_seed)))
        for parameter in model_parameters(config, parts)
    )


def tiny_config(variant: str) -> ModelConfig:
    """The configuration of the reference's tiny checkpoints."""
    return ModelConfig.from_dict(
        {
            "name": f"tiny_{variant}",
            "variant": variant,
            "unet": {
                "model_channels": 64,
                "head_width": 16,
                "context_width": 16,
                "vector_width": {"u": 256, "p": 1280}[variant],
            },
            "vae": {"channels": 64},
            "tower": {"width": 32, "layers": 2, "head_width": 16, "output_width": 16},
            "num_frames": 5,
        }
    )
