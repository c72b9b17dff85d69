"""Batches of rendered figures."""

import numpy as np

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.geometry.mesh import to_world
from sv3d_jax.render.lighting import soft_light
from sv3d_jax.render.orbit import render_orbit
from sv3d_jax.train.data.figure_batches import render_figures
from sv3d_jax.train.data.figures import figure_mesh

AZIMUTHS = np.array([[90.0, 200.0, 0.0], [10.0, 350.0, 0.0]])


ELEVATIONS = np.full_like(AZIMUTHS, 20.0)


def test_figures_fill_much_of_the_picture_and_never_touch_its_border():
    azimuths = np.tile(np.arange(6) * 60.0, (8, 1))
    pixels = np.asarray(render_figures(range(8), azimuths, np.full((8, 6), 20.0), 64))
    drawn = (pixels < 250).any(-1)
    assert drawn.mean() > 0.4
    assert not drawn[:, :, [0, -1]].any() and not drawn[:, :, :, [0, -1]].any()


def test_a_figure_does_not_depend_on_the_rest_of_its_batch():
    both = render_figures([5, 6], AZIMUTHS, ELEVATIONS, 32)
    alone = render_figures([6], AZIMUTHS[1:], ELEVATIONS[1:], 32)
    assert np.array_equal(both[1], alone[0])


def test_both_renderers_draw_the_same_figure():
    fast = render_figures([5], AZIMUTHS[:1], ELEVATIONS[:1], 32, supersample=2)[0]
    orbit, _ = render_orbit(
        to_world(figure_mesh(5)), CameraPath(AZIMUTHS[0], ELEVATIONS[0]), 32, soft_light(5), supersample=2
    )
    difference = np.abs(np.asarray(fast, int) - orbit)
    assert difference.max() <= 1  # rounding to uint8
