"""Settings of the reconstruction; nothing here imports jax."""

import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from sv3d_jax.config import HIDDEN, POSITIONAL, CommonConfig, Seed, Settings, load_config, short, within
from sv3d_jax.errors import InputError
from sv3d_jax.models.families import Variant
from sv3d_jax.recon.methods import METHODS, find_method
from sv3d_jax.recon.stages import Extra, Method, Stage
from sv3d_jax.recon.sv3d import SV3D

Positive = Annotated[float, within(1e-9, 1e9)]
Weight = Annotated[float, within(0, 1e9)]
Share = Annotated[float, within(0, 1)]
CoarseSteps = Annotated[int, within(1, 1_000_000)]
FineSteps = Annotated[int, within(0, 1_000_000)]
TextureSize = Annotated[int, within(16, 8192)]
Faces = Annotated[int, within(100, 1_000_000)]
MIN_CELLS = 4  # of the fine stage's grid, along the box


@dataclass(frozen=True, kw_only=True)
class NerfConfig(Settings):
    """The coarse stage: a hash-grid NeRF that is turned into a surface.

    Densities are in field units: per unit length of a box of half-size 2.
    """

    PREFIX: ClassVar[str] = "nerf."

    num_levels: Annotated[int, within(2, 32)] = 8
    num_features: Annotated[int, within(1, 16)] = 2
    table_size: Annotated[int, within(2**8, 2**24)] = 2**16
    base_resolution: Annotated[int, within(1, 2**16)] = 16
    finest_resolution: Annotated[int, within(1, 2**16)] = 160  # cells along the box: about one to a pixel
    hidden_width: Annotated[int, within(1, 4096)] = 32
    hidden_layers: Annotated[int, within(0, 16)] = 1
    density_scale: Positive = 5.0  # density at the start, inside the hull

    num_steps: CoarseSteps = 320
    rays_per_step: Annotated[int, within(1, 2**20)] = 4096
    candidates_per_ray: Annotated[int, within(2, 4096)] = 160
    samples_per_ray: Annotated[int, within(1, 1024)] = 24
    learning_rate: Positive = 0.01  # falls to a tenth along a cosine
    photometric_weight: Weight = 10.0
    mask_weight: Weight = 5.0
    distortion_weight: Weight = 0.2  # at the last step; rises linearly from 0
    nearness_weight: Weight = 0.006
    opaque_weight: Weight = 0.0
    orientation_weight: Weight = 0.0  # above 0 it costs the density at six more points per sample

    occupancy_resolution: Annotated[int, within(4, 256)] = 64
    refresh_cells: Annotated[int, within(1, 2**24)] = 2**15
    hull_tolerance: Share = 0.05  # carving tolerance: share of views that may see background at the object

    surface_resolution: Annotated[int, within(8, 512)] = 128
    # Candidate iso-levels of density; the one whose silhouettes fit the masks best is taken.
    surface_levels: tuple[Positive, ...] = (1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0, 35.0, 50.0)
    surface_blur: Annotated[float, within(0, 64)] = 0.7  # standard deviation in cells
    min_component: Share = 0.01  # share of the faces below which a loose part is removed

    def __post_init__(self):
        super().__post_init__()
        if self.finest_resolution < self.base_resolution:
            raise InputError(
                f"nerf.finest_resolution {self.finest_resolution}: must not be below nerf.base_resolution"
                f" {self.base_resolution}"
            )
        if not self.surface_levels:
            raise InputError("nerf.surface_levels: needs at least one density")


@dataclass(frozen=True, kw_only=True)
class LossWeights(Settings):
    """Weights of the fine stage's losses; the paper publishes none.

    `perceptual` is for LPIPS where its weights are given, else for structural similarity and absolute errors at several
    scales. `illumination`, `chromaticity` and `evenness` separate light and albedo. `normal` needs estimated normals.
    `sdf_sign` falls to a twentieth over the first quarter of the steps.
    """

    PREFIX: ClassVar[str] = "mesh.weights."

    photometric: Weight = 10.0
    mask: Weight = 5.0
    perceptual: Weight = 1.0
    illumination: Weight = 0.3
    chromaticity: Weight = 1.0
    evenness: Weight = 0.25
    normal: Weight = 0.1
    depth: Weight = 0.1
    bilateral: Weight = 0.05
    albedo: Weight = 0.1
    sdf_sign: Weight = 0.2
    normal_consistency: Weight = 0.2
    laplacian: Weight = 0.0


