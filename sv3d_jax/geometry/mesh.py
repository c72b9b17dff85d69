"""The triangle mesh that every area passes around."""

from dataclasses import dataclass, replace

import numpy as np

REPEAT, CLAMP, MIRROR = 0, 1, 2  # what a texture shows beyond its edges
OPAQUE, BLEND = -1.0, 0.0  # in place of a cutoff
OBJECT_RADIUS = 0.55  # no view of any orbit clips the ball of radius 2 sin(16.9 deg) = 0.5814


@dataclass(frozen=True, eq=False)
class Materials:
    """How the faces of a mesh use its texture, where not all of them show the whole of it once and are opaque.

    Face f has the material k = of_face[f], and sees the part of the texture that starts at column region[k, 0] and row
    region[k, 1] and is region[k, 2] texels wide and region[k, 3] high, beyond its edges as wrap[k] says along u and v;
    uv (0, 0) is the bottom left of that part. A width of 0 stands for white.
    """

    of_face: np.ndarray  # int32 t
    region: np.ndarray  # int32 k 4
    wrap: np.ndarray  # int32 k 2: REPEAT, CLAMP or MIRROR
    nearest: np.ndarray  # bool k: texels with hard edges instead of bilinear ones
    cutoff: np.ndarray  # float32 k: holes where alpha is less; OPAQUE: it is ignored, BLEND: composited
    one_sided: np.ndarray  # bool k: not seen from behind; of those that are composited
    vertex_alpha: np.ndarray | None = None  # float32 v in [0, 1]
    texture_alpha: np.ndarray | None = None  # uint8 h w


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with colours per vertex, or a texture with uv per vertex, or the product of both, or white.

    Arrays are numpy: vertices float64 `v 3`, faces int32 `t 3` counter-clockwise from outside, vertex_colors float32
    `v 3` in [0, 1], uv float32 `v 2` with the origin at the bottom left, texture `h w 3` with row 0 on top, float32 in
    [0, 1] or uint8. Colours are display values (sRGB); they are multiplied and interpolated in linear light. Without
    `materials`, all faces show the texture as it is, clamped at its edges. normals float32 `v 3` are for shading: a
    row of zeros stands for the normal of each face itself, None for the mean of the faces around each vertex.
    `remarks` say what of a file was approximated or skipped.
    """

    vertices: np.ndarray
    faces: np.ndarray
    vertex_colors: np.ndarray | None = None
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None
    normals: np.ndarray | None = None
    materials: Materials | None = None
    remarks: tuple[str, ...] = ()


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (v 3) of vertices (v 3): the normals of their faces (t 3), weighted by area.

    These are the normals that the renderer shades with. A vertex without faces, or with faces of no area, gets +z.
    """
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    area_vectors = np.cross(b - a, c - a)
    total = np.zeros(vertices.shape)
    for corner in faces.T:
        np.add.at(total, corner, area_vectors)
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(lengths > 0, total / np.where(lengths > 0, lengths, 1.0), [0.0, 0.0, 1.0])


def object_to_world(mesh: Mesh) -> np.ndarray:
    """The matrix (4, 4) that places an object where SV3D's cameras see all of it.

    The centre of its bounding box moves to the origin, its farthest vertex to distance OBJECT_RADIUS.
    """
    used = mesh.vertices[np.unique(mesh.faces)]
    center = 0.5 * (used.min(axis=0) + used.max(axis=0))
    scale = OBJECT_RADIUS / np.linalg.norm(used - center, axis=1).max()
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = -scale * center
    return matrix


def to_world(mesh: Mesh) -> Mesh:
    """The mesh centred and scaled by `object_to_world`."""
    return moved(mesh, object_to_world(mesh))


def moved(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    """The mesh scaled and shifted by a matrix (4, 4) without rotation; normals stay as they are."""
    return replace(mesh, vertices=mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3])
