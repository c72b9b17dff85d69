"""Stable Video 3D in JAX: a picture of an object to an orbit of views and a mesh.

    import sv3d_jax as sv

    orbit = sv.Pipeline.from_pretrained("mini")("figure.png")  # picture -> views
    orbit.save("figure")
    result = sv.reconstruct("figure")  # views -> mesh
    result.save("figure.glb")

Every name here loads with its first use; `help(sv.Pipeline)` and so on tell the rest.

Picture to orbit: `Pipeline`, and what it takes, `SamplingConfig` (steps, guidance, solver), `ComputeConfig` (precision,
memory, devices), `Churn`, `Correction` of the denoised latents, `Euler`, `DPMpp2M` or a `Solver` of one's own; what it
returns, `Orbit`, and tells its callback, `StepInfo`. Cameras: `static_orbit`, `sine_orbit`, `dynamic_orbit`,
`custom_orbit`, each a `CameraPath`. Models: `ModelConfig`, `FAMILIES` of `ModelFamily`, `convert` for weights.

Orbit to mesh: `read_orbit` for the `OrbitFrames` of a folder, `reconstruct` with `ReconstructConfig` gives a
`ReconstructResult`; a `Method` of `Stage`s of one's own goes to `register_method`. Meshes: `Mesh`, `read_mesh`,
`render_orbit` for views of one, `rasterize` for the triangles at every pixel.

Errors: all are an `SV3DError`.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from sv3d_jax.cameras.orbit import CameraPath, custom_orbit, dynamic_orbit, sine_orbit, static_orbit
    from sv3d_jax.diffusion.config import Churn, SamplingConfig
    from sv3d_jax.diffusion.sampler import Correction
    from sv3d_jax.diffusion.solvers import DPMpp2M, Euler, Solver
    from sv3d_jax.geometry.mesh import Mesh
    from sv3d_jax.io.meshes import read_mesh
    from sv3d_jax.io.orbits import OrbitFrames, read_orbit
    from sv3d_jax.models.config import ModelConfig
    from sv3d_jax.models.families import FAMILIES, ModelFamily
    from sv3d_jax.orbit import Orbit, StepInfo
    from sv3d_jax.pipeline import Pipeline
    from sv3d_jax.recon.config import ReconstructConfig
    from sv3d_jax.recon.methods import register_method
    from sv3d_jax.recon.reconstruct import ReconstructResult, reconstruct
    from sv3d_jax.recon.stages import Method, Stage
    from sv3d_jax.render.orbit import render_orbit
    from sv3d_jax.render.rasterize import rasterize
    from sv3d_jax.runner import ComputeConfig
    from sv3d_jax.weights.convert import convert

__version__ = "0.1.0"

_MODULES = {  # importing sv3d_jax starts nothing: these load with their first use
    "cameras.orbit": ("CameraPath", "custom_orbit", "dynamic_orbit", "sine_orbit", "static_orbit"),
    "diffusion.config": ("Churn", "SamplingConfig"),
    "diffusion.sampler": ("Correction",),
    "diffusion.solvers": ("DPMpp2M", "Euler", "Solver"),
    "geometry.mesh": ("Mesh",),
    "io.meshes": ("read_mesh",),
    "io.orbits": ("OrbitFrames", "read_orbit"),
    "models.config": ("ModelConfig",),
    "models.families": ("FAMILIES", "ModelFamily"),
    "orbit": ("Orbit", "StepInfo"),
    "pipeline": ("Pipeline",),
    "recon.config": ("ReconstructConfig",),
    "recon.methods": ("register_method",),
    "recon.reconstruct": ("ReconstructResult", "reconstruct"),
    "recon.stages": ("Method", "Stage"),
    "render.orbit": ("render_orbit",),
    "render.rasterize": ("rasterize",),
    "runner": ("ComputeConfig",),
    "weights.convert": ("convert",),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "FAMILIES",
    "CameraError",
    "CameraPath",
    "Cancelled",
    "CheckpointError",
    "Churn",
    "ComputeConfig",
    "Correction",
    "DPMpp2M",
    "Euler",
    "InputError",
    "Mesh",
    "Method",
    "ModelConfig",
    "ModelFamily",
    "Orbit",
    "OrbitFrames",
    "OutOfMemory",
    "OutputError",
    "Pipeline",
    "Preempted",
    "ReconstructConfig",
    "ReconstructResult",
    "SV3DError",
    "SamplingConfig",
    "Solver",
    "Stage",
    "StepInfo",
    "WeightsError",
    "convert",
    "custom_orbit",
    "dynamic_orbit",
    "rasterize",
    "read_mesh",
    "read_orbit",
    "reconstruct",
    "register_method",
    "render_orbit",
    "sine_orbit",
    "static_orbit",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
