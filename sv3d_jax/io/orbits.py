"""Orbit folders: frames/000.png ... and cameras.json, written by every verb that makes views and read by the rest.

The alpha of a frame is in the picture that its "alpha_file" names, as grey, where the frame itself lies over white; or
else in the frame. So rendered frames can be shown and fed to a model as they are, and still say what is background.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sv3d_jax.cameras.orbit import CameraPath, CameraWarning, custom_orbit
from sv3d_jax.cameras.pose import MAX_DISTANCE, check_distance, finite_number, intrinsics, look_at
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.documents import read_json
from sv3d_jax.io.images import over_white, read_picture, write_png
from sv3d_jax.io.names import exists, outside_reason
from sv3d_jax.io.outputs import write_atomic

CAMERAS_FILE = "cameras.json"
ANGLE_TOLERANCE_DEG = 0.5  # between a matrix and the angles beside it
CONVENTION = (
    "camera_to_world: camera x right, y up, looking along -z; world right-handed, z up, object around the origin."
    " azimuth_deg is relative to input_frame, counter-clockwise seen from above; elevation_deg is absolute, up"
    " positive. Pixel centres at +0.5, row 0 on top."
)
NOT_WHITE = 8  # levels under white beyond which a pixel shows something
MAX_CONTRADICTION = (
    1e-3  # share of a frame's pixels that show something where its alpha says there is nothing
)


@dataclass(frozen=True)
class OrbitFrames:
    """Views of one object with their cameras."""

    images: np.ndarray  # (f, h, w, 3) float32 in [0, 1], over white
    alphas: np.ndarray | None  # (f, h, w) float32 in [0, 1], where the files have an alpha
    camera_to_world: np.ndarray  # (f, 4, 4) float64
    focal_px: np.ndarray  # (f, 2)
    center_px: np.ndarray  # (f, 2)
    azimuths_deg: np.ndarray | None  # (f,), where the file gives them for all frames; so the next two
    elevations_deg: np.ndarray | None
    radius: float | None  # where all frames share it
    input_frame: int
    fov_deg: float | None
    object_to_world: np.ndarray | None  # (4, 4), from the coordinates of the mesh file that was rendered
    files: list[str]


class Frame(NamedTuple):
    """One view as its files hold it."""

    rgb: np.ndarray  # (h, w, 3) uint8, over white
    alpha: np.ndarray | None  # (h, w) uint8


def cameras_document(
    cameras: CameraPath,
    files: list[str] | None = None,
    object_to_world: np.ndarray | None = None,
    alpha_files: list[str] | None = None,
    lenses: list[dict[str, float]] | None = None,
) -> dict[str, Any]:
    """The content of cameras.json; `alpha_files` are named where the frames themselves have no alpha.

    `lenses` are entries of the frames beside the others.
    """
    files = files or [frame_file(index) for index in range(len(cameras))]
    matrices = cameras.camera_to_world
    document: dict[str, Any] = {
        "convention": CONVENTION,
        "fov_deg": cameras.fov_deg,
        "input_frame": cameras.input_frame,
        "frames": [
            {
                "file": file,
                "azimuth_deg": float(cameras.azimuths_deg[index]),
                "elevation_deg": float(cameras.elevations_deg[index]),
                "radius": cameras.radius,
                "camera_to_world": matrices[index].tolist(),
                **(lenses[index] if lenses else {}),
            }
            for index, file in enumerate(files)
        ],
    }
    for frame, file in zip(document["frames"], alpha_files or [], strict=alpha_files is not None):
        frame["alpha_file"] = file
    if object_to_world is not None:
        document["object_to_world"] = np.asarray(object_to_world, np.float64).tolist()
    return document


def frame_file(index: int) -> str:
    return f"frames/{index:03d}.png"


def alpha_file(index: int) -> str:
    return f"alphas/{index:03d}.png"


def write_cameras(
    path: str | Path,
    cameras: CameraPath,
    files: list[str] | None = None,
    object_to_world: np.ndarray | None = None,
    alpha_files: list[str] | None = None,
    lenses: list[dict[str, float]] | None = None,
) -> None:
    """Write cameras.json in one piece."""
    document = cameras_document(cameras, files, object_to_world, alpha_files, lenses)
    write_atomic(path, (json.dumps(document, indent=1) + "\n").encode())


def write_orbit(
    directory: str | Path,
    images: np.ndarray,
    cameras: CameraPath,
    object_to_world: np.ndarray | None = None,
    alphas: np.ndarray | None = None,
    lenses: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[str]:
    """Write uint8 frames (f, h, w, 3 or 4) and, last, cameras.json into a folder that is made if need be.

    `alphas` (f, h, w), uint8, go beside frames (f, h, w, 3) that lie over white. `lenses` are focal lengths and
    principal points in pixels (f, 2), written for each frame if they are not those of the path's field of view. Returns
    the files, by name.
    """
    if len(images) != len(cameras):
        raise InputError(f"got {len(images)} images for {len(cameras)} cameras")
    if alphas is not None and (images.shape[-1] != 3 or alphas.shape != images.shape[:3]):
        raise InputError(
            f"alphas of shape {alphas.shape} do not belong beside frames of shape {images.shape}",
            hint="frames (f, h, w, 3) over white have alphas (f, h, w); frames (f, h, w, 4) have their own",
        )
    pictures = {frame_file(index): image for index, image in enumerate(images)}
    masks = {alpha_file(index): alpha for index, alpha in enumerate(() if alphas is None else alphas)}
    for name, picture in (pictures | masks).items():
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, picture)
    write_cameras(
        Path(directory) / CAMERAS_FILE,
        cameras,
        object_to_world=object_to_world,
        alpha_files=list(masks) or None,
        lenses=None if lenses is None else _lens_entries(*lenses, cameras.fov_deg, images.shape[1:3]),
    )
    return [*pictures, *masks, CAMERAS_FILE]


def _lens_entries(
    focal_px: np.ndarray, center_px: np.ndarray, fov_deg: float, size: tuple[int, int]
) -> list[dict[str, float]] | None:
    """What a cameras.json says of each frame's lens, None where its field of view says it."""
    plain = intrinsics(fov_deg, size)
    if np.allclose(focal_px, plain[0], rtol=1e-9) and np.allclose(center_px, plain[1], rtol=1e-9):
        return None
    names = "fl_x", "fl_y", "cx", "cy"
    values = np.concatenate([focal_px, center_px], axis=1).tolist()
    return [dict(zip(names, row, strict=True)) | {"width": size[1], "height": size[0]} for row in values]


