"""Stable Video 3D in JAX: a picture of an object to an orbit of views and a mesh."""

import importlib
from typing import Any

from sv3d_jax.errors import (
    CameraError,
    Cancelled,
    CheckpointError,
    InputError,
    OutOfMemory,
    OutputError,
    Preempted,
    SV3DError,
    WeightsError,
)

__version__ = "0.1.0"

_LAZY = {  # importing sv3d_jax starts nothing: these load with their first use
    "Pipeline": "pipeline",
    "Orbit": "pipeline",
    "CameraPath": "cameras.orbit",
    "Mesh": "geometry.mesh",
    "reconstruct": "recon.reconstruct",
    "ReconstructConfig": "recon.config",
}

__all__ = [
    "CameraError",
    "Cancelled",
    "CheckpointError",
    "InputError",
    "OutOfMemory",
    "OutputError",
    "Preempted",
    "SV3DError",
    "WeightsError",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
