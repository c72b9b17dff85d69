"""Orbit to mesh: the `reconstruct` verb and its Python form."""

import hashlib
import reprlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from sv3d_jax.arrays import Float
from sv3d_jax.describe import describe
from sv3d_jax.devices import warn_of_slow_scatter
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.inline import animation_html, show
from sv3d_jax.io.orbits import OrbitFrames
from sv3d_jax.io.outputs import OutputFolder
from sv3d_jax.io.scenes import read_views
from sv3d_jax.io.surfaces import Up
from sv3d_jax.io.video import contact_sheet
from sv3d_jax.metrics.perceptual import read_lpips_weights
from sv3d_jax.orbit import Orbit
from sv3d_jax.programs import loading_ahead
from sv3d_jax.progress import Progress, shown
from sv3d_jax.recon.checks import check_cameras
from sv3d_jax.recon.config import ReconstructConfig, ReconstructVerbConfig
from sv3d_jax.recon.context import Callback, Clock, Context
from sv3d_jax.recon.dmtet.stage import sds_steps
from sv3d_jax.recon.export import write_mesh, write_meshes, write_results, write_stage
from sv3d_jax.recon.fit import FitInfo
from sv3d_jax.recon.guide import check_model, input_view, make_guide
from sv3d_jax.recon.methods import find_method
from sv3d_jax.recon.pictures import Pictures
from sv3d_jax.recon.representations import Light
from sv3d_jax.recon.runner import compile_ahead, run_stages
from sv3d_jax.recon.stages import Method, State
from sv3d_jax.recon.views import Box, Views, prepare_views, usable_frames

if TYPE_CHECKING:
    from sv3d_jax.pipeline import Pipeline

# From pictures in [0, 1] to unit normals in camera axes: x right, y up, z towards the viewer.
NormalEstimator = Callable[[Float[np.ndarray, "f h w 3"]], Float[np.ndarray, "f h w 3"]]


@dataclass(frozen=True, eq=False, repr=False)
class ReconstructResult:
    """A mesh in the world of the cameras, and how it was made. A notebook shows it as it turns."""

    mesh: Mesh  # z up; its colours are the albedo, without light, as far as the method separates the two
    lit: Mesh | None  # the same surface in the colours that the views show; None without a model of light
    light: Light | None
    log: list[FitInfo]  # of all fits, one after the other
    facts: dict[str, Any]  # such as the density level, its overlap with the masks, the size of the mesh
    timings: dict[str, float]  # seconds by stage

    def __repr__(self) -> str:
        return f"ReconstructResult({self.mesh!r}, in {sum(self.timings.values()):.1f} s)"

    def _repr_html_(self) -> str:
        return animation_html(self.mesh.turning(), repr(self))

    def show(self) -> None:
        """Show the mesh: in a notebook as it turns, elsewhere its views in the system's picture viewer."""
        views = self.mesh.turning(num_views=8)
        show(self, contact_sheet(views, [f"{45 * view}°" for view in range(len(views))], columns=4))

    def to_trimesh(self) -> Any:
        """The mesh as a `trimesh.Trimesh`, z up."""
        return self.mesh.to_trimesh()

    def save(self, path: str | Path, ply_up: Up = "y") -> None:
        """Write the mesh as .glb, .obj, .ply or .usdz: y up, as usual in such files, but a PLY as `ply_up` says.

        Raises InputError for another suffix.
        """
        write_mesh(Path(path), self.mesh, ply_up)

    def export(self, path: str | Path, ply_up: Up = "y") -> None:
        """The former name of `save`."""
        warnings.warn("ReconstructResult.export is now called save", DeprecationWarning, stacklevel=2)
        self.save(path, ply_up)


