"""Colour and alpha at any point of a mesh: vertex colours times texture, in linear light."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Bool, Float, Int, Num
from sv3d_jax.colors import linear_from_srgb, srgb_from_linear
from sv3d_jax.geometry.mesh import BLEND, CLAMP, OPAQUE, REPEAT, Mesh
from sv3d_jax.render.texture import bilinear_taps


class Appearance(NamedTuple):
    """The colours of a mesh, as arrays for the device; parts that the mesh does not have are None."""

    vertex_colors: Float[Array, "v 3"] | None  # in linear light
    vertex_alpha: Float[Array, "v"] | None
    uv: Float[Array, "v 2"] | None
    texture: Num[Array, "h w 3"] | None  # float: linear light; uint8: display values
    texture_alpha: Num[Array, "h w"] | None  # uint8
    # This and the following are as in `Materials`; None: all faces have one material.
    of_face: Int[Array, "t"] | None
    region: Int[Array, "k 4"] | None
    wrap: Int[Array, "k 2"] | None
    nearest: Bool[Array, "k"] | None
    cutoff: Float[Array, "k"] | None
    one_sided: Bool[Array, "k"] | None

    @property
    def see_through(self) -> bool:
        """Whether the mesh has an alpha that is not ignored."""
        return self.vertex_alpha is not None or self.texture_alpha is not None


def appearance_of(mesh: Mesh) -> Appearance:
    """The colours of a mesh, as numpy arrays."""
    uv, texture, materials = mesh.uv, mesh.texture, mesh.materials
    if uv is None or texture is None:
        uv = texture = None
    elif texture.dtype != np.uint8:
        texture = linear_from_srgb(np.asarray(texture, np.float32))
    colors = (
        None if mesh.vertex_colors is None else linear_from_srgb(np.asarray(mesh.vertex_colors, np.float32))
    )
    if materials is None:
        if texture is None:
            return Appearance(colors, *[None] * 10)
        height, width = texture.shape[:2]
        region, wrap = np.array([[0, 0, width, height]], np.int32), np.full((1, 2), CLAMP, np.int32)
        no, cutoff = np.zeros(1, bool), np.full(1, OPAQUE, np.float32)
        return Appearance(colors, None, uv, texture, None, None, region, wrap, no, cutoff, no)
    m = materials
    drawn = m.of_face, m.region, m.wrap, m.nearest, m.cutoff, m.one_sided
    return Appearance(colors, m.vertex_alpha, uv, texture, m.texture_alpha, *drawn)


def seen_colors(
    look: Appearance,
    faces: Int[Array, "t 3"],
    face_id: Int[Array, "*n"],
    weights: Float[Array, "*n 3"],
    from_behind: Bool[Array, "*n"] | None = None,
) -> tuple[Float[Array, "*n 3"], Float[Array, "*n"]]:
    """sRGB colour and alpha of points on faces, given by barycentric weights.

    Alpha is 1 on opaque faces, and 0 or 1 where a material has a cutoff. It is 0 where a face of a one-sided material
    is seen `from_behind`. Negative face ids are treated as face 0.
    """
    look, faces = jax.tree.map(jnp.asarray, (look, faces))
    face_id, weights = jnp.maximum(face_id, 0), jnp.asarray(weights)
    corners = faces[face_id]

    def mix(values):
        return sum(weights[..., i, None] * values[corners[..., i]] for i in range(3))

    color, alpha = jnp.ones((*face_id.shape, 3)), jnp.ones(face_id.shape)
    if look.vertex_colors is not None:
        color = mix(look.vertex_colors)
    if look.vertex_alpha is not None:
        alpha = mix(look.vertex_alpha[:, None])[..., 0]
    material = jnp.zeros_like(face_id) if look.of_face is None else look.of_face[face_id]
    if look.texture is not None:
        texel, texel_alpha = _texels(look, material, mix(look.uv))
        color = color * texel
        alpha = alpha * texel_alpha
    if look.see_through:
        cutoff = look.cutoff[material]
        # Weights add up to 1 only up to rounding, which must not cut holes.
        alpha = jnp.where(cutoff == BLEND, alpha, (alpha >= cutoff - 1e-4).astype(alpha.dtype))
        if from_behind is not None:
            alpha = jnp.where(look.one_sided[material] & from_behind, 0.0, alpha)
    else:
        alpha = jnp.ones(face_id.shape)
    return srgb_from_linear(jnp.clip(color, 0.0, 1.0)), alpha


def _texels(look: Appearance, material: Int[Array, "*n"], uv: Float[Array, "*n 2"]):
    """Linear colour and alpha of the texture; white and 1 for materials without a texture."""
    region, wrap = look.region[material], look.wrap[material]
    left, top, width, height = (region[..., i] for i in range(4))
    sharp = look.nearest[material]
    levels = linear_from_srgb(jnp.arange(256, dtype=jnp.float32) / 255.0)

    color, alpha = 0.0, 0.0
    for column, row, weight in bilinear_taps(uv, width, height, sharp):
        column = left + _wrapped(column, width, wrap[..., 0])
        row = top + _wrapped(row, height, wrap[..., 1])
        texel = look.texture[row, column]
        texel = levels[texel] if texel.dtype == jnp.uint8 else texel
        color = color + weight[..., None] * texel
        if look.texture_alpha is not None:
            alpha = alpha + weight * (look.texture_alpha[row, column].astype(jnp.float32) / 255.0)
    empty = width == 0
    alpha = jnp.ones(empty.shape) if look.texture_alpha is None else jnp.where(empty, 1.0, alpha)
    return jnp.where(empty[..., None], 1.0, color), alpha


def _wrapped(index: Int[Array, "*n"], size: Int[Array, "*n"], way: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Texel indices brought into [0, size) by the wrap mode."""
    size = jnp.maximum(size, 1)
    twice = _remainder(index, 2 * size)
    mirrored = jnp.where(twice < size, twice, 2 * size - 1 - twice)
    repeated = jnp.where(way == REPEAT, _remainder(index, size), mirrored)
    return jnp.where(way == CLAMP, jnp.clip(index, 0, size - 1), repeated)


def _remainder(index: Int[Array, "*n"], size: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """`index % size` by float32: a CPU has no vector instruction for the remainder of integers.

    Exact up to an index of 2^24, beyond which neighbouring float32 texture coordinates are texels apart.
    """
    n, d = index.astype(jnp.float32), size.astype(jnp.float32)
    rest = n - jnp.floor(n / d) * d
    rest = jnp.where(rest < 0, rest + d, jnp.where(rest >= d, rest - d, rest))  # the quotient was rounded
    return jnp.clip(rest.astype(jnp.int32), 0, size - 1)
