"""Settings of `sv3d eval orbit` and `sv3d eval mesh`; nothing here imports jax."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sv3d_jax.config import CommonConfig, Seed, short, within


@dataclass(frozen=True, kw_only=True)
class EvalOrbitConfig(CommonConfig):
    """Compare two orbits with the same cameras frame by frame: PSNR, SSIM and, if its weights are given, LPIPS."""

    pred: Path
    """orbit folder to evaluate"""
    target: Path
    """orbit folder of the reference"""
    lpips: Path | None = None
    """safetensors file with the weights of LPIPS (VGG16 and linear heads), to compute it as well"""
    output: Annotated[Path | None, short("-o")] = None
    """file for the result as JSON"""


@dataclass(frozen=True, kw_only=True)
class EvalMeshConfig(CommonConfig):
    """Compare two meshes: distances between their surfaces, F-score, and overlap of their volumes.

    Lengths are in units of the longest side of the target's bounding box. Meshes are not aligned: a reconstruction is
    in the world coordinates of its orbit, and --orbit moves the mesh that was rendered there as well. To compare
    appearance, render both (sv3d data render) and compare the orbits (sv3d eval orbit).
    """

    pred: Path
    """mesh to evaluate (GLB, glTF, OBJ, PLY), y up, as sv3d writes it"""
    target: Path
    """mesh of the reference"""
    orbit: Path | None = None
    """rendered orbit of the target, whose cameras.json has the target's transform to the world"""
    up: Literal["y", "z"] = "y"
    """up axis of the target's file; not used with --orbit"""
    points: Annotated[int, within(1, 10_000_000)] = 100_000
    """points sampled on each surface"""
    threshold: Annotated[float, within(1e-9, 1e9)] = 0.01
    """distance threshold of the F-score"""
    voxels: Annotated[int, within(2, 512)] = 128
    """resolution of the grid for the overlap of volumes"""
    seed: Seed = 0
    """seed of the sampled points"""
    output: Annotated[Path | None, short("-o")] = None
    """file for the result as JSON"""
