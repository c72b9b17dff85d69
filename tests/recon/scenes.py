"""Orbits whose shape is known in closed form."""

import numpy as np

from sv3d_jax.cameras.orbit import CameraPath, sine_orbit
from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.io.orbits import OrbitFrames

SAMPLES = 3  # squared, per pixel


def ball_orbit(
    size: int = 32,
    num_frames: int = 8,
    radius: float = 0.4,
    center=(0.0, 0.0, 0.0),
    scale: float = 1.0,
    with_alpha: bool = True,
    cameras: CameraPath | None = None,
) -> OrbitFrames:
    """A ball, coloured by its normals, in a world that is scaled and then moved by `center`.

    From a sine orbit of `num_frames`, or from the cameras given.
    """
    cameras = cameras or sine_orbit(num_frames, 10.0, 30.0)
    num_frames = len(cameras)
    images, alphas = ball_pictures(cameras, size, radius)
    poses = cameras.camera_to_world.copy()
    poses[:, :3, 3] = poses[:, :3, 3] * scale + center
    focal, middle = intrinsics(cameras.fov_deg, size)
    return OrbitFrames(
        images=images,
        alphas=alphas if with_alpha else None,
        camera_to_world=poses,
        focal_px=np.tile(focal, (num_frames, 1)),
        center_px=np.tile(middle, (num_frames, 1)),
        azimuths_deg=cameras.azimuths_deg,
        elevations_deg=cameras.elevations_deg,
        radius=cameras.radius * scale,
        input_frame=num_frames - 1,
        fov_deg=cameras.fov_deg,
        object_to_world=None,
        files=[f"frames/{index:03}.png" for index in range(num_frames)],
    )


def ball_pictures(cameras: CameraPath, size: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Frames (f h w 3) over white and their coverage (f h w)."""
    focal, middle = intrinsics(cameras.fov_deg, size * SAMPLES)
    pixel = np.arange(size * SAMPLES) + 0.5
    x, y = np.meshgrid((pixel - middle[0]) / focal[0], (middle[1] - pixel) / focal[1])
    in_camera = np.stack([x, y, -np.ones_like(x)], axis=-1)
    in_camera /= np.linalg.norm(in_camera, axis=-1, keepdims=True)
    directions = np.einsum("fij,hwj->fhwi", cameras.camera_to_world[:, :3, :3], in_camera)
    origins = cameras.camera_to_world[:, None, None, :3, 3]
    along = -(origins * directions).sum(-1)
    inside = along**2 - (origins**2).sum(-1) + radius**2
    points = origins + (along - np.sqrt(np.maximum(inside, 0)))[..., None] * directions
    hit = inside > 0
    colors = np.where(hit[..., None], 0.5 + 0.4 * points / radius, 1.0)
    blocks = (len(cameras), size, SAMPLES, size, SAMPLES)
    images = colors.reshape(*blocks, 3).mean((2, 4)).astype(np.float32)
    return images, hit.reshape(blocks).mean((2, 4)).astype(np.float32)
