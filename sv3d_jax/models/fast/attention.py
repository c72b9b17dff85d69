"""Softmax attention by accelerators' kernels, and in parts: by heads on one CPU, by queries elsewhere."""

import math
import warnings
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float
from sv3d_jax.errors import is_out_of_memory
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast import products
from sv3d_jax.models.fast.flash import flash_attention
from sv3d_jax.models.fast.parts import part_size

# From this many tokens on attention goes in parts, so that the scores of all frames never exist at once; on a CPU that
# is also three times faster than one batched product.
PARTS_FROM_TOKENS = 256
MAX_QUERIES = 1024  # in one part, where the parts are queries
MAX_SCORES = 1 << 21  # in one part, where the parts are heads
PALLAS_FROM_TOKENS = 1024  # with fewer tokens, padding costs more than Pallas' kernel saves
MAX_HEAD_WIDTH = 128  # of the accelerators' kernels

Kernel = Callable[[Array, Array, Array], Array]


def accelerator_kernel(q: Array, k: Array, compute: Compute) -> Kernel | None:
    """The kernel for these queries and keys on a GPU or TPU; None where plain products are to be used."""
    name = kernel_name(compute)
    if name is None or q.shape[-1] % 8 or q.shape[-1] > MAX_HEAD_WIDTH:
        return None
    if name == "Pallas" and not q.shape[1] == k.shape[1] >= PALLAS_FROM_TOKENS:
        return None
    return KERNELS[compute.target][name]


def kernel_name(compute: Compute) -> str | None:
    """Name of the accelerator's kernel that programs with this `compute` use where shapes allow it.

    None in float32, in the plain form and where no kernel works.
    """
    if compute.reference or compute.dtype != jnp.bfloat16:
        return None
    return working_kernel(compute.target)


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


KERNELS: dict[str, dict[str, Kernel]] = {
    "gpu": {"cuDNN": _cudnn, "Pallas": lambda q, k, v: flash_attention(q, k, v, "gpu")},
    "tpu": {"Pallas": lambda q, k, v: flash_attention(q, k, v, "tpu")},
}
"""Kernels of accelerators in bfloat16 by platform, the best first."""


@cache
def working_kernel(platform: str) -> str | None:
    """Name of the best kernel that runs on the device in use, None if none does.

    Each is tried once, and a warning names those that fail. A program for another device than the one in use takes
    Pallas' kernel, which can be compiled without the device.
    """
    if platform != jax.default_backend():
        return "Pallas" if platform in KERNELS else None
    for name, kernel in KERNELS.get(platform, {}).items():
        try:
            with jax.ensure_compile_time_eval():
                q = jnp.zeros((1, 128, 1, 64), jnp.bfloat16)
                jax.block_until_ready(kernel(q, q, q))
        except Exception as error:  # whatever the library, its loader or the compiler says
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(
                f"attention is slower than it could be: that of {name} does not run here ({reason})",
                stacklevel=2,
            )
        else:
            return name
    return None


def has_few_scores(q: Float[Array, "n s k d"], k: Float[Array, "n l k d"]) -> bool:
    """Whether the scores of all frames and heads may exist at once."""
    return q.shape[1] * k.shape[1] < PARTS_FROM_TOKENS**2


def attend_by_head(q, k, v, compute: Compute) -> Float[Array, "n s k d"]:
    """One part of the frames' heads after the other: the form for one CPU."""
    n, s, heads, d = q.shape
    in_16_bit = compute.multiplies_in_16_bit(s * k.shape[1] * d)
    multiply = products.product if in_16_bit else partial(_product, compute=compute)

    @jax.checkpoint  # the gradient does not keep the weights of all heads
    def one_head(qkv):
        q, k, v = qkv
        scores = multiply(q, k, 1).astype(jnp.float32)
        # Without the barrier the compiler computes the largest scores a second time, together with the weights.
        largest = jax.lax.optimization_barrier(jax.lax.stop_gradient(scores).max(-1, keepdims=True))
        weights = jnp.exp(scores - largest)
        # The values are divided, which are fewer than the weights.
        values = multiply(weights.astype(v.dtype), v, 0)
        return (values / weights.sum(-1, keepdims=True)).astype(v.dtype)

    rows = [x.transpose(0, 2, 1, 3).reshape(n * heads, -1, d) for x in (_scaled(q), k, v)]
    at_once = part_size(n * heads, max(1, MAX_SCORES // (s * k.shape[1])))
    if at_once == 1:
        out = jax.lax.map(one_head, tuple(rows))
    else:
        parts = tuple(x.reshape(-1, at_once, *x.shape[1:]) for x in rows)
        out = jax.lax.map(jax.vmap(one_head), parts)
    return out.reshape(n, heads, s, d).transpose(0, 2, 1, 3)


def _product(a: Float[Array, "n c"], b: Array, axis: int, compute: Compute) -> Float[Array, "n d"]:
    """a @ b with axis 0, a @ b^T with axis 1."""
    return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), precision=compute.precision)


def attend_by_queries(plain: Callable[..., Array], q, k, v, compute: Compute) -> Float[Array, "n s k d"]:
    """One part of the queries after the other, each of all frames and heads, which may be divided over devices."""
    n, s, heads, d = q.shape
    chunk = max(size for size in range(1, MAX_QUERIES + 1) if s % size == 0)
    part = jax.checkpoint(lambda q: plain(q, k, v, compute))
    out = jax.lax.map(part, jnp.moveaxis(q.reshape(n, s // chunk, chunk, heads, d), 1, 0))
    return jnp.moveaxis(out, 0, 1).reshape(n, s, heads, d)


def _scaled(q: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """q / sqrt(d): scaling the queries takes a CPU less time than scaling the scores, which are more."""
    return (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)
