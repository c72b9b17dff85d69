"""What a mesh shows at points of its surface, in its plain form."""

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, Int
from sv3d_jax.render.interpolate import face_normals
from sv3d_jax.render.rasterize import Fragments
from sv3d_jax.render.texture import bilinear_taps


def seen_face_normals(
    vertices: Float[Array, "v 3"], faces: Int[Array, "t 3"], fragments: Fragments
) -> Float[Array, "n h w 3"]:
    """Unit normal of the face at each pixel; 0 on the background."""
    normals = face_normals(vertices, faces)[jnp.maximum(fragments.face_id, 0)]
    return jnp.where(fragments.face_id[..., None] >= 0, normals, 0.0)


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
