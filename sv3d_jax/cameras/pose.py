"""Camera poses and projections: position, look-at matrices, intrinsics, the step to clip space.

World: right-handed, z up. Camera: x right, y up, looking along -z. Pixels: the centre of row i, column j is
(j + 0.5, i + 0.5), row 0 on top. Everything here is float64 NumPy; `rays.py` carries it to the accelerator.
"""

import numpy as np
from numpy.typing import ArrayLike

SV3D_FOV_DEG = 33.8
SV3D_RADIUS = 2.0


def look_at(azimuths_deg: ArrayLike, elevations_deg: ArrayLike, radius: ArrayLike | float) -> np.ndarray:
    """World-from-camera matrices (f, 4, 4) of cameras on a sphere around the origin, looking at it, z up.

    The position is radius (cos e cos a, cos e sin a, sin e): azimuth grows counter-clockwise seen from above.
    Written in closed form, so that the poles (e = +-90) have a well-defined right and up as well.
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


def camera_from_world(camera_to_world: np.ndarray) -> np.ndarray:
    """Inverse of rigid world-from-camera matrices (..., 4, 4)."""
    rotation = np.swapaxes(camera_to_world[..., :3, :3], -1, -2)
    inverse = np.zeros_like(camera_to_world)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, camera_to_world[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def intrinsics(fov_deg: float, size: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Focal lengths (fx, fy) and principal point (cx, cy) in pixels; `size` is one side or (height, width).

    The field of view spans the width, pixels are square and the principal point is the picture's centre.
    """
    height, width = (size, size) if isinstance(size, int) else size
    focal = 0.5 * width / np.tan(np.deg2rad(fov_deg) / 2)
    return np.array([focal, focal]), np.array([width / 2, height / 2])


def clip_from_camera(
    focal: ArrayLike, center: ArrayLike, height: int, width: int, near: float = 0.1, far: float = 10.0
) -> np.ndarray:
    """OpenGL projection (..., 4, 4): camera space to clip space, x right, y up, depth -1 at near and 1 at far.

    After division by w the pixel position is ((x + 1) width / 2, (1 - y) height / 2). `focal` and `center`
    are (..., 2).
    """
    focal, center = np.broadcast_arrays(np.asarray(focal, np.float64), np.asarray(center, np.float64))
    matrix = np.zeros((*focal.shape[:-1], 4, 4))
    matrix[..., 0, 0] = 2 * focal[..., 0] / width
    matrix[..., 1, 1] = 2 * focal[..., 1] / height
    matrix[..., 0, 2] = 1 - 2 * center[..., 0] / width
    matrix[..., 1, 2] = 2 * center[..., 1] / height - 1
    matrix[..., 2, 2] = (near + far) / (near - far)
    matrix[..., 2, 3] = 2 * near * far / (near - far)
    matrix[..., 3, 2] = -1.0
    return matrix
