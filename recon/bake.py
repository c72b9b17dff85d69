"""Colours of a surface as a texture."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from sv3d_jax.arrays import Float, Int
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.decimate import decimate
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.programs import kept_jit
from sv3d_jax.recon.capacity import padded
from sv3d_jax.recon.representations import ColorsAt
from sv3d_jax.recon.uv import check_texture_size, smooth_normals, unwrap
from sv3d_jax.render.rasterize import rasterize

CHUNK = 2**16


def textured(mesh: Mesh, colors_at: ColorsAt, texture_size: int = 2048, max_faces: int = 50_000) -> Mesh:
    """The mesh with at most `max_faces` faces and with a texture of the colours that `colors_at` gives."""
    check_texture_size(texture_size)
    unwrapped, _ = unwrap(decimate(mesh, max_faces), texture_size)
    texture = bake_texture(unwrapped, colors_at, texture_size)
    return replace(unwrapped, vertex_colors=None, texture=texture)


def bake_texture(
    mesh: Mesh, colors_at: ColorsAt, size: int, gutter: int = 4
) -> Float[np.ndarray, "size size 3"]:
    """The texture of a mesh with uv: at each texel the colour of the surface point at its centre, clipped to [0, 1].

    Up to `gutter` texels beyond the charts have the colour of the nearest texel inside, so that bilinear samples near
    a chart's border mix in no other colour; the rest has the mean colour. `colors_at` is always called with the same
    number of points and may be a compiled function. Raises InputError where there is no uv, or for a size that no
    texture can have.
    """
    check_texture_size(size)
    if mesh.uv is None:
        raise InputError("the mesh has no uv to bake a texture for", hint="unwrap it first")
    face_id, weights = _faces_at_texels(mesh, size)
    covered = face_id >= 0
    corners, weights = mesh.faces[face_id[covered]], weights[covered]
    surface = np.concatenate([mesh.vertices, smooth_normals(mesh)], axis=1)
    parts = [slice(first, first + CHUNK) for first in range(0, len(corners), CHUNK)]
    colors = [_evaluate(colors_at, surface, corners[part], weights[part]) for part in parts]
    colors = np.clip(np.concatenate(colors), 0.0, 1.0)
    texture = np.tile(colors.mean(axis=0, dtype=np.float64).astype(np.float32), (size, size, 1))
    texture[covered] = colors
    distance, nearest = ndimage.distance_transform_edt(~covered, return_indices=True)
    filled = ~covered & (distance <= gutter)
    texture[filled] = texture[tuple(nearest[:, filled])]
    return texture


def _faces_at_texels(mesh: Mesh, size: int) -> tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "h w 3"]]:
    """Face at each texel's centre, -1 where there is none, and the weights of its corners.

    A face that covers no texel centre gets the texel around its middle if that is free.
    """
    screen = np.stack([mesh.uv[:, 0] * size, (1.0 - mesh.uv[:, 1]) * size, np.ones(len(mesh.uv))], axis=1)
    screen = screen.astype(np.float32)
    face_id, weights = (np.array(x) for x in _rasterize(padded(screen), padded(mesh.faces), size=size))
    a, b, c = np.moveaxis(screen[mesh.faces, :2], 1, 0)
    area = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
    uncovered = np.setdiff1d(np.flatnonzero(area > 0), face_id)
    column, row = np.clip(((a + b + c)[uncovered] / 3).astype(int), 0, size - 1).T
    free = face_id[row, column] < 0
    face_id[row[free], column[free]] = uncovered[free]
    weights[row[free], column[free]] = 1 / 3
    return face_id, weights


@kept_jit
def _rasterize(screen, faces, *, size):
    fragments = rasterize(screen[None], jnp.asarray(faces), size, size)
    return fragments.face_id[0], fragments.barycentrics[0]


def _evaluate(colors_at: ColorsAt, surface, corners, weights) -> np.ndarray:
    """Colours of points on faces, `CHUNK` of them in each call; `surface` has vertices and their normals (v 6)."""
    rows = np.minimum(np.arange(CHUNK), len(corners) - 1)
    places = np.einsum("nk,nkc->nc", weights, surface[corners])[rows].astype(np.float32)
    points, normals = places[:, :3], places[:, 3:]
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return np.asarray(colors_at(points, normals), np.float32)[: len(corners)]
