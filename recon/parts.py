"""Loose parts of a mesh that only the masks ask for."""

import jax
import numpy as np

from sv3d_jax.arrays import Array, Float, Int
from sv3d_jax.geometry.marching_cubes import face_components, keep_faces
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.programs import kept_jit
from sv3d_jax.recon.views import HOLE_WEIGHT, Cameras, Views
from sv3d_jax.render.rasterize import project, visible_faces

MIN_SHOWN = 0.1  # share of a part's visible pixels that must show something of it


def without_white_parts(mesh: Mesh, views: Views) -> Mesh:
    """The mesh without loose parts that are as white as the background in all views; the largest part is kept.

    Such a part changes no picture. It comes of masks that are taken from white: a hole of the object is filled in them,
    since it may be a white part of it (`masks_from_white`).
    """
    part = np.unique(face_components(mesh.vertices, mesh.faces), return_inverse=True)[1]
    if not part.any():
        return mesh
    vertices, faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)
    face = np.asarray(_visible(vertices, faces, views.cameras, size=views.masks.shape[1:]))
    is_sure = (views.mask_weights > HOLE_WEIGHT) & (face >= 0)  # neither a hole nor a silhouette
    is_hole = (views.mask_weights > 0) & (views.mask_weights <= HOLE_WEIGHT) & (face >= 0)
    shown = is_sure & (views.masks > 0.5)
    counts = [
        np.bincount(part[face[pixels]], minlength=part.max() + 1) for pixels in (shown, is_sure | is_hole)
    ]
    kept = counts[0] >= MIN_SHOWN * counts[1]
    kept[np.argmax(np.bincount(part))] = True
    return Mesh(*keep_faces(mesh.vertices, faces, kept[part]))


@kept_jit
def _visible(
    vertices: Float[Array, "v 3"], faces: Int[Array, "t 3"], cameras: Cameras, *, size: tuple[int, int]
) -> Int[Array, "f h w"]:
    def one_view(camera):
        screen = project(vertices, *(value[None] for value in camera))
        return visible_faces(screen, faces, *size)[0]

    return jax.lax.map(one_view, cameras)
