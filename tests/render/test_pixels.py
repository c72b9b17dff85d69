"""The list of covered pixels, compared with whole pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.render.pixels import CoveredPixels
from sv3d_jax.render.rasterize import rasterize

SIZE = 12
# Two triangles in two views; one of them is behind the other.
FACES = jnp.array([[0, 1, 2], [3, 4, 5]])
POINTS = np.array([[1, 1, 2], [2, 11, 2], [10, 6, 2], [3, 2, 1], [4, 8, 3], [9, 3, 4]], np.float32)
SCREEN = jnp.asarray(np.stack([POINTS, POINTS * [1.0, 0.5, 1.0]]), jnp.float32)


def shown(screen):
    """What pixels show, in whole pictures."""
    return rasterize(screen, FACES, SIZE, SIZE)


def listed(screen, capacity=200):
    """The same by way of the list."""
    face_id = shown(screen).face_id
    pixels = CoveredPixels.of(face_id >= 0, capacity)
    return pixels, pixels.pictures(pixels.fragments(screen, FACES, face_id))


def test_pictures_of_the_list_are_those_of_the_rasterizer():
    expected = shown(SCREEN)
    pixels, got = jax.jit(listed)(SCREEN)
    covered = expected.face_id >= 0
    assert 60 < covered.sum() < 200 and covered.any(axis=(1, 2)).all()
    assert not pixels.overflow
    assert np.array_equal(np.where(covered, got.face_id, -1), expected.face_id)
    np.testing.assert_allclose(got.depth, expected.depth, rtol=1e-5)
    np.testing.assert_allclose(got.barycentrics, expected.barycentrics, atol=1e-5)


def test_gradients_through_the_list_are_those_of_the_rasterizer():
    weights = np.random.default_rng(0).normal(size=(2, SIZE, SIZE)).astype(np.float32)

    def total(fragments):
        return (fragments.depth * weights).sum() - (fragments.barycentrics[..., 1] * weights**2).sum()

    expected = jax.grad(lambda screen: total(shown(screen)))(SCREEN)
    got = jax.jit(jax.grad(lambda screen: total(listed(screen)[1])))(SCREEN)
    assert float(jnp.abs(expected).max()) > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("spare", [-1, 0, 1])
def test_only_pixels_beyond_the_capacity_are_left_out(spare):
    face_id = shown(SCREEN).face_id
    count = int((face_id >= 0).sum())
    pixels, got = listed(SCREEN, count + spare)
    assert bool(pixels.overflow) == (spare < 0)
    flat, expected = np.ravel(got.depth), np.ravel(shown(SCREEN).depth)
    last = np.flatnonzero(expected)[-1]
    if spare < 0:
        assert flat[last] == 0
        expected = np.where(np.arange(expected.size) == last, 0, expected)
    np.testing.assert_allclose(flat, expected, rtol=1e-5)
