"""Pictures on surfaces."""

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float


def sample_bilinear(texture: Float[Array, "h w c"], uv: Float[Array, "*n 2"]) -> Float[Array, "*n c"]:
    """Colour of the texture at uv, clamped to the texels at its edge.

    Row 0 is on top and the origin of uv at the bottom left: texel (r, c) has its centre at
    u = (c + 0.5) / w, v = 1 - (r + 0.5) / h.
    """
    height, width = texture.shape[:2]
    column = jnp.clip(uv[..., 0] * width - 0.5, 0.0, width - 1.0)
    row = jnp.clip((1.0 - uv[..., 1]) * height - 0.5, 0.0, height - 1.0)
    left, top = jnp.floor(column).astype(jnp.int32), jnp.floor(row).astype(jnp.int32)
    right, bottom = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
    across, down = (column - left)[..., None], (row - top)[..., None]
    upper = (1.0 - across) * texture[top, left] + across * texture[top, right]
    lower = (1.0 - across) * texture[bottom, left] + across * texture[bottom, right]
    return (1.0 - down) * upper + down * lower
