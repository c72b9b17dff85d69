"""The verb `data import`: orbits that Blender rendered, in the layout of NeRF's synthetic scenes, to orbit folders."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.cameras.pose import SV3D_FOV_DEG
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.images import read_picture, write_png
from sv3d_jax.io.meshes import world_from_file
from sv3d_jax.io.orbits import CAMERAS_FILE, frame_file, write_orbit
from sv3d_jax.io.outputs import OutputFolder
from sv3d_jax.io.video import contact_sheet, frame_labels
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.train.data.config import ImportConfig

TRANSFORMS_FILE = "transforms.json"
TOLERANCE = 0.01  # of the radius, and of unit directions


def run_import(config: ImportConfig, progress: Progress | NullProgress) -> dict[str, Any]:
    """The verb `data import`. Of several orbits, those that cannot be used are left out and named."""
    sources = _sources(config)
    progress.stage("import", total=len(sources))
    imported, left_out = [], []
    for path, directory in sources:
        try:
            cameras, scene_to_world, files = read_blender_orbit(path, config.up)
            if not config.dry_run:
                _write(config, path, directory, cameras, scene_to_world, files)
            imported.append({"transforms": path, "orbit": directory, "views": len(files)})
        except InputError as error:
            if len(sources) == 1:
                raise
            left_out.append(f"{path}: {error.message}")
            progress.note(f"left out: {left_out[-1]}")
        progress.advance()
    return {"imported": imported, "left_out": left_out, "ok": bool(imported)}


def read_blender_orbit(path: Path, up: str = "z") -> tuple[CameraPath, np.ndarray, list[Path]]:
    """The cameras of a transforms.json as an orbit at radius 2, the way from its scene there, and the frames' files.

    Frames keep their order if it is counter-clockwise seen from above, otherwise it is turned round, the last one
    staying last: it is the input view. Raises CameraError for views that are no orbit about one point.
    """
    document = _read(path)
    poses = world_from_file(up) @ _matrices(document)
    fov_deg = _fov_deg(document)
    files = [_frame_path(path.parent, frame, index) for index, frame in enumerate(document["frames"])]

    center, radius = _center(poses)
    offsets = poses[:, :3, 3] - center
    azimuths = np.rad2deg(np.arctan2(offsets[:, 1], offsets[:, 0]))
    elevations = np.rad2deg(np.arcsin(np.clip(offsets[:, 2] / np.linalg.norm(offsets, axis=1), -1.0, 1.0)))
    order = _once_round(azimuths)
    cameras = CameraPath(azimuths[order], elevations[order], fov_deg=fov_deg)

    turn = -np.deg2rad(azimuths[-1])  # our azimuths are relative to the last view
    scale = cameras.radius / radius
    rotation = np.array(
        [[np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), np.cos(turn), 0.0], [0.0, 0.0, 1.0]]
    )
    world = np.eye(4)
    world[:3, :3] = scale * rotation
    world[:3, 3] = -scale * rotation @ center
    return cameras, world @ world_from_file(up), [files[index] for index in order]


def _sources(config: ImportConfig) -> list[tuple[Path, Path]]:
    """Each transforms file with the folder of its orbit."""
    found: dict[str, Path] = {}
    for path in config.orbits:
        files = {path.stem: path} if path.is_file() else {}
        if path.is_dir():
            places = sorted(path.rglob(TRANSFORMS_FILE))
            files = {
                (
                    path.absolute().name if file.parent == path else file.parent.relative_to(path).as_posix()
                ): file
                for file in places
            }
        if not files:
            raise InputError(f"{path} holds no {TRANSFORMS_FILE}")
        for name, file in files.items():
            if found.setdefault(name, file) != file:
                raise InputError(f"two orbits are called {name}: {found[name]} and {file}")
    if len(found) == 1:
        return [(next(iter(found.values())), config.output)]
    return [(file, config.output / name) for name, file in found.items()]


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    frames = document.get("frames") if isinstance(document, dict) else None
    if not isinstance(frames, list) or len(frames) < 3 or not all(isinstance(f, dict) for f in frames):
        raise InputError(f'{path} needs a list "frames" of at least three views')
    return document


def _matrices(document: dict[str, Any]) -> np.ndarray:
    """World-from-camera (f 4 4); Blender's cameras look along -z with y up, as ours do."""
    try:
        poses = np.array([frame["transform_matrix"] for frame in document["frames"]], np.float64)
    except (KeyError, TypeError, ValueError):
        raise CameraError("every frame needs a transform_matrix of 4x4 numbers") from None
    if poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise CameraError(f"transform_matrix must be 4x4 and finite, got shape {poses.shape[1:]}")
    rotations = poses[:, :3, :3]
    products = rotations @ rotations.swapaxes(1, 2)
    if np.abs(products - np.eye(3)).max() > TOLERANCE or (np.linalg.det(rotations) < 0).any():
        raise CameraError("transform_matrix must be a rotation and a position, without a scale")
    return poses


