"""Forms of attention that must agree, and which of them is taken."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast import attention
from sv3d_jax.models.fast.flash import flash_attention
from sv3d_jax.models.layers import attend, plain_attention

by_queries = partial(attention.attend_by_queries, plain_attention)
FORMS = {
    "by head": (attention.attend_by_head, 40),  # one by one
    "by heads": (attention.attend_by_head, 20),  # by twos
    "by queries": (by_queries, 20),  # parts of 5
    "kernel of a TPU": (lambda q, k, v, _: flash_attention(q, k, v, "tpu", True), 530),
    "kernel of a GPU": (lambda q, k, v, _: flash_attention(q, k, v, "gpu", True), 130),
}


@pytest.mark.parametrize("name", FORMS)
def test_attention_in_parts_is_that_at_once(name, monkeypatch):
    monkeypatch.setattr(attention, "MAX_QUERIES", 7)
    monkeypatch.setattr(attention, "MAX_SCORES", 1000)
    form, tokens = FORMS[name]
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, tokens, 3, 16))

    def total(form, *qkv):
        out = form(*qkv, Compute())
        return (jnp.arange(16) * jnp.sin(3 * out)).sum(), out

    expected, ours = (
        jax.jit(jax.value_and_grad(partial(total, form), (0, 1, 2), has_aux=True))(q, k, v)
        for form in (plain_attention, form)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5), ours, expected)


def test_a_gpu_without_kernels_warns_once_of_each_and_attends(monkeypatch):
    attention.working_kernel.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "PARTS_FROM_TOKENS", 4)
    qkv = jax.random.normal(jax.random.key(0), (3, 2, 20, 3, 8), jnp.bfloat16)
    compute = Compute(jnp.bfloat16)
    with pytest.warns(UserWarning, match="does not run here") as caught:
        outs = [jax.jit(lambda *qkv: attend(*qkv, compute))(*qkv) for _ in range(2)]
    assert [str(each.message).split(" of ")[1].split()[0] for each in caught] == ["cuDNN", "Pallas"]
    for out in outs:
        np.testing.assert_array_equal(out, by_queries(*qkv, compute))
    attention.working_kernel.cache_clear()


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, ["cuDNN"]),
        ({"platform": "tpu"}, ["splash"]),
        ({"platform": "cpu"}, []),
        ({"reference": True}, []),
        ({"dtype": jnp.float32}, []),
    ],
)
def test_which_kernel_attends(change, taken, monkeypatch):
    calls = []
    recorder = lambda name: lambda q, k, v: calls.append(name) or q  # noqa: E731
    kernels = {"gpu": {"cuDNN": recorder("cuDNN")}, "tpu": {"Pallas": recorder("splash")}}
    monkeypatch.setattr(attention, "KERNELS", kernels)
    monkeypatch.setattr(attention, "working_kernel", {"gpu": "cuDNN", "tpu": "Pallas"}.get)
    compute = Compute(**({"dtype": jnp.bfloat16, "platform": "gpu"} | change))
    for tokens in (5, 1025):
        calls.clear()
        jax.eval_shape(lambda *qkv: attend(*qkv, compute), *jnp.zeros((3, 1, tokens, 2, 64), compute.dtype))
        # Below a thousand tokens plain products take less than the padding of Pallas' kernels.
        assert calls == ([] if tokens == 5 and taken == ["splash"] else taken)
