"""The file cameras.json: the cameras of an orbit's frames, written and read."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.cameras.orbit import CameraPath, CameraWarning, custom_orbit
from sv3d_jax.cameras.pose import (
    MAX_DISTANCE,
    check_distance,
    check_last_row,
    check_lens,
    check_radius,
    finite_number,
    intrinsics,
    look_at,
    looked_at,
    number_matrix,
)
from sv3d_jax.errors import CameraError, InputError, SV3DError
from sv3d_jax.io.documents import read_frames
from sv3d_jax.io.outputs import write_atomic

CAMERAS_FILE = "cameras.json"
NOMINAL_SIZE = (576, 576)  # of pictures that do not exist yet
ANGLE_TOLERANCE_DEG = 0.5  # between the angles of a frame and those of its camera_to_world
RADIUS_TOLERANCE = 0.01  # relative, between the radius of a frame and the distance of its camera_to_world
CONVENTION = (
    "camera_to_world: camera x right, y up, looking along -z; world right-handed, z up, object around the origin."
    " azimuth_deg is relative to input_frame, counter-clockwise seen from above; elevation_deg is absolute, up"
    " positive. Pixel centres at +0.5, row 0 on top."
)


def cameras_document(
    cameras: CameraPath,
    files: list[str] | None = None,
    object_to_world: np.ndarray | None = None,
    alpha_files: list[str] | None = None,
    lenses: list[dict[str, float]] | None = None,
) -> dict[str, Any]:
    """The content of a cameras.json.

    `alpha_files` names the pictures with the frames' alphas, if the frames themselves have none. `lenses` are further
    entries of each frame: focal lengths and principal point.
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
    """The name of a frame's picture, relative to the orbit folder."""
    return f"frames/{index:03d}.png"


def alpha_file(index: int) -> str:
    """The name of the picture that holds a frame's alpha, relative to the orbit folder."""
    return f"alphas/{index:03d}.png"


def write_cameras(
    path: str | Path,
    cameras: CameraPath,
    files: list[str] | None = None,
    object_to_world: np.ndarray | None = None,
    alpha_files: list[str] | None = None,
    lenses: list[dict[str, float]] | None = None,
) -> None:
    """Write a cameras.json atomically; arguments as for `cameras_document`.

    Raises SV3DError, and writes nothing, if any number is not finite.
    """
    document = cameras_document(cameras, files, object_to_world, alpha_files, lenses)
    try:
        text = json.dumps(document, indent=1, allow_nan=False)
    except ValueError as error:
        raise SV3DError(f"{path} is not written: it would hold numbers that are not finite") from error
    write_atomic(path, f"{text}\n")


@dataclass(frozen=True, kw_only=True)
class FrameCameras:
    """The cameras of all frames of an orbit."""

    camera_to_world: np.ndarray  # (f, 4, 4) float64
    focal_px: np.ndarray  # (f, 2), in pixels of the stored pictures
    center_px: np.ndarray  # (f, 2)
    azimuths_deg: np.ndarray | None  # (f,), if the file gives them for all frames
    elevations_deg: np.ndarray | None  # (f,), if the file gives them for all frames
    radius: float | None  # if it is the same for all frames
    input_frame: int
    fov_deg: float | None
    object_to_world: np.ndarray | None  # (4, 4), from the coordinates of the mesh file that was rendered


def frame_cameras(document: dict[str, Any], file: Path, height: int, width: int) -> FrameCameras:
    """The cameras in the content of a cameras.json; `height` and `width` are those of the stored pictures.

    `file` is the path of the cameras.json, for messages. Raises CameraError for invalid cameras. Where the angles
    or the radius of a frame contradict its matrix, a CameraWarning says so and the matrix is used.
    """
    frames = document["frames"]
    with _name_in_errors(file):
        poses = camera_poses(document)
        looked_at(poses, [f"frames[{index}]" for index in range(len(frames))])
        focal_px, center_px = camera_lenses(document, height, width)
        radii = frame_column(frames, "radius")
        if radii is not None:  # the matrices decide where they contradict it
            distances = np.linalg.norm(poses[:, :3, 3], axis=1)
            radii = np.where(np.isclose(radii, distances, rtol=RADIUS_TOLERANCE, atol=0.0), radii, distances)
        read = FrameCameras(
            camera_to_world=poses,
            focal_px=focal_px,
            center_px=center_px,
            azimuths_deg=frame_column(frames, "azimuth_deg"),
            elevations_deg=frame_column(frames, "elevation_deg"),
            radius=float(radii[0]) if radii is not None and np.allclose(radii, radii[0]) else None,
            input_frame=input_frame(document),
            fov_deg=_number(document, "fov_deg", "cameras"),
            object_to_world=object_to_world(document),
        )
        if contradiction := placement_contradiction(document):
            warnings.warn(f"{file}: {contradiction}; the matrix is used", CameraWarning, stacklevel=3)
    return read


