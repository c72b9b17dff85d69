import numpy as np

from sv3d_jax.cameras.orbit import dynamic_orbit
from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.cameras.rays import camera_rays


def test_a_point_on_a_ray_projects_back_to_its_pixel_centre():
    poses = dynamic_orbit(5, seed=2).camera_to_world
    focal, center = np.array([40.0, 50.0]), np.array([11.0, 7.0])
    origins, directions = (np.asarray(x, np.float64) for x in camera_rays(poses, focal, center, 16, 24))
    points = np.concatenate([origins + 1.5 * directions, np.ones((5, 16, 24, 1))], axis=-1)
    x, y, z, _ = np.moveaxis(np.einsum("fij,fhwj->fhwi", np.linalg.inv(poses), points), -1, 0)
    rows, columns = np.mgrid[:16, :24] + 0.5
    # float32 directions, times a focal length of 50
    np.testing.assert_allclose(focal[0] * x / -z + center[0], np.broadcast_to(columns, x.shape), atol=1e-4)
    np.testing.assert_allclose(center[1] - focal[1] * y / -z, np.broadcast_to(rows, x.shape), atol=1e-4)


def test_directions_have_unit_length():
    _, directions = camera_rays(np.eye(4), *intrinsics(33.8, 8), 8, 8)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1.0, atol=1e-6)


def test_the_middle_of_the_picture_looks_at_the_origin():
    path = dynamic_orbit(21, seed=4)
    origins, directions = camera_rays(path.camera_to_world, *intrinsics(33.8, 1), 1, 1)
    np.testing.assert_allclose(origins + path.radius * directions, 0.0, atol=1e-6)
