"""Batches of procedural figures, rendered on the device for training."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, UInt8
from sv3d_jax.cameras.pose import SV3D_FOV_DEG, SV3D_RADIUS, intrinsics, look_at
from sv3d_jax.geometry.mesh import to_world
from sv3d_jax.render.antialias import box_filter
from sv3d_jax.render.lighting import soft_light
from sv3d_jax.render.orbit import to_uint8
from sv3d_jax.render.rasterize import project, visible_faces
from sv3d_jax.train.data.figures import MAX_TRIANGLES, figure_mesh


class FigureBatch(NamedTuple):
    """Lit triangles of figures in world coordinates, padded to the same number for each figure."""

    corners: Float[Array, "b t 3 3"]
    colors: Float[Array, "b t 3"]


def pack_figures(seeds: Any) -> FigureBatch:
    """The figures of these seeds, each lit by the soft light of its seed."""
    corners = np.zeros((len(seeds), MAX_TRIANGLES, 3, 3), np.float32)
    colors = np.zeros((len(seeds), MAX_TRIANGLES, 3), np.float32)
    for i, seed in enumerate(seeds):
        mesh = to_world(figure_mesh(int(seed)))
        triangles = mesh.vertices[mesh.faces]
        normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        shade = soft_light(int(seed)).shade(normals)
        corners[i, : len(triangles)] = triangles
        colors[i, : len(triangles)] = mesh.vertex_colors[mesh.faces[:, 0]] * shade[:, None]
    return FigureBatch(corners, colors)


def render_figures(
    figures: FigureBatch | Any, azimuths_deg: Any, elevations_deg: Any, size: int, *, supersample: int = 2
) -> UInt8[Array, "b f h w 3"]:
    """Views over white of figures (a packed batch, or their seeds), from the cameras with these angles (b, f).

    The same pictures as `render_orbit` of each figure in the soft light of its seed, but many times faster. Batches of
    the same shape share one compiled program.
    """
    figures = figures if isinstance(figures, FigureBatch) else pack_figures(figures)
    angles = np.asarray(azimuths_deg, np.float64), np.asarray(elevations_deg, np.float64)
    camera_to_world = look_at(*angles, SV3D_RADIUS)
    return _render_figures(
        figures, jnp.asarray(camera_to_world, jnp.float32), size=size, supersample=supersample
    )


@partial(jax.jit, static_argnames=("size", "supersample"))
def _render_figures(figures: FigureBatch, camera_to_world, *, size, supersample):
    batch, frames = camera_to_world.shape[:2]
    side = size * supersample
    focal, center = (jnp.tile(leaf, (batch * frames, 1)) for leaf in intrinsics(SV3D_FOV_DEG, side))
    vertices = jnp.repeat(figures.corners.reshape(batch, -1, 3), frames, axis=0)
    screen = project(vertices, camera_to_world.reshape(-1, 4, 4), focal.astype(jnp.float32), center)
    faces = jnp.arange(3 * MAX_TRIANGLES).reshape(-1, 3)
    face_id = visible_faces(screen, faces, side, side, tile=8, cull_back=True)
    # Entry 0 is the background.
    palette = jnp.pad(figures.colors, ((0, 0), (1, 0), (0, 0)), constant_values=1.0)
    colors = jax.vmap(lambda table, index: table[index])(palette, face_id.reshape(batch, -1) + 1)
    pixels = box_filter(colors.reshape(batch * frames, side, side, 3), supersample)
    return to_uint8(pixels).reshape(batch, frames, size, size, 3)