def read_camera_path(path: str | Path) -> CameraPath:
    """The views of a cameras.json (the file or its folder) as a camera path to sample; the pictures need not exist.

    Only directions are used: each camera is taken to look at the origin from SV3D's radius. A frame without angles has
    those of its camera_to_world.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CAMERAS_FILE
    document = read_cameras(path)
    with _name_in_errors(path):
        given, count = input_frame(document), len(document["frames"])
        if given not in (0, count - 1):
            raise CameraError(
                f"the input view must be the last or the first of the frames, got frame {given}"
            )
        angles = _checked_angles(document)
        if contradiction := placement_contradiction(document):
            warnings.warn(f"{path}: {contradiction}; its angles are used", CameraWarning, stacklevel=2)
        azimuths, elevations = np.array(angles).T
        return custom_orbit(azimuths, elevations, count, "last" if given == count - 1 else "first")


def _checked_angles(document: dict[str, Any]) -> list[tuple[float, float]]:
    """Azimuth and elevation of each frame.

    What else a frame gives is not used, but must be that of a camera: a radius, a matrix, focal lengths. Raises
    CameraError.
    """
    fov_deg = _number(document, "fov_deg", "cameras")
    angles, poses = [], {}
    for index, frame in enumerate(document["frames"]):
        pair = [_number(frame, name, f"frames[{index}]") for name in ("azimuth_deg", "elevation_deg")]
        if None in pair or "radius" in frame or _has_matrix(frame):
            poses[f"frames[{index}]"] = pose = _pose(frame, index)
            pair = _stands_at(pose) if None in pair else pair
        angles.append(pair)
        if fov_deg is not None or frame.get("fov_deg") is not None or frame.get("fl_x") is not None:
            _lens(frame, index, fov_deg, *NOMINAL_SIZE)
    if poses:
        looked_at(np.stack(list(poses.values())), list(poses))
    return angles


def placement_contradiction(document: dict[str, Any]) -> str | None:
    """The first contradiction between a frame's angles or radius and its camera_to_world, as a message; else None.

    Azimuths may be measured from any direction, as long as it is the same for all frames.
    """
    frames = document["frames"]
    placed = [index for index, frame in enumerate(frames) if _has_matrix(frame)]
    if not placed:
        return None
    poses = [_pose(frames[index], index) for index in placed]
    stands = np.array([(*_stands_at(pose), np.linalg.norm(pose[:3, 3])) for pose in poses])
    names = ("azimuth_deg", "elevation_deg", "radius")
    named = np.full((len(placed), 3), np.nan)
    for row, index in enumerate(placed):
        for column, name in enumerate(names):
            if (value := _number(frames[index], name, f"frames[{index}]")) is not None:
                named[row, column] = value
    offsets = _turn_between(stands[:, 0], named[:, 0])
    level = np.cos(np.deg2rad(stands[:, 1]))  # near the poles azimuths are hardly determined
    known = ~np.isnan(offsets)
    if known.any():
        begins = np.array([0.0, *offsets[known]])
        apart = np.abs(_turn_between(offsets[known][None], begins[:, None])).sum(axis=1)
        stands[:, 0] = (stands[:, 0] - begins[int(np.argmin(np.round(apart, 6)))]) % 360.0
    errors = named - stands
    errors[:, 0] = level * _turn_between(named[:, 0], stands[:, 0])
    limits = np.full_like(errors, ANGLE_TOLERANCE_DEG)
    limits[:, 2] = RADIUS_TOLERANCE * stands[:, 2]
    wrong = np.argwhere(np.abs(errors) > limits)
    if not len(wrong):
        return None
    row, column = wrong[0]
    others = len(set(wrong[:, 0])) - 1
    return (
        f"frames[{placed[row]}].{names[column]} is {named[row, column]:g}, but its camera_to_world stands at"
        f" {stands[row, column]:.4g}{'' if names[column] == 'radius' else ' degrees'}"
        + (f", and {others} more frames contradict themselves" if others else "")
    )


def read_cameras(path: Path) -> dict[str, Any]:
    """The content of a cameras.json; checked only for a list of at least one frame. Raises InputError."""
    return read_frames(path, absent_hint="an orbit folder holds frames and a cameras.json")


def read_folder_cameras(directory: Path) -> dict[str, Any]:
    """The content of the cameras.json in a folder. Raises InputError where there is none."""
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder", hint="give a folder of frames with a cameras.json")
    return read_cameras(directory / CAMERAS_FILE)


def camera_poses(document: dict[str, Any]) -> np.ndarray:
    """World-from-camera matrices (f, 4, 4) of the frames of a cameras.json.

    A frame without camera_to_world has the pose that its angles and radius give. Raises CameraError.
    """
    return np.stack([_pose(frame, index) for index, frame in enumerate(document["frames"])])


def camera_lenses(document: dict[str, Any], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Focal lengths and principal points (f, 2) of the frames of a cameras.json, in pixels of the stored pictures.

    Raises CameraError for impossible ones.
    """
    fov_deg = _number(document, "fov_deg", "cameras")
    lenses = [_lens(frame, index, fov_deg, height, width) for index, frame in enumerate(document["frames"])]
    return np.stack([focal for focal, _ in lenses]), np.stack([center for _, center in lenses])


