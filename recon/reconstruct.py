"""Orbit to mesh: the `reconstruct` verb and its Python form."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.errors import SV3DError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.orbits import OrbitFrames, read_orbit
from sv3d_jax.io.outputs import OutputFolder
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.recon.config import ReconstructConfig, ReconstructVerbConfig
from sv3d_jax.recon.export import write_mesh, write_results
from sv3d_jax.recon.fit import FitInfo
from sv3d_jax.recon.nerf.occupancy import visual_hull
from sv3d_jax.recon.nerf.stage import fit_field
from sv3d_jax.recon.nerf.surface import field_mesh
from sv3d_jax.recon.views import prepare_views

if TYPE_CHECKING:
    from sv3d_jax.pipeline import Orbit

Callback = Callable[[FitInfo], None]
STAGES = ["load", "compile", "fit", "surface", "write"]


@dataclass(frozen=True, eq=False)
class ReconstructResult:
    """A mesh in the world of the cameras, and how it came about."""

    mesh: Mesh  # z up, with vertex colours
    log: list[FitInfo]
    facts: dict[str, Any]  # density level, its overlap with the masks, size of the mesh
    timings: dict[str, float]  # seconds by stage

    def export(self, path: str | Path) -> None:
        """Write the mesh as .glb, .ply or .obj; y up, as such files are."""
        write_mesh(Path(path), self.mesh)


def reconstruct(
    orbit: "OrbitFrames | Orbit | str | Path",
    config: ReconstructConfig | None = None,
    callback: Callback | None = None,
    progress: Progress | None = None,
) -> ReconstructResult:
    """The mesh that the views of an orbit show: a folder, its frames, or what a `Pipeline` returned.

    `callback` is called several times a second or so; it may raise `Cancelled`.
    """
    config, progress = config or ReconstructConfig(), progress or NullProgress()
    frames, nerf = _frames(orbit), config.resolve()
    start = time.monotonic()
    views, box = prepare_views(frames)
    hull = visual_hull(views, nerf.occupancy_resolution, nerf.hull_tolerance)
    if not hull.any():
        raise SV3DError(
            "the surface is empty: no point lies in the foreground of all views",
            hint="do the cameras in cameras.json fit the frames?",
        )
    progress.stage("compile")

    def report(info: FitInfo) -> None:
        if len(marks) == 1:  # the first call compiles
            marks.append(time.monotonic())
            progress.stage("fit", total=info.total)
        progress.advance(info.step - done[-1])
        done.append(info.step)
        if callback is not None:
            callback(info)

    marks, done = [time.monotonic()], [0]
    state, log = fit_field(nerf, views, hull, config.seed, report)
    marks.append(time.monotonic())
    progress.stage("surface")
    mesh, facts = field_mesh(nerf, state, hull, views)
    marks.append(time.monotonic())
    mesh = Mesh(box.to_world(mesh.vertices), mesh.faces, vertex_colors=mesh.vertex_colors)
    facts |= {"vertices": len(mesh.vertices), "faces": len(mesh.faces), "losses": log[-1].losses}
    seconds = np.diff([start, *marks]).round(3).tolist()
    return ReconstructResult(mesh, log, facts, dict(zip(("load", *STAGES[1:4]), seconds, strict=True)))


def run_reconstruct(config: ReconstructVerbConfig, progress: Progress) -> dict[str, Any]:
    """The verb `reconstruct`."""
    progress.stages = STAGES
    progress.stage("load")
    frames = read_orbit(config.orbit_dir)
    settings = {"verb": "reconstruct", **config.settings(), "orbit_sha256": _digest(frames)}
    folder = OutputFolder(config.output, settings, config.overwrite)
    if config.dry_run:
        prepare_views(frames)
        return {"dry_run": True, "frames": len(frames.images), "directory": str(config.output)}
    with folder:
        if not folder.done:
            folder.finish_stage("mesh", *reconstruct_into(folder.directory, frames, config, progress))
            folder.write_run_json(seeds=[config.seed])
        facts = folder.stage_facts("mesh")
    return {"mesh": str(folder.path("mesh.glb")), "directory": str(folder.directory), **facts}


def reconstruct_into(
    directory: Path, frames: OrbitFrames, config: ReconstructConfig, progress: Progress
) -> tuple[list[Path], dict[str, Any]]:
    """Reconstruct and write the results into a folder: their paths, and what is to be known of them."""
    result = reconstruct(frames, config, progress=progress)
    progress.stage("write")
    files = write_results(directory, result.mesh, frames)
    return files, {**result.facts, "timings_s": result.timings}


def _digest(frames: OrbitFrames) -> str:
    """Of all that the result depends on, so that other frames in the same folder count as another run."""
    digest = hashlib.sha256()
    arrays = frames.images, frames.alphas, frames.camera_to_world, frames.focal_px, frames.center_px
    for array in arrays:
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _frames(orbit: "OrbitFrames | Orbit | str | Path") -> OrbitFrames:
    if isinstance(orbit, (str, Path)):
        return read_orbit(orbit)
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