def reconstruct(
    orbit: OrbitFrames | Orbit | str | Path,
    config: ReconstructConfig | None = None,
    callback: Callback | None = None,
    progress: Progress | bool | None = None,
    scratch: Path | None = None,
    stage: str = "all",
    pictures: Pictures | None = None,
    normals: NormalEstimator | None = None,
    sds: "Pipeline | None" = None,
    method: str | Method | None = None,
) -> ReconstructResult:
    """The mesh that the views of an orbit show: a folder, its frames, or what a `Pipeline` returned.

    A folder may also hold what nerfstudio, instant-ngp, Blender or COLMAP wrote, as `io.scenes.read_views` reads it.

    `callback` is called after every few steps of a fit; it may raise `Cancelled`. `progress` is a `Progress`, True to
    show the stages on stderr, or False; None shows them in terminals and notebooks. `scratch` is a folder in which
    results of stages are kept: a run with the same orbit, config and model that finds them there goes on from them, to
    the same result. `stage` ends the run early; after `coarse` or `fine` the mesh has its colours at the vertices and
    is neither simplified nor textured. `pictures` says where to put pictures of the fits. `normals` is called once, for
    the normals of all frames, which the fine stage then fits too. `sds` is an orbit model that completes what the orbit
    does not show, given the orbit's input view. `method` is used instead of `config.method`, and may be a `Method` that
    is not registered.

    Raises InputError for frames, settings or a method that cannot be used, and for weights of LPIPS, normals or a model
    that no stage of the run uses; SV3DError where there is no surface.
    """
    clock, config = Clock(), config or ReconstructConfig()
    method = find_method(method or config.method)
    frames, recipe = usable_frames(_frames(orbit)), config.resolve(method)
    stages = config.stages_until(stage, method)
    _check_use(config, method, sds, normals)
    ahead = loading_ahead(("reconstruct", describe(recipe), stage, frames.images.shape))
    with ahead, shown(progress, method.progress_stages(recipe)) as told:
        compile_ahead(stages, recipe, *frames.images.shape[:3])
        views, box = prepare_views(frames)
        if jax.default_backend() == "gpu":
            warn_of_slow_scatter()
        context = Context(
            recipe,
            views,
            frames.input_frame,
            seed=config.seed,
            vgg=None if config.lpips is None else read_lpips_weights(config.lpips),
            scratch=scratch,
            callback=callback,
            pictures=pictures,
            progress=told,
            clock=clock,
        )
        facts = {}
        if sds is not None:
            guide = make_guide(sds, views, frames.input_frame, recipe.mesh.sds.num_orbits, config.seed)
            context, facts["weights"] = replace(context, guide=guide), sds.weights
        facts["cameras"] = check_cameras(frames, views)
        if normals is not None:
            context = replace(context, views=views._replace(normals=_estimated_normals(normals, views)))
        clock.mark("load")
        return _result(context, run_stages(context, stages), box, facts)


def run_reconstruct(config: ReconstructVerbConfig, progress: Progress) -> dict[str, Any]:
    """The verb `reconstruct`."""
    progress.stages = find_method(config.method).progress_stages(config.resolve())
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
        stage = "all" if folder.done else config.stage  # a complete run stays as it is
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
    of_stage = folder.path(f"{stage}.ply")  # of a stage without a texture
    mesh = of_stage if of_stage.exists() else folder.path("mesh.glb")
    return {"mesh": str(mesh), "directory": str(folder.directory), **facts}


def reconstruct_into(
    directory: Path,
    frames: OrbitFrames,
    config: ReconstructConfig,
    progress: Progress,
    scratch: Path,
    stage: str = "all",
    pictures: Pictures | None = None,
    sds: "Pipeline | None" = None,
) -> tuple[list[Path], dict[str, Any]]:
    """Reconstruct up to a stage and write the results into a folder; returns their paths and facts about them."""
    result = reconstruct(
        frames, config, progress=progress, scratch=scratch, stage=stage, pictures=pictures, sds=sds
    )
    progress.stage("write")
    if stage == "all":
        files = write_results(directory, result.mesh, frames, result.lit, ply_up=config.ply_up)
    elif result.mesh.texture is not None:
        files = write_meshes(directory, result.mesh, result.lit, config.ply_up)
    else:
        files = write_stage(directory, stage, result.lit or result.mesh, frames, config.ply_up)
    return files, {**result.facts, "timings_s": result.timings}


