"""Pictures of a surface in the colours of a field and in a light, with gradients in all three."""

from typing import NamedTuple

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Bool, Float, Int, Params
from sv3d_jax.recon.representations import ColorField
from sv3d_jax.recon.views import Cameras
from sv3d_jax.render.antialias import Edges, antialias
from sv3d_jax.render.interpolate import interpolate, seen_shading_normals, vertex_normals
from sv3d_jax.render.lighting import SGLight
from sv3d_jax.render.pixels import CoveredPixels
from sv3d_jax.render.rasterize import Fragments, project, visible_faces


class Rendered(NamedTuple):
    """What views show of a mesh; all but the first two are without antialiasing, and 0 on the background."""

    image: Float[Array, "f h w 3"]  # lit, over white
    opacity: Float[Array, "f h w"]
    shading: Float[Array, "f h w"]  # without gradient in the surface
    points: Float[Array, "f h w 3"]
    normals: Float[Array, "f h w 3"]
    albedo: Float[Array, "f h w 3"]
    depth: Float[Array, "f h w"]
    covered: Float[Array, "f h w"]
    overflow: Bool[
        Array, ""
    ]  # the object covers more pixels than the capacity; those beyond it have no colour


def render_surface(
    color: ColorField,
    params: Params,
    vertices: Float[Array, "v 3"],
    faces: Int[Array, "t 3"],
    edges: Edges,
    cameras: Cameras,
    size: tuple[int, int],
    max_pixels: int,
) -> Rendered:
    """The surface as the cameras see it, in the colours of the field and in the light; size is (h, w).

    `params` has the entries "field", the parameters of `color`, and "light"; `edges` are those of the surface. Colours
    and light are computed at the pixels that the object covers, at most `max_pixels` in all views together.
    """
    screen = project(vertices, *cameras)
    face_id = visible_faces(screen, faces, *size, cull_back=True)
    pixels = CoveredPixels.of(face_id >= 0, max_pixels)
    fragments = pixels.fragments(screen, faces, face_id)
    points = interpolate(vertices, faces, fragments)
    normals = seen_shading_normals(vertex_normals(vertices, faces), faces, fragments)
    albedo = color(params["field"], points)
    shading, of_normals = _shadings(params["light"], normals)
    lit = albedo * (shading + of_normals)[:, None]

    lit, shading, points, normals, albedo, (_, *shown) = pixels.pictures(
        (lit, shading, points, normals, albedo, fragments)
    )
    fragments = Fragments(face_id, *shown)
    covered = (face_id >= 0).astype(jnp.float32)
    over_white = lit + (1.0 - covered)[..., None]
    buffers = jnp.concatenate([over_white, covered[..., None]], axis=-1)
    buffers = antialias(buffers, fragments, screen, faces, edges)
    image, opacity = buffers[..., :3], buffers[..., 3]
    return Rendered(
        image, opacity, shading, points, normals, albedo, fragments.depth, covered, pixels.overflow
    )


def _shadings(light: SGLight | None, normals: Float[Array, "n 3"]) -> tuple[Array, Array]:
    """The shading without gradient in the normals, and zeros that have that gradient alone.

    Their sum is the shading with its full gradient, for the losses on pictures. The losses on the light take the first
    alone: what they take for shading may be albedo, and must not change the surface.
    """
    if light is None:
        return jnp.ones(len(normals)), jnp.zeros(len(normals))
    return light.shade_in_parts(normals)
