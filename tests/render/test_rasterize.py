"""The rasterizer, compared with projected geometry and brute-force ray casting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.cameras.pose import intrinsics, look_at
from sv3d_jax.render import rasterize as module
from sv3d_jax.render.rasterize import project

rasterize = jax.jit(module.rasterize, static_argnums=(2, 3))
visible_faces = jax.jit(module.visible_faces, static_argnums=(2, 3), static_argnames=("tile", "cull_back"))

QUAD = jnp.array([[[2.0, 1.0, 1.0], [9.0, 1.0, 1.0], [9.0, 6.0, 1.0], [2.0, 6.0, 1.0]]])
FACES = jnp.array([[0, 1, 2], [0, 2, 3]])


def test_rectangle_covers_the_pixels_whose_centres_it_holds():
    face_id = rasterize(QUAD, FACES, 8, 12).face_id[0]
    assert np.array_equal(np.argwhere(face_id >= 0), [(r, c) for r in range(1, 6) for c in range(2, 9)])


@pytest.mark.parametrize("tile", [1, 3, 8])
def test_tile_size_changes_nothing(tile):
    screen = jax.random.uniform(jax.random.key(0), (2, 90, 3)) * jnp.array([40.0, 30.0, 1.0]) + 1.0
    faces = jnp.arange(90).reshape(-1, 3)
    expected = visible_faces(screen, faces, 32, 40, tile=4)
    assert np.array_equal(visible_faces(screen, faces, 32, 40, tile=tile), expected)


def test_every_pixel_sees_the_nearest_of_random_triangles():
    rng = np.random.default_rng(1)
    screen = rng.uniform([-5.0, -5.0, 1.0], [25.0, 25.0, 3.0], (1, 60, 3))
    faces = np.arange(60).reshape(-1, 3)
    fragments = rasterize(jnp.asarray(screen, jnp.float32), jnp.asarray(faces), 20, 20)
    depth, face_id = _brute_force(screen[0][faces], 20, 20)
    assert np.array_equal(fragments.face_id[0], face_id)
    np.testing.assert_allclose(fragments.depth[0], depth, rtol=1e-5)  # float32


def _brute_force(corners, height, width):
    """Nearest depth (0: none) and face by solving for the barycentrics of every pixel and triangle in float64."""
    depth, face_id = np.full((height, width), np.inf), np.full((height, width), -1)
    for face, triangle in enumerate(corners):
        inverse = np.linalg.inv(np.column_stack([triangle[:, :2], np.ones(3)]).T)
        for row, column in np.ndindex(height, width):
            weights = inverse @ [column + 0.5, row + 0.5, 1.0]
            if weights.min() >= 0 and (z := 1.0 / (weights / triangle[:, 2]).sum()) < depth[row, column]:
                depth[row, column], face_id[row, column] = z, face
    return np.where(face_id >= 0, depth, 0.0), face_id


def test_coincident_faces_show_the_lower_id():
    faces = jnp.array([[0, 1, 2], [0, 2, 3], [1, 2, 0], [3, 2, 0]])
    assert set(np.unique(visible_faces(QUAD, faces, 8, 12))) == {-1, 0, 1}


def test_shared_edges_leave_no_gap():
    angles = jnp.linspace(0.0, 2 * jnp.pi, 41)[:-1]
    rim = jnp.stack([jnp.cos(angles), jnp.sin(angles), 0 * angles], -1) * 30.0 + jnp.array([31.7, 32.2, 2.0])
    screen = jnp.concatenate([jnp.array([[31.7, 32.2, 2.0]]), rim])[None]
    faces = jnp.stack([jnp.zeros(40, int), jnp.arange(40) + 1, (jnp.arange(40) + 1) % 40 + 1], -1)
    seen = visible_faces(screen, faces, 64, 64)[0] >= 0
    row, column = np.mgrid[:64, :64] + 0.5
    assert seen[np.hypot(row - 32.2, column - 31.7) < 29.8].all()


def test_culling_drops_exactly_the_faces_seen_from_behind():
    reversed_winding = FACES[:, ::-1]
    counts = [(visible_faces(QUAD, f, 8, 12, cull_back=True) >= 0).sum() for f in (FACES, reversed_winding)]
    assert sorted(map(int, counts)) == [0, 35]


def test_faces_that_reach_behind_the_camera_are_not_drawn():
    assert (visible_faces(QUAD.at[0, 0, 2].set(-0.1), FACES, 8, 12) == -1).all()


def test_nan_and_degenerate_faces_are_not_drawn():
    screen = QUAD.at[0, 1].set(jnp.nan)
    faces = jnp.array([[0, 1, 2], [0, 0, 3], [0, 2, 3]])
    assert set(np.unique(visible_faces(screen, faces, 8, 12))) == {-1, 2}


def test_interpolated_position_reprojects_to_the_pixel_centre():
    vertices = jnp.array([[0.3, -0.2, 0.4], [-0.1, 0.5, 0.1], [0.0, -0.4, -0.5]])
    focal, center = (jnp.asarray(value)[None] for value in intrinsics(33.8, 48))
    camera = jnp.asarray(look_at(np.array([25.0]), np.array([15.0]), 2.0))
    fragments = rasterize(project(vertices, camera, focal, center), jnp.array([[0, 1, 2]]), 48, 48)
    row, column = np.nonzero(np.asarray(fragments.face_id[0]) >= 0)
    points = fragments.barycentrics[0, row, column] @ vertices
    screen = project(points, camera, focal, center)[0]
    assert len(row) > 50
    np.testing.assert_allclose(
        screen[:, :2], np.stack([column, row], 1) + 0.5, atol=1e-4
    )  # float32 at 48 pixels
    np.testing.assert_allclose(screen[:, 2], fragments.depth[0, row, column], rtol=1e-6)


def test_depth_gradient_matches_finite_differences():
    def loss(screen):
        return (rasterize(screen, FACES, 8, 12).depth ** 2).sum()

    screen = QUAD + jnp.array([0.2, 0.1, 0.0]) * jnp.arange(4.0)[:, None] * 0.1
    screen = screen.at[0, :, 2].add(jnp.array([0.1, 0.3, 0.0, 0.2]))
    direction = jnp.zeros_like(screen).at[0, :, 2].set(jnp.array([1.0, -0.5, 0.3, 0.8]))
    slope = (loss(screen + 1e-2 * direction) - loss(screen - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(
        jnp.vdot(jax.grad(loss)(screen), direction), slope, rtol=1e-3
    )  # central difference
