"""The verb `data import`: scenes of other programs, with cameras once around an object, to orbit folders."""

from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.cameras.pose import SV3D_FOV_DEG, check_ahead
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.cameras_file import CAMERAS_FILE, frame_file
from sv3d_jax.io.images import Picture, write_png
from sv3d_jax.io.inputs import refuse_overwriting
from sv3d_jax.io.orbits import write_orbit
from sv3d_jax.io.outputs import OutputFolder
from sv3d_jax.io.scenes import KNOWN, Scene, Up, find_scenes, read_scene
from sv3d_jax.io.video import contact_sheet, frame_labels
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.train.data.config import ImportConfig

TOLERANCE = 0.01  # relative to the radius, and for unit vectors


def run_import(config: ImportConfig, progress: Progress | NullProgress) -> dict[str, Any]:
    """The verb `data import`. Of several scenes, those that are no orbits are left out and reported."""
    sources = _sources(config)
    progress.stage("import", total=len(sources))
    imported, left_out = [], []
    for source, directory in sources:
        try:
            scene = read_scene(source)
            cameras, world_from_scene, order = scene_orbit(scene, config.up)
            images = _frames(scene, order)
            refuse_overwriting(scene.files, [directory])
            if not config.dry_run:
                _write(config, directory, scene, images, cameras, world_from_scene, order)
            imported.append({"transforms": source, "orbit": directory, "views": len(order)})
        except InputError as error:
            if len(sources) == 1:
                raise
            left_out.append(error.message if str(source) in error.message else f"{source}: {error.message}")
            progress.note(f"left out: {left_out[-1]}")
        progress.advance()
    if not imported:
        raise InputError(f"none of {len(sources)} orbits can be imported", hint=left_out[0])
    return {"imported": imported, "left_out": left_out}


def scene_orbit(scene: Scene, up: Up = "auto") -> tuple[CameraPath, np.ndarray, np.ndarray]:
    """The cameras of a scene as an orbit of radius 2, the matrix (4, 4) from scene to world, and the order of views.

    The order is kept if it is counter-clockwise seen from above, else reversed; the last view stays last and is the
    input view, whose field of view the orbit gets. Raises CameraError for cameras that do not form an orbit around one
    point, InputError if pictures are missing.
    """
    if scene.absent:
        raise InputError(
            scene.absent[0], hint=f"{len(scene.absent)} pictures do not exist; an orbit needs all"
        )
    if len(scene.names) < 3:
        raise CameraError(f"{scene.source} has {len(scene.names)} views, an orbit needs at least three")
    turn_up = scene.world_from_scene(up)
    poses = turn_up @ scene.camera_to_scene
    try:
        center, radius = _center(poses, scene.names)
        offsets = poses[:, :3, 3] - center
        azimuths = np.rad2deg(np.arctan2(offsets[:, 1], offsets[:, 0]))
        elevations = np.rad2deg(
            np.arcsin(np.clip(offsets[:, 2] / np.linalg.norm(offsets, axis=1), -1.0, 1.0))
        )
        order = _once_round(azimuths)
        fov_deg = float(2 * np.rad2deg(np.arctan(0.5 * scene.size[1] / scene.focal_px[-1, 0])))
        cameras = CameraPath(azimuths[order], elevations[order], fov_deg=fov_deg)
    except CameraError as error:
        raise CameraError(f"{scene.source}: {error.message}", error.hint) from None

    turn = -np.deg2rad(azimuths[-1])  # azimuths of an orbit are relative to the last view
    scale = cameras.radius / radius
    rotation = np.array(
        [[np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), np.cos(turn), 0.0], [0.0, 0.0, 1.0]]
    )
    world = np.eye(4)
    world[:3, :3] = scale * rotation
    world[:3, 3] = -scale * rotation @ center
    return cameras, world @ turn_up, order


def _sources(config: ImportConfig) -> list[tuple[Path, Path]]:
    """Every scene to import, with its output folder."""
    found: dict[str, Path] = {}
    for path in config.orbits:
        sources = find_scenes(path)
        if not path.exists():
            raise InputError(f"{path} does not exist")
        if not sources:
            raise InputError(f"{path} holds no cameras that can be read", hint=f"known: {KNOWN}")
        for source in sources:
            name = path.stem if path.is_file() else _name(path, source)
            if found.setdefault(name, source) != source:
                raise InputError(f"two orbits are called {name}: {found[name]} and {source}")
    if len(found) == 1:
        return [(next(iter(found.values())), config.output)]
    return [(source, config.output / name) for name, source in found.items()]


