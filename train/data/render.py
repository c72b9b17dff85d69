"""Objects to pictures: orbits of any mesh, and batches of figures for training."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce

from sv3d_jax.arrays import Array, Float, UInt8
from sv3d_jax.cameras.pose import look_at
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.render.lighting import soft_light
from sv3d_jax.render.rasterize import project, visible_faces
from sv3d_jax.train.data.figures import MAX_TRIANGLES, figure_mesh

CAMERA_RADIUS = 2.0
FOV_DEG = 33.8
# The ball that no camera of any orbit clips has radius 2 sin(16.9 deg) = 0.5814.
OBJECT_RADIUS = 0.55


def object_to_world(mesh: Mesh) -> Float[np.ndarray, "4 4"]:
    """Moves the centre of the mesh's box to the origin and scales its farthest vertex to distance OBJECT_RADIUS."""
    used = mesh.vertices[np.unique(mesh.faces)]
    center = 0.5 * (used.min(axis=0) + used.max(axis=0))
    scale = OBJECT_RADIUS / max(np.linalg.norm(used - center, axis=1).max(), 1e-12)
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = -scale * center
    return matrix


class FigureBatch(NamedTuple):
    """Figures in the world, lit, padded to one number of triangles."""

    corners: Float[Array, "b t 3 3"]
    colors: Float[Array, "b t 3"]


def pack_figures(seeds) -> FigureBatch:
    """The figures with these seeds, each in the soft light of its own seed."""
    corners = np.zeros((len(seeds), MAX_TRIANGLES, 3, 3), np.float32)
    colors = np.zeros((len(seeds), MAX_TRIANGLES, 3), np.float32)
    for i, seed in enumerate(seeds):
        mesh = figure_mesh(int(seed))
        matrix = object_to_world(mesh)
        triangles = (mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3])[mesh.faces]
        normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        corners[i, : len(triangles)] = triangles
        colors[i, : len(triangles)] = (
            mesh.vertex_colors[mesh.faces[:, 0]] * soft_light(int(seed)).shade(normals)[:, None]
        )
    return FigureBatch(corners, colors)


def render_figures(
    figures: FigureBatch | list[int] | np.ndarray,
    azimuths_deg,
    elevations_deg,
    size: int,
    *,
    supersample: int = 2,
) -> UInt8[Array, "b f h w 3"]:
    """Pictures over white of each figure (a packed batch, or seeds) from its own cameras; angles are `b f`.

    Bit-equal to itself whatever else is in the batch; one compilation for each shape.
    """
    figures = figures if isinstance(figures, FigureBatch) else pack_figures(figures)
    azimuths, elevations = np.asarray(azimuths_deg, np.float64), np.asarray(elevations_deg, np.float64)
    batch, frames = azimuths.shape
    camera_to_world = look_at(azimuths.ravel(), elevations.ravel(), CAMERA_RADIUS).reshape(
        batch, frames, 4, 4
    )
    return _render_figures(figures, jnp.asarray(camera_to_world, jnp.float32), size, supersample)


@partial(jax.jit, static_argnames=("size", "supersample"))
def _render_figures(figures: FigureBatch, camera_to_world, size, supersample):
    batch, frames = camera_to_world.shape[:2]
    side = size * supersample
    focal_px = jnp.full((batch * frames, 2), 0.5 * side / np.tan(np.radians(FOV_DEG / 2)), jnp.float32)
    vertices = jnp.repeat(figures.corners.reshape(batch, -1, 3), frames, axis=0)
    screen = project(vertices, camera_to_world.reshape(-1, 4, 4), focal_px, jnp.full_like(focal_px, side / 2))
    faces = jnp.arange(screen.shape[1]).reshape(-1, 3)
    face_id = visible_faces(screen, faces, side, side, tile=8, cull_back=True)
    # Entry 0 is the background.
    palette = jnp.pad(figures.colors, ((0, 0), (1, 0), (0, 0)), constant_values=1.0)
    face_id = face_id.reshape(batch, -1)
    colors = jax.vmap(lambda table, index: table[index])(palette, face_id + 1)
    colors = colors.reshape(batch, frames, side, side, 3)
    pixels = reduce(colors, "b f (h s) (w r) c -> b f h w c", "mean", s=supersample, r=supersample)
    return jnp.round(255.0 * jnp.clip(pixels, 0.0, 1.0)).astype(jnp.uint8)
