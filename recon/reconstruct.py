"""Orbit to mesh: the `reconstruct` verb and its Python form."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from sv3d_jax.arrays import Float, Params
from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.devices import warn_of_slow_scatter
from sv3d_jax.errors import InputError, SV3DError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.orbits import OrbitFrames
from sv3d_jax.io.outputs import OutputFolder
from sv3d_jax.io.scenes import read_views
from sv3d_jax.io.surfaces import Up
from sv3d_jax.metrics.perceptual import read_lpips_weights
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.recon.bake import ColorsAt, bake_texture, textured
from sv3d_jax.recon.checks import check_cameras
from sv3d_jax.recon.config import Recipe, ReconstructConfig, ReconstructVerbConfig, Stage
from sv3d_jax.recon.dmtet.stage import fit_surface, sds_steps, start_light, surface_mesh
from sv3d_jax.recon.export import write_mesh, write_meshes, write_results, write_stage
from sv3d_jax.recon.fit import FitInfo, Look, load_arrays, save_arrays
from sv3d_jax.recon.guide import Guide, check_model, input_view, make_guide
from sv3d_jax.recon.nerf.field import albedo, init_field
from sv3d_jax.recon.nerf.occupancy import visual_hull
from sv3d_jax.recon.nerf.stage import fit_field
from sv3d_jax.recon.nerf.surface import field_mesh, seen_colors
from sv3d_jax.recon.pictures import Pictures, Render, render_field, render_fine
from sv3d_jax.recon.uv import smooth_normals
from sv3d_jax.recon.views import Views, prepare_views, usable_frames
from sv3d_jax.render.lighting import SGLight

if TYPE_CHECKING:
    from sv3d_jax.pipeline import Orbit, Pipeline

Callback = Callable[[FitInfo], None]
# From pictures in [0, 1] to unit normals in camera axes: x right, y up, z towards the viewer.
NormalEstimator = Callable[[Float[np.ndarray, "f h w 3"]], Float[np.ndarray, "f h w 3"]]
RESULTS = {"coarse": "coarse.ply", "fine": "fine.ply", "bake": "mesh.glb", "all": "mesh.glb"}
FULLY_LIT = 0.95  # of the vertices are darker than what counts as the brightest place
STAGES = ["load", "compile", "coarse", "surface", "compile", "fine", "bake", "write"]


@dataclass(frozen=True, eq=False)
class ReconstructResult:
    """A mesh in the world of the cameras, and how it came about."""

    mesh: Mesh  # z up, textured with the albedo: the colours without light, as far as the fine stage told them apart
    lit: Mesh | None  # the same surface in the colours that the views show; None without a fine stage
    light: SGLight | None
    log: list[FitInfo]  # of the coarse stage, then of the fine one
    facts: dict[str, Any]  # density level, its overlap with the masks, size of the mesh
    timings: dict[str, float]  # seconds by stage

    def export(self, path: str | Path, ply_up: Up = "y") -> None:
        """Write the mesh as .glb, .obj, .ply or .usdz; y up, as such files are, but a PLY as `ply_up` says."""
        write_mesh(Path(path), self.mesh, ply_up)


class Coarse(NamedTuple):
    """What the coarse stage leaves: a surface in box coordinates and the field that it was taken from."""

    vertices: np.ndarray
    faces: np.ndarray
    field: Params
    facts: str  # JSON
    log: str  # JSON


class Fine(NamedTuple):
    """What the fine stage leaves, likewise."""

    vertices: np.ndarray
    faces: np.ndarray
    field: Params
    light: SGLight | None
    log: str


class Baked(NamedTuple):
    """What baking leaves: textures with and without light on an unwrapped surface in box coordinates."""

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    albedo: np.ndarray
    lit: np.ndarray | None


def reconstruct(
    orbit: "OrbitFrames | Orbit | str | Path",
    config: ReconstructConfig | None = None,
    callback: Callback | None = None,
    progress: Progress | None = None,
    scratch: Path | None = None,
    stage: Stage = "all",
    pictures: Pictures | None = None,
    normals: NormalEstimator | None = None,
    sds: "Pipeline | None" = None,
) -> ReconstructResult:
    """The mesh that the views of an orbit show: a folder, its frames, or what a `Pipeline` returned.

    A folder may also hold what nerfstudio, instant-ngp, Blender or COLMAP wrote, as `io.scenes.read_views` reads it.

    `callback` is called several times a second or so; it may raise `Cancelled`. With `scratch`, a folder, what is
    done is kept there, and a run that finds it goes on to the same result: same orbit, config and model. After `stage`
    coarse or fine the mesh has its colours at the vertices and is neither simplified nor textured. `pictures` says
    where to put pictures of the fits. `normals` is asked once for the normals that all frames show, which the fine
    stage then heeds. `sds` is an orbit model that completes what the orbit does not show; the orbit's input view is the
    picture that it is given.
    """
    config, progress = config or ReconstructConfig(), progress or NullProgress()
    if jax.default_backend() == "gpu":
        warn_of_slow_scatter()
    frames, recipe = usable_frames(_frames(orbit)), config.resolve()
    clock = _Clock()
    vgg = None if config.lpips is None else read_lpips_weights(config.lpips)
    views, box = prepare_views(frames)
    guide = None
    if sds is not None:
        config.require_fine_stage("sds")
        guide = make_guide(sds, views, frames.input_frame, recipe.mesh.sds.num_orbits, config.seed)
    camera_check = check_cameras(frames, views)
    if normals is not None:
        config.require_fine_stage("normals")
        views = views._replace(normals=_estimated_normals(normals, views))
    clock.mark("load")
    keep = _Keep(scratch)
    job = _Job(
        recipe, config.seed, views, frames.input_frame, vgg, guide, keep, callback, pictures, progress, clock
    )

    coarse = keep(
        "coarse", lambda: _coarse(job), Coarse(0, 0, init_field(recipe.nerf, jax.random.key(0)), "", "")
    )
    mesh, log, light = Mesh(coarse.vertices, coarse.faces), _read_log(coarse.log), None
    colors_at: ColorsAt = seen_colors(recipe.nerf, coarse.field)
    if recipe.mesh.num_steps and stage != "coarse":
        like = Fine(0, 0, coarse.field, start_light(recipe.mesh), "")
        fine = keep("fine", lambda: _fine(job, mesh, coarse.field), like)
        mesh, log = Mesh(fine.vertices, fine.faces), log + _read_log(fine.log)
        light, brightest = _full_light(mesh, fine.light)
        colors_at = _albedo_at(recipe, fine.field, brightest)

    progress.stage("bake")
    paint = _colored if stage in ("coarse", "fine") else _textured
    mesh, lit = paint(job, mesh, colors_at, light)
    mesh = replace(mesh, vertices=box.to_world(mesh.vertices))
    lit = None if lit is None else replace(lit, vertices=mesh.vertices)
    clock.mark("bake")
    facts = json.loads(str(coarse.facts)) | {"vertices": len(mesh.vertices), "faces": len(mesh.faces)}
    facts |= {"losses": log[-1].losses, "cameras": camera_check}
    if "perceptual" in log[-1].losses:
        facts["perceptual"] = "ssim + multi-scale l1" if vgg is None else "lpips"
    if sds is not None:
        facts["weights"] = sds.weights
    return ReconstructResult(mesh, lit, light, log, facts, clock.seconds)


def run_reconstruct(config: ReconstructVerbConfig, progress: Progress) -> dict[str, Any]:
    """The verb `reconstruct`."""
    progress.stages = STAGES
    progress.stage("load")
    frames = read_views(config.orbit_dir, config.up)
    settings = {"verb": "reconstruct", **config.settings(), "orbit_sha256": _orbit_digest(frames)}
    if config.lpips is not None:
        settings["lpips_sha256"] = _digest(jax.tree.leaves(read_lpips_weights(config.lpips)))
    folder = OutputFolder(config.output, settings, config.overwrite)
    if config.sds:
        _check_model(config)
    if config.dry_run:
        views, _ = prepare_views(usable := usable_frames(frames))
        if config.sds:
            input_view(views, usable.input_frame)
        return {"dry_run": True, "frames": len(frames.images), "directory": str(config.output)}
    with folder:
        stage = "all" if folder.done else config.stage  # a whole run is left as it is
        name = "mesh" if stage == "all" else stage
        if not folder.stage_done(name):
            every = config.picture_every
            pictures = Pictures(folder.path("progress"), every) if every else None
            sds = _pipeline(config)
            done = reconstruct_into(
                folder.directory, frames, config, progress, folder.scratch, stage, pictures, sds
            )
            folder.finish_stage(name, *done)
        if stage == "all" and not folder.done:
            folder.write_run_json(seeds=[config.seed])
        facts = folder.stage_facts(name)
    return {"mesh": str(folder.path(RESULTS[stage])), "directory": str(folder.directory), **facts}


def reconstruct_into(
    directory: Path,
    frames: OrbitFrames,
    config: ReconstructConfig,
    progress: Progress,
    scratch: Path,
    stage: Stage = "all",
    pictures: Pictures | None = None,
    sds: "Pipeline | None" = None,
) -> tuple[list[Path], dict[str, Any]]:
    """Reconstruct up to a stage and write its results into a folder: their paths, and what is to be known of them."""
    result = reconstruct(
        frames, config, progress=progress, scratch=scratch, stage=stage, pictures=pictures, sds=sds
    )
    progress.stage("write")
    if stage == "all":
        files = write_results(directory, result.mesh, frames, result.lit, ply_up=config.ply_up)
    elif stage == "bake":
        files = write_meshes(directory, result.mesh, result.lit, config.ply_up)
    else:
        files = write_stage(directory, stage, result.lit or result.mesh, frames, config.ply_up)
    return files, {**result.facts, "timings_s": result.timings}


def _check_model(config: ReconstructVerbConfig) -> None:
    """Refuse weights that cannot guide, and full-size ones on a CPU that nobody asked for."""
    from sv3d_jax.plan import plan_orbit, require_accelerator
    from sv3d_jax.weights.hub import read_model_config

    model = read_model_config(config.weights, config.variant)
    check_model(model)
    plan = plan_orbit(model, num_steps=len(sds_steps(config.resolve().mesh)))
    require_accelerator(plan, jax.default_backend(), config.device)


def _pipeline(config: ReconstructVerbConfig) -> "Pipeline | None":
    from sv3d_jax.pipeline import Pipeline

    return Pipeline.from_pretrained(config.weights, config.variant) if config.sds else None


@dataclass(frozen=True)
class _Keep:
    """Results of stages in a folder, or nowhere."""

    folder: Path | None

    def __call__(self, name: str, make: Callable[[], Any], like: Any) -> Any:
        """What an earlier run kept under this name, else what `make` makes, kept from now on."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.npz"
        if not path.exists():
            save_arrays(path, make())
        return load_arrays(path, like)

    def fit(self, name: str) -> Path | None:
        """Where an unfinished fit is kept."""
        return None if self.folder is None else self.folder / f"{name}_fit.npz"


