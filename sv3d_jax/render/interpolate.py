"""Vertex attributes and normals interpolated at pixels."""

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, Int
from sv3d_jax.render.rasterize import Fragments


def interpolate(
    attributes: Float[Array, "v c"], faces: Int[Array, "t 3"], fragments: Fragments
) -> Float[Array, "n h w c"]:
    """Vertex attributes interpolated at each pixel by its barycentrics."""
    corners = faces[jnp.maximum(fragments.face_id, 0)]
    weights = fragments.barycentrics
    return sum(weights[..., i, None] * attributes[corners[..., i]] for i in range(3))


def face_normals(vertices: Float[Array, "v 3"], faces: Int[Array, "t 3"]) -> Float[Array, "t 3"]:
    """Unit normals of faces, outward if counter-clockwise seen from outside; 0 for faces without area."""
    return _normalize(_area_vectors(vertices, faces))


def vertex_normals(vertices: Float[Array, "v 3"], faces: Int[Array, "t 3"]) -> Float[Array, "v 3"]:
    """Unit vertex normals: the area-weighted mean of the adjacent faces' normals."""
    area_vectors = jnp.repeat(_area_vectors(vertices, faces), 3, axis=0)
    return _normalize(jnp.zeros_like(vertices).at[faces.ravel()].add(area_vectors))


def seen_shading_normals(
    normals: Float[Array, "v 3"], faces: Int[Array, "t 3"], fragments: Fragments
) -> Float[Array, "n h w 3"]:
    """Interpolated and renormalized vertex normals at each pixel; 0 on the background."""
    return _normalize(interpolate(normals, faces, fragments))


def _area_vectors(vertices, faces):
    first, second, third = (vertices[faces[:, i]] for i in range(3))
    return jnp.cross(second - first, third - first)


def _normalize(vectors: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    squared = (vectors**2).sum(-1, keepdims=True)
    # The inner where keeps the gradient of the square root finite at 0.
    return jnp.where(squared > 0, vectors / jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
