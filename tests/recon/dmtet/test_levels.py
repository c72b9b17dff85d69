"""What a fit is divided into, and which views its steps see."""

import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.recon.config import MeshConfig
from sv3d_jax.recon.dmtet.levels import fit_levels, start_lattice, views_of_step
from sv3d_jax.recon.views import Views
from tests.geometry.test_decimate import ball

BALL = ball(resolution=24, radius=9.0)
COARSE = Mesh(1.5 / 9.0 * BALL.vertices, BALL.faces)


def of_side(side):
    """Four views of this many pixels that show nothing."""
    pixels = np.zeros((4, side, side), np.float32)
    return Views(np.zeros((*pixels.shape, 3), np.float32), pixels, pixels, *[np.zeros(4)] * 3)


def plate(thickness):
    return Mesh(COARSE.vertices * np.array([1.0, 1.0, thickness], np.float32), COARSE.faces)


@pytest.mark.parametrize(
    ("thickness", "cells"), [(1.0, 16), (0.05, 32)], ids=["a ball", "a plate thinner than a cell"]
)
def test_the_first_steps_see_half_of_the_pixels_and_cells_but_of_thin_objects_all_cells(thickness, cells):
    config = MeshConfig(num_steps=70, cells=32, half_share=0.5)
    (first, then), lattice = fit_levels(config, plate(thickness), of_side(128))
    assert (first.first, first.num_steps, first.is_half, first.config.cells) == (0, 32, True, cells)
    assert (then.first, then.num_steps, then.is_half, then.config) == (32, 38, False, config)
    np.testing.assert_array_equal(lattice.sdf, start_lattice(first.config, plate(thickness)).sdf)


@pytest.mark.parametrize(("side", "share"), [(127, 0.5), (128, 0.0), (128, 0.1)])
def test_small_views_and_short_fits_have_one_level(side, share):
    config = MeshConfig(num_steps=70, cells=32, half_share=share)
    (level,), _ = fit_levels(config, COARSE, of_side(side))
    assert (level.first, level.num_steps, level.is_half, level.config) == (0, 70, False, config)


def test_the_least_grid_is_not_halved():
    config = MeshConfig(num_steps=70, cells=7, half_share=0.5)
    assert {level.config.cells for level in fit_levels(config, COARSE, of_side(128))[0]} == {7}


@pytest.mark.parametrize(("num_views", "count"), [(21, 2), (18, 2), (20, 3), (4, 2), (1, 2), (2, 1)])
def test_steps_see_all_views_equally_often(num_views, count):
    seen = [views_of_step(jnp.int32(step), count, num_views) for step in range(num_views)]
    np.testing.assert_array_equal(
        np.bincount(np.concatenate(seen), minlength=num_views), min(count, num_views)
    )


def test_a_step_sees_views_from_different_sides():
    first, second = views_of_step(jnp.int32(5), 2, 21) * 360 / 21
    assert 90 < abs(first - second) % 360 < 270
