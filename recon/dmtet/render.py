"""Pictures of a surface in the colours of a field and in a light, with gradients in all three."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Bool, Float, Int, Params
from sv3d_jax.recon.representations import ColorField
from sv3d_jax.recon.views import Cameras
from sv3d_jax.render.antialias import Edges, antialias
from sv3d_jax.render.interpolate import interpolate, seen_shading_normals, vertex_normals
from sv3d_jax.render.lighting import SGLight
from sv3d_jax.render.rasterize import project, rasterize


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
    fragments = rasterize(screen, faces, *size, cull_back=True)
    is_covered = fragments.face_id >= 0
    points = interpolate(vertices, faces, fragments)
    normals = seen_shading_normals(vertex_normals(vertices, faces), faces, fragments)

    (pixel,) = jnp.nonzero(is_covered.ravel(), size=max_pixels, fill_value=is_covered.size)
    point, normal = (x.reshape(-1, 3).at[pixel].get(mode="fill", fill_value=0.0) for x in (points, normals))

    def picture(values):
        flat = jnp.zeros((is_covered.size, *values.shape[1:])).at[pixel].set(values, mode="drop")
        return flat.reshape(*is_covered.shape, *values.shape[1:])

    albedo = picture(color(params["field"], point))
    shading, gradient_only = (picture(values) for values in _shadings(params["light"], normal))
    covered = is_covered.astype(jnp.float32)
    buffers = jnp.concatenate([albedo * (shading + gradient_only)[..., None], covered[..., None]], axis=-1)
    buffers = antialias(buffers, fragments, screen, faces, edges)
    lit, opacity = buffers[..., :3], buffers[..., 3]
    image = lit + 1.0 - opacity[..., None]
    overflow = is_covered.sum() > max_pixels
    return Rendered(image, opacity, shading, points, normals, albedo, fragments.depth, covered, overflow)


def _shadings(light: SGLight | None, normals: Float[Array, "n 3"]) -> tuple[Array, Array]:
    """Returns (shading detached from normals, a zero-valued straight-through term that carries d shading/d normals).

    Their sum is the shading with its full gradient, for the losses on pictures. The losses on the light take the first
    alone: what they take for shading may be albedo, and must not change the surface.
    """
    if light is None:
        return jnp.ones(len(normals)), jnp.zeros(len(normals))
    # Computing it again is faster than keeping it.
    shading = jax.checkpoint(jax.lax.stop_gradient(light).shade)(normals)
    return light.shade(jax.lax.stop_gradient(normals)), shading - jax.lax.stop_gradient(shading)