def _fov_deg(document: dict[str, Any]) -> float:
    """The angle across the width, from camera_angle_x in radians or focal length and width in pixels."""
    angle, focal, width = (document.get(name) for name in ("camera_angle_x", "fl_x", "w"))
    if isinstance(angle, (int, float)) and 0 < angle < math.pi:
        return math.degrees(angle)
    if isinstance(focal, (int, float)) and isinstance(width, (int, float)) and focal > 0 < width:
        return math.degrees(2 * math.atan(0.5 * width / focal))
    raise CameraError("camera_angle_x (radians), or fl_x and w (pixels), is needed")


def _frame_path(folder: Path, frame: dict[str, Any], index: int) -> Path:
    """The file of a frame; the layout leaves out its .png."""
    name = frame.get("file_path")
    if not isinstance(name, str):
        raise InputError(f"frames[{index}] has no file_path")
    for path in (folder / name, folder / f"{name}.png"):
        if path.is_file():
            return path
    raise InputError(f"frames[{index}]: neither {folder / name} nor {folder / name}.png exists")


def _center(poses: np.ndarray) -> tuple[np.ndarray, float]:
    """The point that all cameras look at, and their distance from it."""
    positions, forward = poses[:, :3, 3], -poses[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # projections onto the picture planes
    normal = across.sum(0)
    if np.linalg.cond(normal) > 1e6:
        raise CameraError("the cameras look in one direction, not at one point")
    center = np.linalg.solve(normal, np.einsum("fij,fj->i", across, positions))
    offsets = positions - center
    radii = np.linalg.norm(offsets, axis=1)
    radius = float(radii.mean())
    missed = np.linalg.norm(np.einsum("fij,fj->fi", across, offsets), axis=1)
    if missed.max() > TOLERANCE * radius or (np.einsum("fi,fi->f", offsets, forward) > 0).any():
        worst = int(missed.argmax())
        raise CameraError(
            f"the cameras do not look at one point: frames[{worst}] misses it by {missed[worst] / radius:.0%} "
            "of the distance"
        )
    if np.abs(radii - radius).max() > TOLERANCE * radius:
        raise CameraError(f"the cameras are at distances {radii.min():.4g} to {radii.max():.4g}, not at one")
    if np.abs(poses[:, 2, 0]).max() > TOLERANCE:
        raise CameraError(
            "the cameras are tilted sideways: their x axis is not horizontal",
            hint="is another axis of the scene up? --up y",
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


def _write(config: ImportConfig, path, directory: Path, cameras: CameraPath, scene_to_world, files) -> None:
    settings = {"verb": "data import", **config.settings(), "orbits": str(path)}
    with OutputFolder(directory, settings, config.overwrite, parents=directory != config.output) as folder:
        if folder.done:
            return
        images = _frames(files)
        write_orbit(directory, images, cameras, scene_to_world)
        labels = frame_labels(cameras.azimuths_deg, cameras.elevations_deg)
        write_png(directory / "contact.png", contact_sheet(images[..., :3], labels))
        names = [*(frame_file(index) for index in range(len(files))), CAMERAS_FILE, "contact.png"]
        folder.finish_stage("import", names)
        folder.write_run_json(fov_deg=cameras.fov_deg, sv3d_fov_deg=SV3D_FOV_DEG)


def _frames(files: list[Path]) -> np.ndarray:
    """Frames uint8 `f h w 4`, square and of one size."""
    frames = []
    for file in files:
        picture = read_picture(file, min_side=1)
        if picture.alpha is None:
            raise InputError(
                f"{file} has no transparent pixel", hint="render with a transparent film, as RGBA"
            )
        frames.append(np.dstack([picture.rgb, picture.alpha]))
        height, width = picture.alpha.shape
        if height != width or frames[-1].shape != frames[0].shape:
            side = len(frames[0])
            raise InputError(f"{file} has {width}x{height} pixels, {side}x{side} are expected")
    return np.stack(frames)
