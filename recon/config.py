"""Settings of the reconstruction; nothing here imports jax."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from sv3d_jax.config import HIDDEN, POSITIONAL, CommonConfig, check_range, load_config, short
from sv3d_jax.errors import InputError
from sv3d_jax.models.families import Variant
from sv3d_jax.recon.methods import METHODS, find_method
from sv3d_jax.recon.stages import Extra, Method, Stage
from sv3d_jax.recon.sv3d import SV3D

POSITIVE = (1e-9, 1e9)  # range of settings that must be above 0
MAX_WEIGHT = 1e9  # of a loss


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
    distortion_weight: float = 0.2  # at the last step; rises linearly from 0
    nearness_weight: float = 0.006
    opaque_weight: float = 0.0
    orientation_weight: float = 0.0  # above 0 it costs the density at six more points per sample

    occupancy_resolution: int = 64
    refresh_cells: int = 2**15
    hull_tolerance: float = 0.05  # carving tolerance: share of views that may see background at the object

    surface_resolution: int = 128
    # Candidate iso-levels of density; the one whose silhouettes fit the masks best is taken.
    surface_levels: tuple[float, ...] = (1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0, 35.0, 50.0)
    surface_blur: float = 0.7  # standard deviation in cells
    min_component: float = 0.01  # share of the faces below which a loose part is removed

    def __post_init__(self):
        for name, low, high in (
            ("num_levels", 2, 32),
            ("num_features", 1, 16),
            ("table_size", 2**8, 2**24),
            ("base_resolution", 1, 2**16),
            ("finest_resolution", self.base_resolution, 2**16),
            ("hidden_width", 1, 4096),
            ("hidden_layers", 0, 16),
            ("density_scale", *POSITIVE),
            ("learning_rate", *POSITIVE),
            ("num_steps", 1, 1_000_000),
            ("rays_per_step", 1, 2**20),
            ("samples_per_ray", 1, 1024),
            ("candidates_per_ray", 2, 4096),
            ("photometric_weight", 0, MAX_WEIGHT),
            ("mask_weight", 0, MAX_WEIGHT),
            ("distortion_weight", 0, MAX_WEIGHT),
            ("nearness_weight", 0, MAX_WEIGHT),
            ("opaque_weight", 0, MAX_WEIGHT),
            ("orientation_weight", 0, MAX_WEIGHT),
            ("occupancy_resolution", 4, 256),
            ("refresh_cells", 1, 2**24),
            ("surface_resolution", 8, 512),
            ("hull_tolerance", 0, 1),
            ("surface_blur", 0, 64),
            ("min_component", 0, 1),
        ):
            check_range(name, getattr(self, name), low, high)
        if not self.surface_levels:
            raise InputError("surface_levels: needs at least one density")
        for level in self.surface_levels:
            check_range("surface_levels", level, *POSITIVE)


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the fine stage's losses; the paper publishes none.

    `perceptual` is for LPIPS where its weights are given, else for structural similarity and absolute errors at several
    scales. `illumination`, `chromaticity` and `evenness` separate light and albedo. `normal` needs estimated normals.
    `sdf_sign` falls to a twentieth over the first quarter of the steps.
    """

    photometric: float = 10.0
    mask: float = 5.0
    perceptual: float = 1.0
    illumination: float = 0.3
    chromaticity: float = 1.0
    evenness: float = 0.25
    normal: float = 0.1
    depth: float = 0.1
    bilateral: float = 0.05
    albedo: float = 0.1
    sdf_sign: float = 0.2
    normal_consistency: float = 0.2
    laplacian: float = 0.0

    def __post_init__(self):
        for each in fields(self):
            check_range(each.name, getattr(self, each.name), 0, MAX_WEIGHT)