def read_orbit(directory: str | Path) -> OrbitFrames:
    """Read any folder of frames with a cameras.json: any number of views, any rigid poses, own intrinsics.

    A frame's pose is its camera_to_world, or else follows from azimuth_deg, elevation_deg and radius; a CameraWarning
    says where both are given and differ. Frames with an alpha are composited over white, unless the alpha is a file of
    its own: then they lie over white already, and every frame must have one. All frames must have one size. Raises
    InputError and CameraError, which name the file.
    """
    directory = Path(directory)
    document = _read_document(directory)
    frames = document["frames"]
    files = [_frame_path(directory, frame, index) for index, frame in enumerate(frames)]
    alpha_files = [_alpha_path(directory, frame, index) for index, frame in enumerate(frames)]
    for kind, names in {"frames": files, "alphas": [file for file in alpha_files if file]}.items():
        absent = [file for file in names if not exists(directory / file)]
        if absent:
            raise InputError(
                f"{directory / absent[0]} does not exist",
                hint=f"{CAMERAS_FILE} names {len(absent)} of {len(names)} {kind} that are not there",
            )
    if any(alpha_files) and not all(alpha_files):
        index = alpha_files.index(None)
        raise InputError(
            f"{directory / CAMERAS_FILE}: frames[{index}] has no alpha_file, others have one",
            hint="every frame needs one, or none",
        )
    images, alphas = _stacked(directory, frames)
    height, width = images.shape[1:3]
    with _naming(directory / CAMERAS_FILE):
        fov_deg = _number(document, "fov_deg", "cameras")
        poses = camera_poses(document)
        lenses = [_lens(frame, index, fov_deg, height, width) for index, frame in enumerate(frames)]
        radii = frame_column(frames, "radius")
        read = OrbitFrames(
            images=images,
            alphas=alphas,
            camera_to_world=poses,
            focal_px=np.stack([focal for focal, _ in lenses]),
            center_px=np.stack([center for _, center in lenses]),
            azimuths_deg=frame_column(frames, "azimuth_deg"),
            elevations_deg=frame_column(frames, "elevation_deg"),
            radius=float(radii[0]) if radii is not None and np.allclose(radii, radii[0]) else None,
            input_frame=_input_frame(document),
            fov_deg=fov_deg,
            object_to_world=_object_to_world(document),
            files=files,
        )
        if contradiction := angle_contradiction(document):
            _warn(f"{directory / CAMERAS_FILE}: {contradiction}; the matrix is taken")
    return read


