"""Forms of one layer that must agree."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.models import attention, layers
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast import transformer


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


def test_feed_forward_in_parts_is_that_at_once(monkeypatch):
    """Values, gradients and initial weights."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 20, 8))
    at_once, in_parts = (
        attention.FeedForward(4, compute) for compute in (Compute(reference=True), Compute())
    )
    monkeypatch.setattr(transformer, "MAX_ROWS", 30)

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