def frame_column(frames: list[dict[str, Any]], name: str) -> np.ndarray | None:
    """One number of every frame (f,); None if any frame lacks it."""
    values = [_number(frame, name, f"frames[{index}]") for index, frame in enumerate(frames)]
    return None if None in values else np.array(values, np.float64)


def _stands_at(pose: np.ndarray) -> tuple[float, float]:
    """Azimuth and elevation, in degrees, of a camera's position around the origin."""
    x, y, z = pose[:3, 3]
    return float(np.rad2deg(np.arctan2(y, x)) % 360.0), float(np.rad2deg(np.arctan2(z, np.hypot(x, y))))


def _turn_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b in degrees, between -180 and 180."""
    return (a - b + 180.0) % 360.0 - 180.0


@contextlib.contextmanager
def _name_in_errors(file: Path) -> Iterator[None]:
    """A context in which the messages of CameraErrors begin with the name of the file."""
    try:
        yield
    except CameraError as error:
        raise CameraError(f"{file}: {error.message}", error.hint) from error


def _pose(frame: dict[str, Any], index: int) -> np.ndarray:
    where = f"frames[{index}]"
    azimuth, elevation, radius = (
        _number(frame, name, where) for name in ("azimuth_deg", "elevation_deg", "radius")
    )
    if elevation is not None and abs(elevation) > 90:
        raise CameraError(f"{where}.elevation_deg is {elevation:g}, outside [-90, 90]")
    if radius is not None:
        check_radius(radius, f"{where}.radius")
    if not _has_matrix(frame):
        if azimuth is None or elevation is None or radius is None:
            raise CameraError(f"{where} needs camera_to_world, or azimuth_deg, elevation_deg and radius")
        return look_at(azimuth, elevation, radius)
    matrix = _matrix(frame["camera_to_world"], f"{where}.camera_to_world")
    check_last_row(matrix, f"{where}.camera_to_world")
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
    """Focal lengths and principal point of a frame, in pixels of the stored picture.

    They are scaled where the file gives them for a picture of another size (`width`, `height`).
    """
    where = f"frames[{index}]"
    given = {name: _number(frame, name, where) for name in ("fl_x", "fl_y", "cx", "cy", "width", "height")}
    declared = np.array([_or(given["width"], width), _or(given["height"], height)], np.float64)
    if not ((declared >= 1) & (declared <= MAX_DISTANCE)).all():
        raise CameraError(
            f"{where}: width and height must be sizes in pixels, got {declared[0]:g}x{declared[1]:g}"
        )
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
    check_lens(focal, center, (declared[0], declared[1]), where)
    return focal * scale, center * scale


def input_frame(document: dict[str, Any]) -> int:
    """Index of the frame that is the input picture: as the file says, else the last one. Raises CameraError."""
    frame = document.get("input_frame", len(document["frames"]) - 1)
    if isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < len(document["frames"]):
        raise CameraError(f"input_frame must be a frame's index, got {frame!r}")
    return frame


def object_to_world(document: dict[str, Any]) -> np.ndarray | None:
    """The matrix (4, 4) from a rendered mesh file's coordinates to the world; None if the file gives none.

    Raises CameraError for one that flattens the object, or has numbers beyond `MAX_DISTANCE`.
    """
    if document.get("object_to_world") is None:
        return None
    matrix = _matrix(document["object_to_world"], "object_to_world")
    check_last_row(matrix, "object_to_world")
    stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)  # from the largest to the smallest
    if np.abs(matrix).max() > MAX_DISTANCE or stretch[2] < max(1.0, stretch[0]) / MAX_DISTANCE:
        raise CameraError(f"object_to_world has numbers beyond {MAX_DISTANCE:g}, or flattens the object")
    return matrix


def _matrix(value: Any, where: str) -> np.ndarray:
    matrix = number_matrix(value, where)
    if len(matrix) != 4:
        raise CameraError(
            f"{where} must be 4x4 numbers, got {len(matrix)} rows", hint="add the row 0, 0, 0, 1"
        )
    return matrix


def _has_matrix(frame: dict[str, Any]) -> bool:
    return frame.get("camera_to_world") is not None


def _number(record: dict[str, Any], name: str, where: str) -> float | None:
    """A finite number, None if it is absent or null. Raises CameraError for anything else."""
    return None if record.get(name) is None else finite_number(record[name], f"{where}.{name}")


def _or(value: float | None, default: Any) -> Any:
    return default if value is None else value