def read_frame(directory: Path, frame: dict[str, Any], index: int) -> Frame:
    """The pixels of one of the frames of a cameras.json, and the alpha that stands beside or in it.

    Raises InputError, which names the file, where one is absent or damaged, lies outside the folder or does not belong
    to the other.
    """
    path = directory / _frame_path(directory, frame, index)
    name = _alpha_path(directory, frame, index)
    picture = read_picture(path, min_side=1)
    if name is None:
        alpha = picture.alpha
        return Frame(picture.rgb if alpha is None else over_white(picture.rgb, alpha), alpha)
    if picture.alpha is not None:
        raise InputError(
            f"{path} has an alpha of its own, and {name} beside it",
            hint=f"leave alpha_file out of frames[{index}] of {CAMERAS_FILE}, or give the frame over white",
        )
    alpha = _read_alpha(directory / name)
    if alpha.shape != picture.rgb.shape[:2]:
        sizes = [f"{width}x{height}" for height, width in (alpha.shape, picture.rgb.shape[:2])]
        raise InputError(f"{directory / name} has {sizes[0]} pixels, {path.name} has {sizes[1]}")
    if ((alpha == 0) & (picture.rgb.min(axis=-1) < 255 - NOT_WHITE)).mean() > MAX_CONTRADICTION:
        raise InputError(
            f"{directory / name} says that nothing is where {path.name} is not white",
            hint=f"beside an alpha_file, frames lie over white; is it the alpha of frames[{index}]?",
        )
    return Frame(picture.rgb, alpha)


def read_camera_path(path: str | Path) -> CameraPath:
    """The views of a cameras.json (the file or its folder) as a path to sample; no frame need exist.

    Only angles count: each camera is taken to look at the origin. A frame without angles has those of its position.
    """
    path = Path(path)
    document = _read_document(path) if path.is_dir() else read_cameras(path)
    with _naming(path):
        if _input_frame(document) != len(document["frames"]) - 1:
            raise CameraError("the input view must be the last frame")
        angles = []
        for index, frame in enumerate(document["frames"]):
            given = [_number(frame, name, f"frames[{index}]") for name in ("azimuth_deg", "elevation_deg")]
            if None in given or "radius" in frame:
                pose = _pose(
                    frame, index
                )  # a distance that no camera has is refused, although it does not count
            angles.append(_stands_at(pose) if None in given else given)
        if contradiction := angle_contradiction(document):
            _warn(f"{path}: {contradiction}; the angle is taken")
        azimuths, elevations = np.array(angles).T
        return custom_orbit(azimuths, elevations, len(angles))


def angle_contradiction(document: dict[str, Any]) -> str | None:
    """What the angles of a cameras.json say else than the matrices beside them, of the first frame that does so.

    Azimuths may count from any direction, as long as all frames have the same one.
    """
    frames = document["frames"]
    placed = [index for index, frame in enumerate(frames) if "camera_to_world" in frame]
    if not placed:
        return None
    stands = np.array([_stands_at(_pose(frames[index], index)) for index in placed])
    named = np.full((len(placed), 2), np.nan)
    for row, index in enumerate(placed):
        for column, name in enumerate(("azimuth_deg", "elevation_deg")):
            if (value := _number(frames[index], name, f"frames[{index}]")) is not None:
                named[row, column] = value
    offsets = _turn_between(stands[:, 0], named[:, 0])
    level = np.cos(np.deg2rad(stands[:, 1]))  # near the poles azimuths mean little
    known = ~np.isnan(offsets)
    if known.any():
        begins = np.array([0.0, *offsets[known]])
        apart = np.abs(_turn_between(offsets[known][None], begins[:, None])).sum(axis=1)
        stands[:, 0] = (stands[:, 0] - begins[int(np.argmin(np.round(apart, 6)))]) % 360.0
    errors = np.stack([level * _turn_between(stands[:, 0], named[:, 0]), stands[:, 1] - named[:, 1]], axis=1)
    wrong = np.argwhere(np.abs(errors) > ANGLE_TOLERANCE_DEG)
    if not len(wrong):
        return None
    row, column = wrong[0]
    others = len(set(wrong[:, 0])) - 1
    return (
        f"frames[{placed[row]}].{('azimuth_deg', 'elevation_deg')[column]} is {named[row, column]:g}, but its"
        f" camera_to_world stands at {stands[row, column]:.4g} degrees"
        + (f", and {others} more frames contradict themselves" if others else "")
    )