@dataclass
class _Clock:
    """Seconds between marks."""

    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)

    def mark(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self.start, 3)
        self.start = now


@dataclass(frozen=True)
class _Job:
    """What every stage is given."""

    recipe: Recipe
    seed: int
    views: Views
    input_frame: int
    vgg: Params | None
    guide: Guide | None
    keep: _Keep
    callback: Callback | None
    pictures: Pictures | None
    progress: Progress | NullProgress
    clock: _Clock

    def report(self, stage: str) -> Callback:
        """Tells progress and callback how a fit goes; the first call compiles."""
        self.progress.stage("compile")
        done: list[int] = []

        def report(info: FitInfo) -> None:
            if not done:
                self.clock.mark("compile")
                self.progress.stage(stage, total=info.total)
            self.progress.advance(info.step - (done[-1] if done else 0))
            done.append(info.step)
            if self.callback is not None:
                self.callback(info)

        return report

    def look(self, stage: str, render: Render) -> Look | None:
        """Makes pictures of a fit, if they are wanted."""
        if self.pictures is None:
            return None
        save = self.keep.fit(stage)
        goes_on = save is not None and save.exists()
        return self.pictures.look(stage, render, self.views, self.input_frame, goes_on)


def _coarse(job: _Job) -> Coarse:
    nerf = job.recipe.nerf
    hull = visual_hull(job.views, nerf.occupancy_resolution, nerf.hull_tolerance)
    if not hull.any():
        raise SV3DError(
            "the surface is empty: no point lies in the foreground of all views",
            hint="do the cameras in cameras.json fit the frames?",
        )
    look = job.look("coarse", render_field(nerf))
    report, save = job.report("coarse"), job.keep.fit("coarse")
    state, log = fit_field(nerf, job.views, hull, job.seed, report, save, look)
    job.clock.mark("coarse")
    job.progress.stage("surface")
    mesh, facts = field_mesh(nerf, state, hull, job.views)
    job.clock.mark("surface")
    params = jax.tree.map(np.asarray, state.params)
    return Coarse(mesh.vertices, mesh.faces, params, json.dumps(facts), json.dumps(log))


