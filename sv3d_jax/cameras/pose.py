"""Camera poses and projections: look-at matrices, intrinsics, OpenGL projection.

World: right-handed, z up. Camera: x right, y up, looking along -z. Pixels: the centre of row i, column j is
(j + 0.5, i + 0.5), row 0 on top. Everything here is float64 NumPy; `rays.py` has what runs on the device.
"""

import math
import reprlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sv3d_jax.errors import CameraError

SV3D_FOV_DEG = 33.8
SV3D_RADIUS = 2.0
MIN_DISTANCE, MAX_DISTANCE = 1e-9, 1e9  # of a camera from the origin or from what it shows
FOCAL_RANGE = (1e-3, 1e4)  # in widths of the picture: fields of view from 179.77 degrees to 20 seconds of arc
MAX_ASIDE = 100  # of the principal point from the picture's corner, in sizes of the picture
INSIDE = (
    0.05  # a camera nearer to what all look at than this share of the usual distance stands in the object
)
ROTATION_TOLERANCE = 0.01  # of a rotation's entries, which files may round


def look_at(azimuths_deg: ArrayLike, elevations_deg: ArrayLike, radius: ArrayLike | float) -> np.ndarray:
    """World-from-camera matrices (f, 4, 4) of cameras on a sphere around the origin, looking at it, z up.

    The position is radius (cos e cos a, cos e sin a, sin e): azimuth grows counter-clockwise seen from above.
    In closed form, so that right and up are well-defined at the poles (e = +-90) too.
    """
    azimuth, elevation = np.deg2rad(np.broadcast_arrays(azimuths_deg, elevations_deg)).astype(np.float64)
    cos_a, sin_a, cos_e, sin_e = np.cos(azimuth), np.sin(azimuth), np.cos(elevation), np.sin(elevation)
    right = np.stack([-sin_a, cos_a, np.zeros_like(cos_a)], axis=-1)
    up = np.stack([-sin_e * cos_a, -sin_e * sin_a, cos_e], axis=-1)
    backward = np.stack([cos_e * cos_a, cos_e * sin_a, sin_e], axis=-1)
    position = backward * np.asarray(radius, np.float64)[..., None]
    top = np.stack([right, up, backward, position], axis=-1)
    bottom = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*top.shape[:-2], 1, 4))
    return np.concatenate([top, bottom], axis=-2)