def read_cameras(path: Path) -> dict[str, Any]:
    """The content of a cameras.json that has at least one frame; nothing else of it is checked."""
    document = read_json(path, absent_hint="an orbit folder holds frames and a cameras.json")
    frames = document.get("frames") if isinstance(document, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f'{path} needs a list "frames" of at least one view')
    return document


def camera_poses(document: dict[str, Any]) -> np.ndarray:
    """World-from-camera matrices (f, 4, 4) of the frames of a cameras.json."""
    return np.stack([_pose(frame, index) for index, frame in enumerate(document["frames"])])


def frame_column(frames: list[dict[str, Any]], name: str) -> np.ndarray | None:
    """A number of every frame, None where a frame lacks it."""
    values = [_number(frame, name, f"frames[{index}]") for index, frame in enumerate(frames)]
    return None if None in values else np.array(values, np.float64)


def stack_frames(views: list[Frame]) -> tuple[np.ndarray, np.ndarray | None]:
    """Images and alphas of frames of one size; a frame without alpha among others with one is opaque."""
    images = np.stack([view.rgb for view in views]).astype(np.float32) / 255.0
    if all(view.alpha is None for view in views):
        return images, None
    opaque = np.full(images.shape[1:3], 255, np.uint8)
    alphas = np.stack([opaque if view.alpha is None else view.alpha for view in views])
    return images, alphas.astype(np.float32) / 255.0


def _stands_at(pose: np.ndarray) -> tuple[float, float]:
    """Azimuth and elevation in degrees of a camera's position, as seen from the origin."""
    x, y, z = pose[:3, 3]
    return float(np.rad2deg(np.arctan2(y, x)) % 360.0), float(np.rad2deg(np.arctan2(z, np.hypot(x, y))))


def _turn_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b in degrees, between -180 and 180."""
    return (a - b + 180.0) % 360.0 - 180.0


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Errors about cameras get the name of the file before them."""
    try:
        yield
    except CameraError as error:
        raise CameraError(f"{file}: {error.message}", error.hint) from None


def _warn(message: str) -> None:
    warnings.warn(message, CameraWarning, stacklevel=3)


