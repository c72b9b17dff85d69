"""Display values and linear light."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.colors import linear_from_srgb, srgb_from_linear


@pytest.mark.parametrize("display, linear", [(0, 0.0), (10, 0.0030353), (128, 0.2158605), (255, 1.0)])
def test_known_values(display, linear):
    np.testing.assert_allclose(linear_from_srgb(np.array([display / 255])), [linear], atol=1e-7)
    np.testing.assert_allclose(srgb_from_linear(np.array([linear])) * 255, [display], atol=1e-4)


def test_every_byte_comes_back():
    bytes_ = np.arange(256, dtype=np.float32) / 255
    back = srgb_from_linear(linear_from_srgb(bytes_))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, bytes_, atol=1e-6)  # float32 powers


def test_jax_gives_the_same_under_jit_with_finite_gradients():
    values = np.linspace(0, 1, 101, dtype=np.float32)
    for curve in (linear_from_srgb, srgb_from_linear):
        np.testing.assert_allclose(jax.jit(curve)(values), curve(values), atol=1e-6)
        assert np.isfinite(jax.grad(lambda x, f=curve: f(x).sum())(jnp.asarray(values))).all()
