"""One small checkpoint and its conversion, made once for all tests of this folder."""

from pathlib import Path

import numpy as np
import pytest

from sv3d_jax.weights.convert import convert
from sv3d_jax.weights.source import open_weights
from tests.tiny_model import CONFIG
from tests.weights.files import published_tensors, write_tensors


@pytest.fixture(scope="session")
def tensors() -> dict[str, np.ndarray]:
    return published_tensors(CONFIG)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]) -> Path:
    """A safetensors file of ours, with a remark from elsewhere in its metadata."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    return write_tensors(path, tensors, {"format": "pt", **CONFIG.to_metadata()})


@pytest.fixture(scope="session")
def folder(checkpoint: Path) -> Path:
    """The Orbax folder that the checkpoint converts to."""
    path = checkpoint.with_name("folder")
    convert(open_weights(checkpoint), path)
    return path