def _read_document(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder", hint="give a folder of frames with a cameras.json")
    return read_cameras(directory / CAMERAS_FILE)


def _frame_path(directory: Path, frame: dict[str, Any], index: int) -> str:
    file = frame.get("file")
    if not isinstance(file, str) or not file:
        raise InputError(f'{directory / CAMERAS_FILE}: frames[{index}] has no "file"')
    _check_inside(directory, file, f"frames[{index}]")
    return file


def _alpha_path(directory: Path, frame: dict[str, Any], index: int) -> str | None:
    file = frame.get("alpha_file")
    if file is None:
        return None
    if not isinstance(file, str) or not file:
        raise InputError(
            f"{directory / CAMERAS_FILE}: frames[{index}].alpha_file must be a file's name, got {file!r}"
        )
    _check_inside(directory, file, f"frames[{index}].alpha_file")
    return file


def _check_inside(directory: Path, file: str, where: str) -> None:
    if outside_reason(file):
        raise InputError(f"{directory / CAMERAS_FILE}: {where} lies outside the folder: {file}")


def _read_alpha(path: Path) -> np.ndarray:
    """An alpha (h, w) that is a picture of its own."""
    picture = read_picture(path, min_side=1)
    if picture.alpha is not None or (picture.rgb != picture.rgb[..., :1]).any():
        raise InputError(
            f"{path} is not an alpha: it has colours or is transparent itself",
            hint="an alpha_file is a grey picture: 0 where there is background, 255 where there is object",
        )
    return picture.rgb[..., 0]


def _stacked(directory: Path, frames: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray | None]:
    views = [read_frame(directory, frame, index) for index, frame in enumerate(frames)]
    for frame, view in zip(frames, views, strict=True):
        if view.rgb.shape != views[0].rgb.shape:
            sizes = [f"{v.rgb.shape[1]}x{v.rgb.shape[0]}" for v in (view, views[0])]
            raise InputError(
                f"{directory / frame['file']} has {sizes[0]} pixels, {frames[0]['file']} has {sizes[1]}"
            )
    return stack_frames(views)


def _pose(frame: dict[str, Any], index: int) -> np.ndarray:
    where = f"frames[{index}]"
    azimuth, elevation, radius = (
        _number(frame, name, where) for name in ("azimuth_deg", "elevation_deg", "radius")
    )
    if elevation is not None and abs(elevation) > 90:
        raise CameraError(f"{where}.elevation_deg is {elevation:g}, outside [-90, 90]")
    if radius is not None and not 0 < radius <= MAX_DISTANCE:
        raise CameraError(f"{where}.radius must be positive and at most {MAX_DISTANCE:g}, got {radius:g}")
    if "camera_to_world" not in frame:
        if azimuth is None or elevation is None or radius is None:
            raise CameraError(f"{where} needs camera_to_world, or azimuth_deg, elevation_deg and radius")
        return look_at(azimuth, elevation, radius)
    matrix = _matrix(frame["camera_to_world"], f"{where}.camera_to_world")
    check_distance(matrix[:3, 3], f"{where}.camera_to_world")
    rotation = matrix[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise CameraError(
            f"{where}.camera_to_world is not a rotation and a position",
            hint="its first three columns are the camera's right, up and backward directions in the world",
        )
    return matrix


def _lens(
    frame: dict[str, Any], index: int, fov_deg: float | None, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Focal length and principal point in pixels of the frame as stored, whatever size they were given for."""
    where = f"frames[{index}]"
    given = {name: _number(frame, name, where) for name in ("fl_x", "fl_y", "cx", "cy", "width", "height")}
    declared = np.array([given["width"] or width, given["height"] or height], np.float64)
    scale = np.array([width, height]) / declared
    center = np.array([_or(given["cx"], declared[0] / 2), _or(given["cy"], declared[1] / 2)])
    if given["fl_x"] is not None:
        focal = np.array([given["fl_x"], _or(given["fl_y"], given["fl_x"])])
    else:
        fov_deg = _or(_number(frame, "fov_deg", where), fov_deg)
        if fov_deg is None:
            raise CameraError(f"{where} has no intrinsics", hint="give fov_deg, or fl_x with cx and cy")
        if not 0 < fov_deg < 180:
            raise CameraError(f"{where}: fov_deg must lie between 0 and 180, got {fov_deg:g}")
        height, width = int(declared[1]), int(declared[0])
        focal = intrinsics(fov_deg, (height, width))[0]
    if (focal <= 0).any() or (declared <= 0).any():
        raise CameraError(f"{where}: focal lengths and sizes must be positive")
    return focal * scale, center * scale


def _input_frame(document: dict[str, Any]) -> int:
    frame = document.get("input_frame", len(document["frames"]) - 1)
    if not isinstance(frame, int) or not 0 <= frame < len(document["frames"]):
        raise CameraError(f"input_frame must be a frame's index, got {frame!r}")
    return frame


def _object_to_world(document: dict[str, Any]) -> np.ndarray | None:
    matrix = document.get("object_to_world")
    return None if matrix is None else _matrix(matrix, "object_to_world")


def _matrix(value: Any, where: str) -> np.ndarray:
    try:
        matrix = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise CameraError(f"{where} is not a matrix of numbers") from None
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise CameraError(f"{where} must be 4x4 and finite, got shape {matrix.shape}")
    return matrix


def _number(record: dict[str, Any], name: str, where: str) -> float | None:
    return None if record.get(name) is None else finite_number(record[name], f"{where}.{name}")


def _or(value: float | None, default: Any) -> Any:
    return default if value is None else value
