"""Settings of the reconstruction; nothing here imports jax."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from sv3d_jax.config import HIDDEN, POSITIONAL, CommonConfig, check_range, load_config, short

PRESETS = Path(__file__).parent.parent / "configs" / "recon"


@dataclass(frozen=True, kw_only=True)
class NerfConfig:
    """The coarse stage: a hash-grid NeRF that is turned into a surface.

    Densities are in field units: per unit length of a box of half-size 2.
    """

    num_levels: int = 8
    num_features: int = 2
    table_size: int = 2**16
    base_resolution: int = 16
    finest_resolution: int = 160  # cells along the box: about one to a pixel of the frames
    hidden_width: int = 32
    hidden_layers: int = 1
    density_scale: float = 5.0  # density at the start, inside the hull

    num_steps: int = 320
    rays_per_step: int = 4096
    candidates_per_ray: int = 160
    samples_per_ray: int = 24
    learning_rate: float = 0.01  # falls to a tenth along a cosine
    photometric_weight: float = 10.0
    mask_weight: float = 5.0
    distortion_weight: float = 0.2  # reached along a straight line from 0

    occupancy_resolution: int = 64
    refresh_cells: int = 2**15
    hull_tolerance: float = 0.05  # share of the views that may see background where there is object

    surface_resolution: int = 128
    # Densities at which a surface may be taken; the one whose silhouettes fit the masks best is.
    surface_levels: tuple[float, ...] = (1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0, 35.0, 50.0)
    surface_blur: float = 0.7  # standard deviation in cells
    min_component: float = 0.01  # share of the faces below which a loose part is dropped

    def __post_init__(self):
        for name, low, high in (
            ("num_levels", 2, 32),
            ("table_size", 2**8, 2**24),
            ("num_steps", 1, 1_000_000),
            ("rays_per_step", 1, 2**20),
            ("samples_per_ray", 1, 1024),
            ("candidates_per_ray", 2, 4096),
            ("occupancy_resolution", 4, 256),
            ("surface_resolution", 8, 512),
            ("hull_tolerance", 0, 1),
            ("min_component", 0, 1),
        ):
            check_range(name, getattr(self, name), low, high)


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """How to turn an orbit into a mesh."""

    preset: Literal["preview", "fast"] = "fast"
    """preview: seconds, for small frames; fast: a minute or so on a CPU"""
    steps: int | None = None
    """steps of the fit (default: the preset's)"""
    seed: int = 0
    """seed of the fit"""
    nerf: Annotated[dict[str, Any], HIDDEN] = field(default_factory=dict)
    """fields of NerfConfig that differ from the preset; in a TOML file the table [nerf]"""

    def __post_init__(self):
        check_range("seed", self.seed, 0, 2**32 - 1)
        self.resolve()

    def resolve(self) -> NerfConfig:
        """The preset with what was set on top of it."""
        changes = dict(self.nerf) if self.steps is None else {**self.nerf, "num_steps": self.steps}
        return load_config(NerfConfig, PRESETS / f"{self.preset}.toml", changes)


@dataclass(frozen=True, kw_only=True)
class ReconstructVerbConfig(ReconstructConfig, CommonConfig):
    """An orbit to a mesh: mesh.glb, mesh.ply and a turntable video, from frames and cameras.json."""

    orbit_dir: Annotated[Path, POSITIONAL]
    """folder with cameras.json and the frames that it names: any number, from any cameras around the object"""
    output: Annotated[Path, short("-o")]
    """folder of the results"""

    def settings(self) -> dict[str, Any]:
        """With the preset's values, so that a changed preset counts as other settings."""
        from sv3d_jax.config import to_plain

        return super().settings() | {"nerf": to_plain(self.resolve())}