def _name(path: Path, source: Path) -> str:
    """The scene's folder within the one that was given, or that one's own name."""
    folder = source.parent if source.is_file() else source
    while folder != path and folder.name in ("0", "sparse", "colmap"):
        folder = folder.parent
    return path.absolute().name if folder == path else folder.relative_to(path).as_posix()


def _center(poses: np.ndarray, names: list[str]) -> tuple[np.ndarray, float]:
    """The point that all cameras look at, and their distance from it."""
    positions, forward = poses[:, :3, 3], -poses[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # projections onto the picture planes
    normal = across.sum(0)
    if np.linalg.cond(normal) > 1e6:
        raise CameraError("all cameras look in the same direction, not at one point")
    center = np.linalg.solve(normal, np.einsum("fij,fj->i", across, positions))
    offsets = positions - center
    radii = np.linalg.norm(offsets, axis=1)
    radius = float(radii.mean())
    check_ahead(poses, center, names)
    missed = np.linalg.norm(np.einsum("fij,fj->fi", across, offsets), axis=1)
    if missed.max() > TOLERANCE * radius:
        worst = int(missed.argmax())
        raise CameraError(
            f"the cameras do not look at one point: {names[worst]} misses it by {missed[worst] / radius:.2g}"
            " of the distance"
        )
    if np.abs(radii - radius).max() > TOLERANCE * radius:
        raise CameraError(f"the cameras are at distances {radii.min():.4g} to {radii.max():.4g}, not at one")
    tilted = np.abs(poses[:, 2, 0])
    if tilted.max() > TOLERANCE:
        worst = int(tilted.argmax())
        degrees = np.rad2deg(np.arcsin(min(tilted[worst], 1.0)))
        raise CameraError(
            f"the cameras are tilted sideways: the x axis of {names[worst]} is {degrees:.3g} degrees off the horizon",
            hint="is another axis of the scene up? --up y, or z",
        )
    if (poses[:, 2, 1] < -TOLERANCE).any():
        worst = int(poses[:, 2, 1].argmin())
        raise CameraError(
            f"the cameras are upside down: the y axis of {names[worst]} points down",
            hint="does the scene's up axis point down? turn it first",
        )
    return center, radius


def _once_round(azimuths: np.ndarray) -> np.ndarray:
    """The order of views that goes once round counter-clockwise and keeps the last one last."""
    forth = np.arange(len(azimuths))
    back = np.append(forth[-2::-1], forth[-1])
    for order in (forth, back):
        steps = np.diff(azimuths[order], append=azimuths[order[0]]) % 360.0
        if np.isclose(steps.sum(), 360.0):
            return order
    raise CameraError("the views do not go once round the object in the order of the file")


def _write(
    config: ImportConfig, directory: Path, scene: Scene, images, cameras, world_from_scene, order
) -> None:
    settings = {"verb": "data import", **config.settings(), "orbits": str(scene.source)}
    below = config.output if directory != config.output else None
    with OutputFolder(directory, settings, config.overwrite, below=below) as folder:
        if folder.done:
            return
        lenses = scene.focal_px[order], scene.center_px[order]
        write_orbit(directory, images, cameras, world_from_scene, lenses=lenses)
        labels = frame_labels(cameras.azimuths_deg, cameras.elevations_deg)
        write_png(directory / "contact.png", contact_sheet(images[..., :3], labels))
        names = [*(frame_file(index) for index in range(len(images))), CAMERAS_FILE, "contact.png"]
        folder.finish_stage("import", names)
        facts = {"fov_deg": cameras.fov_deg, "sv3d_fov_deg": SV3D_FOV_DEG}
        folder.write_run_json(**facts, undistorted=scene.undistorted)


def _frames(scene: Scene, order: np.ndarray) -> np.ndarray:
    """Frames uint8 `f h w 4` in the order of the orbit; they must be square."""
    height, width = scene.size
    if height != width:
        raise InputError(
            f"{scene.source}: its pictures have {width}x{height} pixels, training needs square ones",
            hint="sv3d reconstruct takes pictures of any shape",
        )
    return np.stack([_frame(scene.pictures[index], scene.source, scene.names[index]) for index in order])


def _frame(picture: Picture, source: Path, name: str) -> np.ndarray:
    if picture.alpha is None:
        raise InputError(
            f"{source}: the picture of {name} has no transparent pixel and no mask",
            hint="render with a transparent film, as RGBA, or name masks (mask_path; COLMAP: masks/NAME.png)",
        )
    return np.dstack([picture.rgb, picture.alpha])