def _fine(job: _Job, coarse: Mesh, field: Params) -> Fine:
    recipe = job.recipe
    look = job.look("fine", render_fine(recipe.nerf))
    report, save = job.report("fine"), job.keep.fit("fine")
    surface, params, log = fit_surface(
        recipe.mesh,
        recipe.nerf,
        coarse,
        field,
        job.views,
        job.seed,
        callback=report,
        save=save,
        look=look,
        vgg=job.vgg,
        guide=job.guide,
    )
    if not surface.num_faces:
        distances = params["sdf"]
        raise SV3DError(
            "the surface is empty: the fine stage's distances all lie between"
            f" {distances.min():.4g} and {distances.max():.4g}",
            hint="a smaller learning_rate under [mesh] of a --config file, or --fine-steps 0",
        )
    mesh = surface_mesh(surface, recipe.nerf.min_component)
    job.clock.mark("fine")
    params = jax.tree.map(np.asarray, params)
    return Fine(mesh.vertices, mesh.faces, params["field"], params["light"], json.dumps(log))


def _textured(job: _Job, mesh: Mesh, colors_at: ColorsAt, light: SGLight | None) -> tuple[Mesh, Mesh | None]:
    """The mesh with its colours as a texture, and so with light, if there is one."""
    size = job.recipe.bake.texture_size

    def bake() -> Baked:
        painted = textured(mesh, colors_at, size, job.recipe.bake.max_faces)
        lit = None if light is None else bake_texture(painted, _lit(colors_at, light), size)
        return Baked(painted.vertices, painted.faces, painted.uv, painted.texture, lit)

    baked = job.keep("bake", bake, Baked(0, 0, 0, 0, None if light is None else 0))
    mesh = Mesh(baked.vertices, baked.faces, uv=baked.uv, texture=baked.albedo)
    return mesh, None if baked.lit is None else replace(mesh, texture=baked.lit)


