"""Softmax attention in the form that the device runs best; all agree up to rounding."""

import math
import warnings
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, size_of_parts
from sv3d_jax.models.flash import flash_attention
from sv3d_jax.models.layers import Compute

# Attention over at least this many tokens goes part by part, so that the scores of all frames never exist at once; on
# a CPU it is also three times faster than one batched product.
MAPPED_TOKENS = 256
MAX_QUERIES = 1024  # of a part where parts are queries
MAX_SCORES = 1 << 21  # of a part where parts are heads
FLASH_TOKENS = 1024  # from which a kernel is worth its padding
MAX_HEAD_WIDTH = 128  # of the kernels of accelerators

Kernel = Callable[[Array, Array, Array], Array]


def attend(
    q: Float[Array, "n s k d"], k: Float[Array, "n l k d"], v: Float[Array, "n l k d"], compute: Compute
) -> Float[Array, "n s k d"]:
    """softmax(q k^T / sqrt(d)) v per head, softmax in float32."""
    if kernel := _accelerator_kernel(q, k, compute):
        return kernel(q, k, v)
    if q.shape[1] * k.shape[1] < MAPPED_TOKENS**2:
        return _attend_at_once(q, k, v, compute)
    return (_attend_by_head if compute.on_one_cpu else _attend_by_queries)(q, k, v, compute)


def _accelerator_kernel(q: Array, k: Array, compute: Compute) -> Kernel | None:
    """The kernel for these queries and keys on a GPU or TPU; None where plain products are to do it."""
    name = kernel_name(compute)
    if name is None or q.shape[-1] % 8 or q.shape[-1] > MAX_HEAD_WIDTH:
        return None
    if name == "Pallas" and not q.shape[1] == k.shape[1] >= FLASH_TOKENS:
        return None
    return KERNELS[compute.target][name]


def kernel_name(compute: Compute) -> str | None:
    """The accelerator's kernel that programs computed so may use; in float32 and in the plain form there is none."""
    if compute.reference or compute.dtype != jnp.bfloat16:
        return None
    return working_kernel(compute.target)


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


KERNELS: dict[str, dict[str, Kernel]] = {
    "gpu": {"cuDNN": _cudnn, "Pallas": lambda q, k, v: flash_attention(q, k, v, "gpu")},
    "tpu": {"Pallas": lambda q, k, v: flash_attention(q, k, v, "tpu")},
}
"""Attention of accelerators in bfloat16, the best first."""


@cache
def working_kernel(platform: str) -> str | None:
    """The best kernel that runs on the device in use: each is tried once, and a warning names those that do not.

    A program for another device than the one in use takes Pallas, which is compiled without it.
    """
    if platform != jax.default_backend():
        return "Pallas" if platform in KERNELS else None
    for name, kernel in KERNELS.get(platform, {}).items():
        try:
            with jax.ensure_compile_time_eval():
                q = jnp.zeros((1, 128, 1, 64), jnp.bfloat16)
                jax.block_until_ready(kernel(q, q, q))
        except Exception as error:  # whatever the library, its loader or the compiler says
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(
                f"attention is slower than it could be: that of {name} does not run here ({reason})",
                stacklevel=2,
            )
        else:
            return name
    return None


def _attend_at_once(q, k, v, compute: Compute) -> Float[Array, "n s k d"]:
    scores = jnp.einsum("nskd,nlkd->nksl", q, k, precision=compute.precision)
    return jnp.einsum("nksl,nlkd->nskd", _softmax(scores, q), v, precision=compute.precision)


def _attend_by_head(q, k, v, compute: Compute) -> Float[Array, "n s k d"]:
    """Some heads of some frames after the other, all on one device: the form for a CPU."""

    @jax.checkpoint  # the gradient does not keep the weights of all heads
    def one_head(qkv):
        q, k, v = qkv
        scores = jnp.einsum("sd,ld->sl", q, k, precision=compute.precision).astype(jnp.float32)
        # Or the compiler finds the largest scores a second time, with the weights.
        largest = jax.lax.optimization_barrier(jax.lax.stop_gradient(scores).max(-1, keepdims=True))
        weights = jnp.exp(scores - largest)
        # The few values are divided, not the many weights.
        values = jnp.matmul(weights.astype(v.dtype), v, precision=compute.precision)
        return (values / weights.sum(-1, keepdims=True)).astype(v.dtype)

    n, s, heads, d = q.shape
    rows = [x.transpose(0, 2, 1, 3).reshape(n * heads, -1, d) for x in (scaled(q), k, v)]
    at_once = size_of_parts(n * heads, max(1, MAX_SCORES // (s * k.shape[1])))
    if at_once == 1:
        out = jax.lax.map(one_head, tuple(rows))
    else:
        parts = tuple(x.reshape(-1, at_once, *x.shape[1:]) for x in rows)
        out = jax.lax.map(jax.vmap(one_head), parts)
    return out.reshape(n, heads, s, d).transpose(0, 2, 1, 3)


def _attend_by_queries(q, k, v, compute: Compute) -> Float[Array, "n s k d"]:
    """Some queries of all frames and heads after the other: frames and heads may be split over devices."""
    n, s, heads, d = q.shape
    chunk = max(size for size in range(1, MAX_QUERIES + 1) if s % size == 0)
    part = jax.checkpoint(lambda q: _attend_at_once(q, k, v, compute))
    out = jax.lax.map(part, jnp.moveaxis(q.reshape(n, s // chunk, chunk, heads, d), 1, 0))
    return jnp.moveaxis(out, 0, 1).reshape(n, s, heads, d)


def scaled(q: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """q / sqrt(d). To scale the queries takes a CPU less time than to scale the scores, which are more."""
    return (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)


def _softmax(scores: Array, q: Array) -> Array:
    """Attention weights from raw scores, scaled by 1/sqrt(d); float32 inside, the type of q outside."""
    return jax.nn.softmax(scores.astype(jnp.float32) / math.sqrt(q.shape[-1]), axis=-1).astype(q.dtype)
