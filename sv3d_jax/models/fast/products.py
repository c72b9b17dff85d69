"""Products of 16-bit factors with a 32-bit sum, for CPUs with instructions for them (AVX-512 BF16, AMX).

XLA (jaxlib 0.10.2) uses the instructions only where the result is float32, the summed axis is the last of the first
factor, and that factor is no transposed array; elsewhere it silently computes in float32. With a bfloat16 result, as
the layers of accelerators have it, a product takes longer than in float32.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float
from sv3d_jax.models.compute import Compute

FACTOR = jnp.bfloat16
# With fewer channels, a convolution's own form in float32 is faster than a sum of products.
MIN_CHANNELS = 64
MIN_CHANNELS_OVER_TIME = 256


def are_wanted(rows: int, kernel: Float[Array, "... c d"], compute: Compute) -> bool:
    """Whether the product of so many rows with a kernel has 16-bit factors."""
    return compute.multiplies_in_16_bit(rows * math.prod(kernel.shape[-2:]))


def make_convolution(x: Float[Array, "... c"], kernel: Float[Array, "... c d"], compute: Compute) -> bool:
    """Whether a convolution in the plane (h w c d) or over time (3 c d) is a sum of products of 16-bit factors."""
    least = MIN_CHANNELS if kernel.ndim == 4 else MIN_CHANNELS_OVER_TIME
    return min(kernel.shape[-2:]) >= least and are_wanted(math.prod(x.shape[:-1]), kernel, compute)


def matmul_16_bit(x: Float[Array, "... c"], kernel: Float[Array, "c d"]) -> Float[Array, "... d"]:
    """x @ kernel in float32, of factors rounded to bfloat16; so are the factors of its gradient."""
    return product(x.reshape(-1, x.shape[-1]), kernel, 0).reshape(*x.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(a: Float[Array, "n c"], b: Array, axis: int) -> Float[Array, "n d"]:
    """a @ b with axis 0, a @ b^T with axis 1, in float32 and of factors rounded to bfloat16."""
    # The barriers keep the compiler from merging a transposition into the product: such a program fails when it runs.
    a, b = jax.lax.optimization_barrier((a.astype(FACTOR), b.astype(FACTOR)))
    axes = (((1,), (axis,)), ((), ()))
    return jax.lax.optimization_barrier(jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32))


def _backward(axis: int, factors: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    a, b = factors
    to_a = product(gradient, b, 1 - axis)
    to_b = _summed_over_rows(a, gradient) if axis == 0 else _summed_over_rows(gradient, a)
    return to_a.astype(a.dtype), to_b.astype(b.dtype)


product.defvjp(lambda a, b, axis: (product(a, b, axis), (a, b)), _backward)


def _summed_over_rows(a: Float[Array, "n c"], b: Float[Array, "n d"]) -> Float[Array, "c d"]:
    """a^T @ b; the narrower of the two is transposed."""
    if a.shape[1] > b.shape[1]:
        return product(_transposed(b), a, 0).T
    return product(_transposed(a), b, 0)


def _transposed(x: Float[Array, "n c"]) -> Float[Array, "c n"]:
    """x^T in 16 bits, joined from two halves: a factor that is transposed as a whole would be computed in float32."""
    x, half = x.astype(FACTOR), len(x) // 2
    return jnp.concatenate([x[:half].T, x[half:].T], axis=1)
