"""Bilinear texture sampling."""

from collections.abc import Iterator

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Bool, Float, Int


def sample_bilinear(texture: Float[Array, "h w c"], uv: Float[Array, "*n 2"]) -> Float[Array, "*n c"]:
    """Colour of the texture at uv, bilinear, clamped at its edges.

    Row 0 is on top and the origin of uv at the bottom left: texel (r, c) has its centre at
    u = (c + 0.5) / w, v = 1 - (r + 0.5) / h.
    """
    height, width = texture.shape[:2]
    taps = bilinear_taps(uv, width, height)
    return sum(
        weight[..., None] * texture[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
        for column, row, weight in taps
    )


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
