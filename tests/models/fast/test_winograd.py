"""Convolutions by fewer products, against plain sums, in parts or at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.models import layers
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast import winograd
from sv3d_jax.models.fast.parts import part_size


@pytest.mark.parametrize(
    ("shape", "taps"), [((2, 6, 8, 5), (3, 3)), ((2, 9, 3, 2, 5), (3,)), ((1, 1, 1, 1, 5), (3,))]
)
@pytest.mark.parametrize("rows", [3, 1000])
def test_convolution_by_fewer_products_is_the_plain_one(shape, taps, rows, monkeypatch):
    """Values and gradients, in parts or at once, against sums in float64."""
    monkeypatch.setattr(winograd, "MAX_ROWS", rows)
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal(shape), rng.standard_normal((*taps, 5, 7))
    axes = range(1, 1 + len(taps))
    padded = np.pad(x, [(int(axis in axes),) * 2 for axis in range(x.ndim)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=tuple(axes))
    letters = "ij"[: len(taps)]
    expected = np.einsum(f"...c{letters},{letters}cd->...d", windows, kernel)
    form = winograd.conv3x3 if len(taps) == 2 else winograd.conv3
    x, kernel = jnp.float32(x), jnp.float32(kernel)
    np.testing.assert_allclose(form(x, kernel), expected, atol=1e-5 * np.abs(expected).max())

    def plain(x, kernel):
        if len(taps) == 2:
            return layers.conv2d(x, kernel, 1, ((1, 1), (1, 1)), Compute(reference=True))
        return layers.temporal_conv(x, kernel, Compute(reference=True))

    ours, theirs = (
        jax.grad(lambda *inputs, f=f: jnp.sin(f(*inputs)).sum(), (0, 1))(x, kernel) for f in (form, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_fewer_products_are_for_wide_layers_on_a_cpu(monkeypatch):
    """Which form a layer takes; what comes out is the same up to rounding."""
    taken = []
    for name in ("conv3", "conv3x3"):
        form = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *inputs, f=form, n=name: taken.append(n) or f(*inputs))

    def forms(x, compute):
        taken.clear()
        kernel = jnp.ones((3, 3, x.shape[-1], 256), x.dtype)
        frames = x.reshape(-1, *x.shape[2:])
        y = layers.conv2d(frames, kernel, 1, ((1, 1), (1, 1)), compute)
        np.testing.assert_allclose(y[0, 1, 1], 9 * x.shape[-1], rtol=1e-2)
        layers.temporal_conv(x, kernel[0], compute)
        return taken[:]

    cpu, x = Compute(platform="cpu"), jnp.ones((2, 4, 8, 8, 256))
    assert forms(x, cpu) == ["conv3x3", "conv3"]
    assert forms(x[..., :255], cpu) == forms(x[..., :64], cpu) == ["conv3x3"]
    for narrow_odd_half_or_small in (x[..., :63], x[:, :, :7], x.astype(jnp.bfloat16), x[:, :1]):
        assert forms(narrow_odd_half_or_small, cpu) == []
    assert forms(x, Compute(platform="tpu")) == forms(x, Compute(reference=True)) == []


@pytest.mark.parametrize("rows", [4, 40])
def test_convolution_in_parts_is_that_at_once(rows, monkeypatch):
    """Parts are frames in the plane, positions over time."""
    rng = np.random.default_rng(0)
    video, kernel = rng.standard_normal((2, 6, 8, 6, 5)), rng.standard_normal((3, 3, 5, 7))
    video, kernel = jnp.float32(video), jnp.float32(kernel)
    frames = video.reshape(12, 8, 6, 5)
    monkeypatch.setattr(winograd, "MAX_ROWS", rows)
    at_once = winograd._conv3x3_of_taps(frames, winograd._taps3x3(kernel))
    np.testing.assert_allclose(winograd.conv3x3(frames, kernel), at_once, atol=1e-5)
    over_time = winograd.conv3(video, kernel[0])
    np.testing.assert_allclose(over_time, winograd._conv3(video, kernel[0]), atol=1e-5)
    text = str(jax.make_jaxpr(lambda x: winograd.conv3(x, kernel[0]))(video))
    assert "f32[2,2,1,7]" in text if rows == 4 else "f32[2,2,8,7]" in text  # products of a part


@pytest.mark.parametrize(
    ("count", "most", "size"), [(12, 12, 12), (12, 11, 6), (12, 5, 4), (13, 5, 13), (12, 0, 12), (1, 1, 1)]
)
def test_parts_are_equal_and_not_small(count, most, size):
    assert part_size(count, most) == size