def _result(context: Context, state: State, box: Box, facts: dict[str, Any]) -> ReconstructResult:
    """What the stages made, in the world of the cameras; `facts` hold the `cameras` and perhaps the `weights`."""
    mesh = replace(state.mesh, vertices=box.to_world(state.mesh.vertices))
    lit = None if state.lit is None else replace(state.lit, vertices=mesh.vertices)
    losses = state.log[-1].losses if state.log else {}
    told = state.facts | {"vertices": len(mesh.vertices), "faces": len(mesh.faces)}
    told |= {"losses": losses, "cameras": facts.pop("cameras")}
    if "perceptual" in losses:
        told["perceptual"] = "ssim + multi-scale l1" if context.vgg is None else "lpips"
    light = None if state.representation is None else state.representation.light
    return ReconstructResult(mesh, lit, light, list(state.log), told | facts, context.clock.seconds)


def _check_use(
    config: ReconstructConfig, method: Method, sds: "Pipeline | None", normals: NormalEstimator | None
) -> None:
    """Refuse what is given and no stage of the run uses."""
    if config.lpips is not None:
        config.require_use("lpips", method)
    if sds is not None:
        config.require_use("sds", method)
    if normals is not None:
        config.require_use("normals", method)


def _check_model(config: ReconstructVerbConfig) -> None:
    """Refuse weights that cannot guide, and full-size ones on a CPU unless the user asked for the CPU."""
    from sv3d_jax.plan import plan_orbit, require_accelerator
    from sv3d_jax.weights.hub import read_model_config

    model = read_model_config(config.weights, config.variant)
    check_model(model)
    guided_steps = max(1, len(sds_steps(config.resolve().mesh)))
    plan = replace(plan_orbit(model), num_steps=guided_steps)
    require_accelerator(plan, jax.default_backend(), config.device)


def _pipeline(config: ReconstructVerbConfig) -> "Pipeline | None":
    from sv3d_jax.pipeline import Pipeline

    return Pipeline.from_pretrained(config.weights, config.variant) if config.sds else None


def _estimated_normals(normals: NormalEstimator, views: Views) -> np.ndarray:
    """The normals of the views by an estimator. Raises InputError where it does not return unit normals."""
    estimate = np.asarray(normals(views.images), np.float32)
    if estimate.shape != views.images.shape or not np.isfinite(estimate).all():
        raise InputError(
            f"normals must return finite values of the shape {views.images.shape}, got {estimate.shape}"
        )
    lengths = np.linalg.norm(estimate, axis=-1)[views.masks > 0.5]
    deviation = np.abs(lengths - 1).mean()
    if deviation > 0.1:
        raise InputError(
            "normals must return unit vectors, on the object their lengths differ from 1 by"
            f" {deviation:.2g} on average",
            hint="normals that are stored as colours in [0, 1] are 2 x - 1",
        )
    return estimate


def _orbit_digest(frames: OrbitFrames) -> str:
    """A digest of the frames and cameras, so that other frames in the same folder count as another run."""
    return _digest([frames.images, frames.alphas, frames.camera_to_world, frames.focal_px, frames.center_px])


def _digest(arrays: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _frames(orbit: OrbitFrames | Orbit | str | Path) -> OrbitFrames:
    if isinstance(orbit, (str, Path)):
        return read_views(orbit)
    if isinstance(orbit, OrbitFrames):
        return orbit
    if not isinstance(orbit, Orbit):
        raise InputError(
            f"reconstruct takes an orbit, or a folder of one, got {reprlib.repr(orbit)}",
            hint="OrbitFrames.from_views(images, cameras) is an orbit of your own pictures",
        )
    return OrbitFrames.from_views(orbit.frames_uint8(), orbit.cameras)