@dataclass(frozen=True, kw_only=True)
class SDSConfig:
    """Masked score distillation (SV3D, section 4), where an orbit model is given."""

    weight: float = 1e-3
    share: float = 0.2  # of the fine stage's steps: the last ones, rounded up to whole calls of the fit
    num_orbits: int = 16  # drawn at the start; each step takes one of them
    masked: bool = True  # False: the paper's "naive SDS", which also changes what the orbit shows

    def __post_init__(self):
        check_range("weight", self.weight, 0, MAX_WEIGHT)
        check_range("share", self.share, 0, 1)
        check_range("num_orbits", self.num_orbits, 1, 4096)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The fine stage: signed distances on a grid of tetrahedra, fitted together with texture and light."""

    num_steps: int = 240
    cells: int = 64  # cubes along the box, each of six tetrahedra
    views_per_step: int = 2
    learning_rate: float = 0.01  # falls to a tenth along a cosine
    num_lobes: int = 24  # of the light; 0: no model of light, colours are exported as the views show them
    weights: LossWeights = LossWeights()
    sds: SDSConfig = SDSConfig()

    def __post_init__(self):
        for name, low, high in (
            ("num_steps", 0, 1_000_000),
            ("cells", 4, 256),
            ("views_per_step", 1, 1024),
            ("learning_rate", *POSITIVE),
            ("num_lobes", 0, 256),
        ):
            check_range(name, getattr(self, name), low, high)


@dataclass(frozen=True, kw_only=True)
class BakeConfig:
    """What the exported files hold."""

    texture_size: int = 1024
    max_faces: int = 20_000

    def __post_init__(self):
        check_range("texture_size", self.texture_size, 16, 8192)
        check_range("max_faces", self.max_faces, 100, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of all stages; a preset is a file of differences from these."""

    nerf: NerfConfig = NerfConfig()
    mesh: MeshConfig = MeshConfig()
    bake: BakeConfig = BakeConfig()


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """How to turn an orbit into a mesh."""

    method: str = SV3D.name
    """reconstruction method; sv3d: a NeRF, then tetrahedra with texture and light, as in the paper"""
    preset: str = "fast"
    """of sv3d: preview, a first look in under a minute; fast, minutes on a CPU; quality, for accelerators"""
    steps: int | None = None
    """steps of the coarse fit (default: the preset's)"""
    fine_steps: int | None = None
    """steps of the fine fit, 0 to leave it out (default: the preset's)"""
    texture_size: int | None = None
    """side of the texture in pixels (default: the preset's)"""
    faces: int | None = None
    """most triangles of the mesh (default: the preset's)"""
    ply_up: Literal["y", "z"] = "y"
    """axis of mesh.ply that points up; y: as in the other files, z: as Blender and printers have it"""
    lpips: Path | None = None
    """safetensors file with the weights of LPIPS (VGG16 and heads), for the fine stage to compare pictures by"""
    seed: int = 0
    """seed of the fits"""
    nerf: Annotated[dict[str, Any], HIDDEN] = field(default_factory=dict)
    """fields of NerfConfig that differ from the preset; in a TOML file the table [nerf]"""
    mesh: Annotated[dict[str, Any], HIDDEN] = field(default_factory=dict)
    """fields of MeshConfig, likewise"""
    recipe: Annotated[dict[str, Any], HIDDEN] = field(default_factory=dict)
    """fields of the other tables of a method's recipe, by table; in a TOML file [recipe.TABLE]"""

    def __post_init__(self):
        check_range("seed", self.seed, 0, 2**32 - 1)
        self.resolve()
        if self.lpips is not None:
            self.require_use("lpips")

    def require_use(self, extra: Extra, method: Method | None = None) -> None:
        """Raise an InputError where no stage of the run uses what the user gives."""
        method, option = method or find_method(self.method), extra if extra == "normals" else f"--{extra}"
        users = [stage for stage in method.stages if extra in stage.uses]
        if not users:
            others = [name for name, other in METHODS.items() if any(extra in s.uses for s in other.stages)]
            raise InputError(
                f"{option}: no stage of method {method.name} uses it",
                hint=" or ".join(f"--method {name}" for name in others),
            )
        recipe = self.resolve(method)
        if not any(stage.is_used(recipe) for stage in users):
            raise InputError(*self._why_left_out(option, users[0], method))

    def stages_until(self, stop: str, method: Method | None = None) -> list[Stage]:
        """The stages of a run that ends at `stop`.

        Raises InputError where the method has no such stage or the settings leave it out.
        """
        method = method or find_method(self.method)
        recipe = self.resolve(method)
        stages = method.stages_until(stop, recipe)
        end = next((stage for stage in method.stages if stage.stop_name == stop), None)
        if end is not None and not end.is_used(recipe):
            message, hint = self._why_left_out(f"--stage {stop}", end, method)
            used = [name for stage in method.stages_until("all", recipe) if (name := stage.stop_name)]
            raise InputError(message, hint=f"{hint}; stages there are: {', '.join([*used, 'all'])}")
        return stages

    def resolve(self, method: Method | None = None) -> Recipe:
        """The preset with what was set on top of it, of another method than `self.method` if one is given.

        Raises InputError for an unknown method, preset or field.
        """
        method = method or find_method(self.method)
        return load_config(method.recipe or Recipe, method.preset_file(self.preset), self._changes(method))

    def _changes(self, method: Method) -> dict[str, dict[str, Any]]:
        """What was set on top of the preset, by table of the method's recipe."""
        given = {"nerf": self.nerf, "mesh": self.mesh, **self.recipe}
        changes = {table: dict(values) for table, values in given.items() if values}
        flags = {
            "steps": ("nerf", "num_steps"),
            "fine_steps": ("mesh", "num_steps"),
            "texture_size": ("bake", "texture_size"),
            "faces": ("bake", "max_faces"),
        }
        tables = {table.name for table in fields(method.recipe or Recipe)}
        for flag, (table, name) in flags.items():
            if (value := getattr(self, flag)) is not None:
                if table not in tables:
                    raise InputError(f"--{flag.replace('_', '-')}: method {method.name} has no such setting")
                changes.setdefault(table, {})[name] = value
        return changes

    def _why_left_out(self, option: str, stage: Stage, method: Method) -> tuple[str, str]:
        """The message and the hint for an option that needs a stage which the settings leave out."""
        changes, recipe = self._changes(method), method.recipe or Recipe
        changes.get("mesh", {}).pop("num_steps", None)
        file = method.preset_file(self.preset)
        presets = [
            name
            for name, other in method.presets.items()
            if stage.is_used(load_config(recipe, other, changes))
        ]
        if stage.is_used(load_config(recipe, file, changes)):
            setting = "num_steps = 0 under [mesh]" if self.fine_steps is None else "--fine-steps 0"
            cause, hint = f"with {setting}", "a number above 0, or none"
        elif presets:
            cause, hint = f"in --preset {self.preset}", " or ".join(f"--preset {name}" for name in presets)
        else:
            cause, hint = "with these settings", f"other settings of method {method.name}"
        return f"{option}: there is no {stage.name} stage {cause}", hint


