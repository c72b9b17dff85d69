"""Linear layers in 8 bits: inputs and kernels are rounded, and their product is accumulated exactly (int8) or in
float32 (fp8). Each row of the inputs and each column of the kernel has a scale of its own.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float

FORMATS = {"int8": (jnp.int8, 127.0), "fp8": (jnp.float8_e4m3fn, 448.0)}
"""By format: the type, and its largest value."""


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def matmul_8_bit(
    x: Float[Array, "... c"], kernel: Float[Array, "c d"], kind: str, platform: str
) -> Float[Array, "... d"]:
    """x @ kernel with both rounded to `kind`, in the dtype of x.

    A CPU multiplies the rounded values in float32: with the error of 8 bits, without their speed. It is for sampling
    and has no gradient: NotImplementedError.
    """
    rows, row_scales = _rounded(x, -1, kind)
    columns, column_scales = _rounded(kernel, 0, kind)
    accumulate = jnp.int32 if kind == "int8" else jnp.float32
    if platform == "cpu":
        rows, columns, accumulate = rows.astype(jnp.float32), columns.astype(jnp.float32), jnp.float32
    y = jnp.matmul(rows, columns, preferred_element_type=accumulate).astype(jnp.float32)
    return (y * row_scales * column_scales).astype(x.dtype)


@matmul_8_bit.defjvp
def _no_gradient(kind, platform, primals, tangents):
    raise NotImplementedError(f"linear layers in {kind} have no gradient: they are for sampling")


def _rounded(x: Array, axis: int, kind: str) -> tuple[Array, Array]:
    """Values in 8 bits, and the scale of each slice along the axis: its largest value over that of the type."""
    dtype, largest = FORMATS[kind]
    x = x.astype(jnp.float32)
    scales = jnp.abs(x).max(axis, keepdims=True) / largest
    scales = jnp.where(scales == 0, 1.0, scales)
    x = x / scales
    return (jnp.round(x) if kind == "int8" else x).astype(dtype), scales
