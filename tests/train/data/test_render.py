"""Pictures of procedural objects."""

import numpy as np

from sv3d_jax.train.data.figures import figure_mesh
from sv3d_jax.train.data.render import OBJECT_RADIUS, object_to_world, render_figures

AZIMUTHS = np.array([[0.0, 90.0, 200.0], [10.0, 20.0, 30.0]])


def test_farthest_vertex_lies_on_the_object_ball():
    mesh = figure_mesh(3)
    matrix = object_to_world(mesh)
    world = mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(np.linalg.norm(world, axis=1).max(), OBJECT_RADIUS)
    np.testing.assert_allclose(world.max(0), -world.min(0), atol=1e-12)


def test_figures_fill_much_of_the_picture_and_never_touch_its_border():
    pixels = np.asarray(
        render_figures(range(8), np.tile(np.arange(6) * 60.0, (8, 1)), np.full((8, 6), 20.0), 64)
    )
    drawn = (pixels < 250).any(-1)
    assert drawn.mean() > 0.4
    assert not drawn[:, :, [0, -1]].any() and not drawn[:, :, :, [0, -1]].any()


def test_a_figure_does_not_depend_on_the_rest_of_the_batch():
    both = render_figures([5, 6], AZIMUTHS, np.full_like(AZIMUTHS, 10.0), 32)
    alone = render_figures([6], AZIMUTHS[1:], np.full((1, 3), 10.0), 32)
    assert np.array_equal(both[1], alone[0])