@dataclass(frozen=True, kw_only=True)
class SDSConfig(Settings):
    """Masked score distillation (SV3D, section 4), where an orbit model is given."""

    PREFIX: ClassVar[str] = "mesh.sds."

    weight: Weight = 1e-3
    share: Share = 0.2  # of the fine stage's steps: the last ones, rounded up to whole calls of the fit
    num_orbits: Annotated[int, within(1, 4096)] = 16  # drawn at the start; each step takes one of them
    masked: bool = True  # False: the paper's "naive SDS", which also changes what the orbit shows


@dataclass(frozen=True, kw_only=True)
class MeshConfig(Settings):
    """The fine stage: signed distances on a grid of tetrahedra, fitted together with texture and light."""

    PREFIX: ClassVar[str] = "mesh."

    num_steps: FineSteps = 240
    cells: Annotated[int, within(MIN_CELLS, 256)] = 64  # cubes along the box, each of six tetrahedra
    views_per_step: Annotated[int, within(1, 1024)] = 2
    half_share: Share = 0.47  # of the steps: the first ones, which see the views at half their size
    learning_rate: Positive = 0.004  # of the distances; falls along a cosine
    # Of the light; 0: no model of light, colours are exported as the views show them.
    num_lobes: Annotated[int, within(0, 256)] = 24
    weights: LossWeights = LossWeights()
    sds: SDSConfig = SDSConfig()


@dataclass(frozen=True, kw_only=True)
class BakeConfig(Settings):
    """What the exported files hold."""

    PREFIX: ClassVar[str] = "bake."

    texture_size: TextureSize = 1024
    max_faces: Faces = 20_000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of all stages; a preset is a file of differences from these."""

    nerf: NerfConfig = NerfConfig()
    mesh: MeshConfig = MeshConfig()
    bake: BakeConfig = BakeConfig()


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(Settings):
    """How to turn an orbit into a mesh."""

    method: str = SV3D.name
    """reconstruction method; sv3d: a NeRF, then tetrahedra with texture and light, as in the paper"""
    preset: str = "fast"
    """of sv3d: preview, a first look in under a minute; fast, minutes on a CPU; quality, for accelerators"""
    steps: CoarseSteps | None = None
    """steps of the coarse fit (default: the preset's)"""
    fine_steps: FineSteps | None = None
    """steps of the fine fit, 0 to leave it out (default: the preset's)"""
    texture_size: TextureSize | None = None
    """side of the texture in pixels (default: the preset's)"""
    faces: Faces | None = None
    """most triangles of the mesh (default: the preset's)"""
    ply_up: Literal["y", "z"] = "y"
    """axis of mesh.ply that points up; y: as in the other files, z: as Blender and printers have it"""
    lpips: Path | None = None
    """safetensors file with the weights of LPIPS (VGG16 and heads), for the fine stage to compare pictures by"""
    seed: Seed = 0
    """seed of the fits"""
    nerf: Annotated[dict[str, Any], HIDDEN] = field(default_factory=dict)
    """fields of NerfConfig that differ from the preset; in a TOML file the table [nerf]"""
    mesh: Annotated[dict[str, Any], HIDDEN] = field(default_factory=dict)
    """fields of MeshConfig, likewise"""
    recipe: Annotated[dict[str, Any], HIDDEN] = field(default_factory=dict)
    """fields of the other tables of a method's recipe, by table; in a TOML file [recipe.TABLE]"""

    def __post_init__(self):
        super().__post_init__()
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
    picture_every: FineSteps = 96
    """steps between pictures of the fits in progress/, 0 for none"""

    def __post_init__(self):
        super().__post_init__()
        self.stages_until(self.stage)
        if self.sds:
            self.require_use("sds")

    def check_inputs(self) -> None:
        """Raise an SV3DError for a folder without cameras, an unwritable output, or absent weights."""
        from sv3d_jax.io.outputs import check_output_parent
        from sv3d_jax.io.scenes import check_views
        from sv3d_jax.weights.hub import find_weights

        check_views(self.orbit_dir)
        folder = self.orbit_dir if self.orbit_dir.is_dir() else self.orbit_dir.parent
        if self.output.resolve() == folder.resolve():
            words = ["sv3d", "reconstruct", str(self.orbit_dir), "-o", f"{folder.resolve().name}_mesh"]
            raise InputError(
                f"{self.output} holds the orbit, results need another folder", hint=shlex.join(words)
            )
        check_output_parent(self.output)
        if self.sds:
            find_weights(self.weights, self.variant)

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
