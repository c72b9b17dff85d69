"""Forms of one layer that must agree."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.arrays import size_of_parts
from sv3d_jax.models import attention, layers, winograd
from sv3d_jax.models.layers import Compute


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_convolution_over_time_is_that_of_the_plain_form(platform):
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 4, 6))
    kernel = jax.random.normal(jax.random.key(1), (3, 6, 8))

    def total(x, kernel, compute):
        y = layers.temporal_conv(x, kernel, compute)
        return jnp.sum(jnp.sin(y)), y

    ours, theirs = (
        jax.value_and_grad(total, (0, 1), has_aux=True)(x, kernel, compute)
        for compute in (Compute(platform=platform), Compute(reference=True))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), ours, theirs)


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_doubling_folded_into_the_convolution_is_doubling_then_convolution(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 6))
    plain, folded = (layers.UpsampleConv2d(Compute(reference=reference)) for reference in (True, False))
    params = plain.init(jax.random.key(1), x)
    assert params["params"]["kernel"].shape == (3, 3, 6, 6)  # as published
    np.testing.assert_allclose(folded.apply(params, x), plain.apply(params, x), atol=2e-6)

    def total(layer, params):
        return jnp.square(layer.apply(params, x)).sum()

    ours, theirs = (jax.grad(total, 1)(layer, params)["params"] for layer in (folded, plain))
    np.testing.assert_allclose(ours["kernel"], theirs["kernel"], rtol=1e-4, atol=1e-4)


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
    assert size_of_parts(count, most) == size


def test_feed_forward_in_parts_is_that_at_once(monkeypatch):
    """Values, gradients and initial weights."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 20, 8))
    at_once, in_parts = (
        attention.FeedForward(4, compute) for compute in (Compute(reference=True), Compute())
    )
    monkeypatch.setattr(attention, "MAX_ROWS", 30)

    def total(params, x, layer):
        y = layer.apply({"params": params}, x)
        return jnp.sin(y).sum(), y

    [weights, others] = [layer.init(jax.random.key(1), x)["params"] for layer in (at_once, in_parts)]
    jax.tree.map(np.testing.assert_array_equal, weights, others)
    theirs, ours = (
        jax.value_and_grad(total, (0, 1), has_aux=True)(weights, x, layer) for layer in (at_once, in_parts)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
    text = str(jax.make_jaxpr(lambda x: in_parts.apply({"params": weights}, x))(x))
    assert (
        "f32[30,64]" in text and "f32[4,30,64]" not in text
    )  # a part of the inner values, never all of them


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("shape", [(3, 4, 5, 8), (2, 3, 4, 5, 8)])
@pytest.mark.parametrize("activation", [None, layers.silu])
def test_group_norm_is_that_of_the_plain_form(shape, platform, activation):
    """Frames alone or pooled over a video, with means that are large against the deviation."""
    x = 300.0 + jnp.arange(8) + jax.random.normal(jax.random.key(0), shape)
    params = {"scale": jnp.linspace(0.5, 2, 8), "bias": jnp.linspace(-1, 1, 8)}

    def total(params, x, compute):
        y = layers.GroupNorm(1e-5, 4, compute, activation).apply({"params": params}, x)
        return jnp.sin(y).sum(), y

    ours, theirs = (
        jax.value_and_grad(total, (0, 1), has_aux=True)(params, x, compute)
        for compute in (Compute(platform=platform), Compute(reference=True))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-3), ours, theirs)


NORM = {"params": {"scale": jnp.ones(32), "bias": jnp.zeros(32)}}
BFLOAT16 = Compute(jnp.bfloat16)


@pytest.mark.parametrize(
    "layer",
    [
        partial(layers.GroupNorm(1e-5, 32, BFLOAT16, layers.silu).apply, NORM),
        partial(layers.LayerNorm(compute=BFLOAT16).apply, NORM),
        attention._gated,
    ],
    ids=["group norm and silu", "layer norm", "gate"],
)
def test_the_gradient_keeps_little_beside_what_came_in(layer):
    x = jnp.ones((2, 32, 32, 32), jnp.bfloat16)
    _, gradient = jax.vjp(layer, x)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(gradient)) < 1.1 * x.nbytes


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("ours", "theirs"), [(layers.silu, jax.nn.silu), (layers.gelu, jax.nn.gelu)])
def test_activations_are_exact(ours, theirs, dtype):
    x = jnp.linspace(-12, 12, 97, dtype=dtype)
    exact = {} if theirs is jax.nn.silu else {"approximate": False}
    expected = theirs(x.astype(jnp.float32), **exact)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(ours(x).astype(jnp.float32), expected, rtol=eps, atol=1e-6)
