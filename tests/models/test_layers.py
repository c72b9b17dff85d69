"""Forms of one layer that must agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.models import layers
from sv3d_jax.models.layers import Compute


@pytest.mark.parametrize("form", [layers._attend_by_head, layers._attend_by_queries])
def test_attention_in_parts_is_that_at_once(form, monkeypatch):
    monkeypatch.setattr(layers, "MAX_QUERIES", 7)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 20, 3, 8))  # parts of 5 queries

    def total(form, *qkv):
        return (jnp.arange(8) * form(*qkv, Compute())).sum()

    expected = layers._attend_at_once(q, k, v, Compute())
    np.testing.assert_allclose(form(q, k, v, Compute()), expected, atol=1e-6)
    gradients = [jax.grad(total, (1, 2, 3))(each, q, k, v) for each in (form, layers._attend_at_once)]
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_gpu_without_cudnn_attention_warns_once_and_attends(monkeypatch):
    layers._has_cudnn.cache_clear()
    monkeypatch.setattr(layers, "MAPPED_TOKENS", 4)
    qkv = jax.random.normal(jax.random.key(0), (3, 2, 20, 3, 8), jnp.bfloat16)
    compute = Compute(jnp.bfloat16, platform="gpu")
    with pytest.warns(UserWarning, match="cuDNN's does not run here") as caught:
        outs = [jax.jit(lambda *qkv: layers.attend(*qkv, compute))(*qkv) for _ in range(2)]
    assert len(caught) == 1
    for out in outs:
        np.testing.assert_array_equal(out, layers._attend_by_queries(*qkv, compute))
    layers._has_cudnn.cache_clear()


@pytest.mark.parametrize(
    ("change", "taken"),
    [({}, True), ({"platform": "cpu"}, False), ({"reference": True}, False), ({"dtype": jnp.float32}, False)],
)
def test_cudnn_attends_on_a_gpu_in_16_bits(change, taken, monkeypatch):
    calls = []
    monkeypatch.setattr(layers, "_has_cudnn", lambda: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *rest, **form: calls.append(form) or q)
    compute = Compute(**({"dtype": jnp.bfloat16, "platform": "gpu"} | change))
    layers.attend(*jnp.zeros((3, 1, 5, 2, 64), compute.dtype), compute)
    assert calls == [{"implementation": "cudnn"}] * taken


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