def _colored(job: _Job, mesh: Mesh, colors_at: ColorsAt, light: SGLight | None) -> tuple[Mesh, Mesh | None]:
    """The mesh with its colours at the vertices, likewise."""
    places = mesh.vertices.astype(np.float32), smooth_normals(mesh).astype(np.float32)

    def with_colors(colors_at: ColorsAt) -> Mesh:
        return replace(mesh, vertex_colors=np.clip(np.asarray(colors_at(*places)), 0.0, 1.0))

    return with_colors(colors_at), None if light is None else with_colors(_lit(colors_at, light))


def _full_light(mesh: Mesh, light: SGLight | None) -> tuple[SGLight | None, float]:
    """The light whose brightest shading of a surface is 1, and what it was: the factor that its albedo then takes.

    Pictures tell both up to one factor, and the fit leaves the largest channel of the albedo near 1, as its prior says:
    a grey object would be white. With this choice an object shows its own colours where it is lit best.
    """
    if light is None:
        return None, 1.0
    shading = np.asarray(light.shade(smooth_normals(mesh).astype(np.float32)))
    brightest = float(np.quantile(shading, FULLY_LIT))
    return light.times(1.0 / brightest), brightest


def _albedo_at(recipe: Recipe, params: Params, factor: float) -> ColorsAt:
    compiled = jax.jit(lambda points: factor * albedo(recipe.nerf, params, points))
    return lambda points, normals: np.asarray(compiled(points))


def _lit(colors_at: ColorsAt, light: SGLight) -> ColorsAt:
    return lambda points, normals: colors_at(points, normals) * np.asarray(light.shade(normals))[:, None]


def _read_log(log: Any) -> list[FitInfo]:
    return [FitInfo(*entry) for entry in json.loads(str(log))]


def _estimated_normals(normals: NormalEstimator, views: Views) -> np.ndarray:
    """What an estimator says of the views; raises InputError where it does not return unit normals."""
    estimate = np.asarray(normals(views.images), np.float32)
    if estimate.shape != views.images.shape or not np.isfinite(estimate).all():
        raise InputError(
            f"normals must return finite values of the shape {views.images.shape}, got {estimate.shape}"
        )
    lengths = np.linalg.norm(estimate, axis=-1)[views.masks > 0.5]
    if np.abs(lengths - 1).mean() > 0.1:
        raise InputError(
            f"normals must return unit vectors, on the object their mean length is {lengths.mean():.2g}",
            hint="normals that are stored as colours in [0, 1] are 2 x - 1",
        )
    return estimate


def _orbit_digest(frames: OrbitFrames) -> str:
    """Of all that the result depends on, so that other frames in the same folder count as another run."""
    return _digest([frames.images, frames.alphas, frames.camera_to_world, frames.focal_px, frames.center_px])


def _digest(arrays: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _frames(orbit: "OrbitFrames | Orbit | str | Path") -> OrbitFrames:
    if isinstance(orbit, (str, Path)):
        return read_views(orbit)
    if isinstance(orbit, OrbitFrames):
        return orbit
    images, cameras = orbit.frames_uint8(), orbit.cameras
    focal, center = intrinsics(cameras.fov_deg, images.shape[1:3])
    count = len(images)
    return OrbitFrames(
        images=images.astype(np.float32) / 255,
        alphas=None,
        camera_to_world=cameras.camera_to_world,
        focal_px=np.tile(focal, (count, 1)),
        center_px=np.tile(center, (count, 1)),
        azimuths_deg=cameras.azimuths_deg,
        elevations_deg=cameras.elevations_deg,
        radius=cameras.radius,
        input_frame=cameras.input_frame,
        fov_deg=cameras.fov_deg,
        object_to_world=None,
        files=[f"frame {index}" for index in range(count)],
    )