def rigid_pose(matrix: np.ndarray, where: str) -> np.ndarray:
    """A camera's world-from-camera matrix (4, 4) from 4x4 or 3x4 numbers of a file, its rotation made exact.

    Raises CameraError, which begins with `where`, for other shapes, non-finite numbers, positions beyond
    `MAX_DISTANCE`, transposed matrices, and rotations with scale, shear or reflection.
    """
    if matrix.shape not in ((4, 4), (3, 4)):
        raise CameraError(f"{where} must be 4x4 numbers, got the shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise CameraError(f"{where} has numbers that are not finite")
    check_last_row(matrix, where)
    check_distance(matrix[:3, 3], where)
    rotation = matrix[:3, :3]
    is_rotation = np.abs(rotation) < 1 + ROTATION_TOLERANCE
    if (
        not is_rotation.all()
        or np.abs(rotation @ rotation.T - np.eye(3)).max() > ROTATION_TOLERANCE
        or np.linalg.det(rotation) < 0
    ):
        raise CameraError(
            f"{where} must be a rotation and a position, without a scale or a mirror",
            hint="its first three columns are the camera's right, up and backward directions in the world",
        )
    left, _, right = np.linalg.svd(rotation)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = left @ right, matrix[:3, 3]
    return pose


def check_last_row(matrix: np.ndarray, where: str) -> None:
    """Raise CameraError, which begins with `where`, for a matrix (4, 4) that does not end with the row 0 0 0 1."""
    if len(matrix) == 4 and np.abs(matrix[3] - [0.0, 0.0, 0.0, 1.0]).max() > 1e-6:
        raise CameraError(
            f"{where} must end with the row 0 0 0 1, got {' '.join(f'{x:g}' for x in matrix[3])}",
            hint="the position belongs into the last column; is the matrix transposed?",
        )


def quaternion_rotations(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of unit quaternions (..., 4) in the order w, x, y, z."""
    w, x, y, z = np.moveaxis(quaternions, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def check_distance(position: np.ndarray, where: str) -> None:
    """Raise CameraError for a camera (3,) further from the origin than `MAX_DISTANCE`."""
    if (farthest := np.abs(position).max()) > MAX_DISTANCE:
        raise CameraError(
            f"{where} stands {farthest:g} from the origin, at most {MAX_DISTANCE:g} can be computed"
        )


def check_radius(radius: float, where: str) -> None:
    """Raise CameraError, which begins with `where`, for a distance from the object that cannot be computed with."""
    if not MIN_DISTANCE <= radius <= MAX_DISTANCE:  # also refuses NaN
        raise CameraError(f"{where} must lie between {MIN_DISTANCE:g} and {MAX_DISTANCE:g}, got {radius:g}")


def check_lens(focal_px: ArrayLike, center_px: ArrayLike, size: tuple[float, float], where: str) -> None:
    """Raise CameraError for focal lengths or a principal point (2,) that no camera of a picture of this size has.

    `size` is width and height. Focal lengths lie within `FOCAL_RANGE` and the principal point within `MAX_ASIDE`, both
    in sizes of the picture.
    """
    focal, center = np.asarray(focal_px, np.float64) / size, np.asarray(center_px, np.float64) / size
    picture, (low, high) = f"pixels for a picture of {size[0]:g}x{size[1]:g}", FOCAL_RANGE
    if not ((focal >= low) & (focal <= high)).all():  # also refuses NaN
        raise CameraError(
            f"{where}: focal lengths must be {low:g} to {high:g} times the picture, got {_pair(focal_px)} {picture}"
        )
    if not (np.abs(center) <= MAX_ASIDE).all():
        raise CameraError(
            f"{where}: the principal point must lie within {MAX_ASIDE} sizes of the picture, got {_pair(center_px)}"
            f" {picture}"
        )


def looked_at(camera_to_world: np.ndarray, names: list[str]) -> np.ndarray:
    """The point (3,) where the optical axes of cameras (f, 4, 4) meet, at least nearly.

    Raises CameraError, which names the camera, unless the point is in front of all of them, within `MAX_DISTANCE`, and
    none stands in it.
    """
    position, forward = camera_to_world[:, :3, 3], -camera_to_world[:, :3, 2]
    center = meeting_point(position, forward)
    check_ahead(camera_to_world, center, names)
    distances = np.linalg.norm(position - center, axis=1)
    check_radius(float(distances.max()), f"{names[int(distances.argmax())]}: the distance from what it shows")
    nearest, usual = int(distances.argmin()), float(np.median(distances))
    if distances[nearest] < INSIDE * usual:
        raise CameraError(
            f"{names[nearest]} stands in the object: {distances[nearest]:.3g} from the point where the cameras look,"
            f" others {usual:.3g}"
        )
    return center


def meeting_point(position: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The point nearest to all lines (least squares); for parallel lines the one nearest to the origin."""
    across = np.eye(3) - direction[:, :, None] * direction[:, None, :]
    return np.linalg.lstsq(across.sum(0), np.einsum("fij,fj->i", across, position), rcond=1e-9)[0]


def check_ahead(camera_to_world: np.ndarray, center: np.ndarray, names: list[str]) -> None:
    """Raise CameraError unless a point (3,) is in front of all cameras (f, 4, 4), which look along -z."""
    offsets = center - camera_to_world[:, :3, 3]
    distances = np.maximum(np.linalg.norm(offsets, axis=1), 1e-300)
    cosines = -np.einsum("fi,fi->f", offsets, camera_to_world[:, :3, 2]) / distances
    away = cosines <= 0
    if not away.any():
        return
    worst = int(np.argmin(np.round(cosines, 6)))
    degrees = np.rad2deg(np.arccos(max(cosines[worst], -1.0)))
    count = "all" if away.all() else f"{away.sum()} of {len(away)}"
    turned = camera_to_world[away, 2, 1].mean() < 0  # their y axes point down
    raise CameraError(
        f"{count} cameras look away from the point where their axes meet: {names[worst]} by {degrees:.0f} degrees",
        hint="cameras look along -z with y up;"
        + (
            " these seem to have OpenCV's axes,"
            if turned
            else " do these look outward, or along OpenCV's axes,"
        )
        + " z ahead and y down? Then negate the second and third column of each matrix",
    )


def _pair(values: ArrayLike) -> str:
    return ", ".join(f"{value:g}" for value in np.asarray(values, np.float64))


def finite_number(value: Any, where: str) -> float:
    """The value as a float. Raises CameraError, which begins with `where`, if it is not a finite number."""
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:  # of an integer
        pass
    shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."
    raise CameraError(f"{where} must be a finite number, got {shown}")


def number_matrix(value: Any, where: str) -> np.ndarray:
    """A file's list of 4 (or, without the last row, 3) rows of 4 numbers each, as float64.

    Raises CameraError, which begins with `where`, for other shapes and for anything that is not a finite number.
    """
    rows = value if isinstance(value, list) and len(value) in (3, 4) else [None]
    if not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise CameraError(f"{where} must be 4x4 numbers, got {reprlib.repr(value)}")
    return np.array(
        [[finite_number(x, f"{where}[{i}][{j}]") for j, x in enumerate(row)] for i, row in enumerate(rows)]
    )


def intrinsics(fov_deg: float, size: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Focal lengths (fx, fy) and principal point (cx, cy) in pixels; `size` is one side or (height, width).

    The field of view spans the width, pixels are square and the principal point is the picture's centre.
    """
    height, width = (size, size) if isinstance(size, int) else size
    focal = 0.5 * width / np.tan(np.deg2rad(fov_deg) / 2)
    return np.array([focal, focal]), np.array([width / 2, height / 2])
