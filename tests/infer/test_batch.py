"""Sampling with less and less memory."""

from pathlib import Path

import pytest

from sv3d_jax.errors import OutOfMemory
from sv3d_jax.infer.batch import OrbitSampler
from sv3d_jax.infer.config import OrbitConfig
from sv3d_jax.io.images import Picture
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.preprocess import prepare_for
from sv3d_jax.progress import NullProgress
from tests.tiny_model import CONFIG, picture, tiny_pipeline


def exhausted(*_, **__):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")


def test_auto_fit_loads_again_where_a_second_copy_of_the_weights_is_too_much(monkeypatch):
    """A model in another precision is made of the loaded one; where both do not fit, the first one has to go."""
    loaded = []

    def load(source, variant, compute, **_):
        loaded.append((compute.low_memory, compute.dtype))
        return tiny_pipeline()

    monkeypatch.setattr(Pipeline, "from_pretrained", load)
    monkeypatch.setattr(Pipeline, "computing", exhausted)
    monkeypatch.setattr(Pipeline, "decode", exhausted)
    config = OrbitConfig(images=(Path("box.png"),), output=Path("out"), auto_fit=True)
    sampler = OrbitSampler(config, CONFIG, config.camera_path(CONFIG.num_frames), NullProgress())
    rgba = picture()
    prepared = prepare_for(CONFIG, Picture(rgba[..., :3], rgba[..., 3]), CONFIG.native_size)
    with pytest.raises(OutOfMemory):
        sampler([prepared])
    assert loaded == [(False, "auto"), (True, "auto"), (True, "bfloat16")]