@dataclass(frozen=True, kw_only=True)
class ReconstructVerbConfig(ReconstructConfig, CommonConfig):
    """An orbit to a mesh: mesh.glb, mesh.ply and a turntable video, from pictures and their cameras."""

    orbit_dir: Annotated[Path, POSITIONAL]
    """folder with pictures around one object, any number, and their cameras: cameras.json, a transforms.json of
    nerfstudio, instant-ngp or Blender, or a COLMAP model"""
    output: Annotated[Path, short("-o")]
    """folder of the results"""
    stage: str = "all"
    """stop after coarse or fine (a PLY and a picture), or bake (the mesh files); a later stage goes on from there"""
    sds: bool = False
    """let an orbit model complete what the orbit does not show (masked score distillation, in the fine stage)"""
    weights: str = "mini"
    """of that model: mini (shipped: upright figures, small), a folder, a .safetensors file, or a hub id"""
    variant: Variant = "auto"
    """which model the weights must be; score distillation needs p, auto takes what they are"""
    up: Literal["auto", "y", "z"] = "auto"
    """axis of a transforms.json or COLMAP model that points up; auto: z, and for COLMAP what the cameras have in
    common"""
    picture_every: int = 96
    """steps between pictures of the fits in progress/, 0 for none"""

    def __post_init__(self):
        super().__post_init__()
        check_range("picture_every", self.picture_every, 0, 1_000_000)
        self.stages_until(self.stage)
        if self.sds:
            self.require_use("sds")

    def settings(self) -> dict[str, Any]:
        """What decides the result: the values of the preset too, so that a changed preset counts as other settings."""
        from sv3d_jax.config import to_plain

        settings = super().settings() | to_plain(self.resolve())
        del (
            settings["stage"],
            settings["picture_every"],
            settings["up"],
        )  # the digest of the cameras covers it
        if self.method == SV3D.name:  # so that folders from before there were methods can be continued
            del settings["method"]
        if not self.recipe:
            del settings["recipe"]
        if not self.sds:
            del settings["weights"], settings["variant"]
        return settings
