"""Texels of a texture and their bilinear weights."""

from collections.abc import Iterator

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Bool, Float, Int


def bilinear_taps(
    uv: Float[Array, "*n 2"],
    width: Int[Array, "*n"],
    height: Int[Array, "*n"],
    nearest: Bool[Array, "*n"] = False,
) -> Iterator[tuple[Int[Array, "*n"], Int[Array, "*n"], Float[Array, "*n"]]]:
    """Column, row and weight of the four texels around uv; columns and rows may lie beyond the texture's edges.

    Where `nearest`, the texel that contains uv has all the weight.
    """
    column, row = uv[..., 0] * width, (1.0 - uv[..., 1]) * height
    left, top = jnp.floor(column - 0.5), jnp.floor(row - 0.5)
    across, down = column - 0.5 - left, row - 0.5 - top
    across, down = (jnp.where(nearest, (share >= 0.5) * 1.0, share) for share in (across, down))
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (across if right else 1.0 - across) * (down if below else 1.0 - down)
        yield (left + right).astype(jnp.int32), (top + below).astype(jnp.int32), weight
