"""Settings of `sv3d eval orbit` and `sv3d eval mesh`; nothing here imports jax."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sv3d_jax.config import CommonConfig, check_range, short


@dataclass(frozen=True, kw_only=True)
class EvalOrbitConfig(CommonConfig):
    """Compare the frames of two orbits of the same cameras, one by one: PSNR, SSIM and, with its weights, LPIPS."""

    pred: Path
    """orbit folder to judge"""
    target: Path
    """orbit folder to compare with"""
    lpips: Path | None = None
    """safetensors file with the weights of LPIPS (VGG16 and heads), to compare by it too"""
    output: Annotated[Path | None, short("-o")] = None
    """file for the result as JSON"""


@dataclass(frozen=True, kw_only=True)
class EvalMeshConfig(CommonConfig):
    """Compare two meshes: distances between their surfaces, F-score, and overlap of their volumes.

    Lengths are in units of the target's largest box side. Meshes are compared where they stand; a reconstruction
    stands in the world of its orbit, and --orbit brings the mesh that was rendered there too. For how they look,
    render both (sv3d data render) and compare the orbits (sv3d eval orbit).
    """

    pred: Path
    """mesh to judge (GLB, glTF, OBJ, PLY), y up, as sv3d writes it"""
    target: Path
    """mesh to compare with"""
    orbit: Path | None = None
    """rendered orbit of the target: its cameras.json says where the target stood"""
    up: Literal["y", "z"] = "y"
    """axis of the target's file that points up; not needed with --orbit"""
    points: int = 100_000
    """points sampled on each surface"""
    threshold: float = 0.01
    """distance up to which a point counts as met in the F-score"""
    voxels: int = 128
    """side of the grid for the overlap of volumes"""
    seed: int = 0
    """seed of the points"""
    output: Annotated[Path | None, short("-o")] = None
    """file for the result as JSON"""

    def __post_init__(self):
        check_range("points", self.points, 1, 10_000_000)
        check_range("threshold", self.threshold, 1e-9, 1e9)
        check_range("voxels", self.voxels, 2, 512)
        check_range("seed", self.seed, 0, 2**32 - 1)
