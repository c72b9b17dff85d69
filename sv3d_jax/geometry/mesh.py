"""The triangle mesh that all parts of the package use, and its normalized placement in the world."""

from dataclasses import dataclass, replace

import numpy as np

REPEAT, CLAMP, MIRROR = 0, 1, 2  # wrap modes of textures
OPAQUE, BLEND = -1.0, 0.0  # special values of `Materials.cutoff`
OBJECT_RADIUS = 0.55  # no view of any orbit clips the ball of radius 2 sin(16.9 deg) = 0.5814


@dataclass(frozen=True, eq=False)
class Materials:
    """Materials of faces that share one texture atlas; not needed if all faces use the whole texture and are opaque.

    Face f has the material k = of_face[f]. Its texture is the region of the atlas that starts at column region[k, 0]
    and row region[k, 1] and is region[k, 2] texels wide and region[k, 3] high; uv (0, 0) is the bottom left of the
    region, and wrap[k] are the wrap modes along u and v. A width of 0 means white.
    """

    of_face: np.ndarray  # int32 t
    region: np.ndarray  # int32 k 4
    wrap: np.ndarray  # int32 k 2: REPEAT, CLAMP or MIRROR
    nearest: np.ndarray  # bool k: nearest-neighbour instead of bilinear filtering
    # float32 k: holes where alpha is less; or OPAQUE (alpha is ignored) or BLEND (composited)
    cutoff: np.ndarray
    one_sided: np.ndarray  # bool k: with BLEND, back faces are not drawn
    vertex_alpha: np.ndarray | None = None  # float32 v in [0, 1]
    texture_alpha: np.ndarray | None = None  # uint8 h w


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh, coloured by vertex colours, a texture, the product of both, or white.

    Colours are sRGB; they are multiplied and interpolated in linear light. Without `materials`, all faces use the whole
    texture, clamped at its edges.
    """

    vertices: np.ndarray  # float64, v 3
    faces: np.ndarray  # int32, t 3, counter-clockwise from outside
    vertex_colors: np.ndarray | None = None  # float32, v 3, in [0, 1]
    uv: np.ndarray | None = None  # float32, v 2, origin at the bottom left
    texture: np.ndarray | None = None  # h w 3, row 0 on top, float32 in [0, 1] or uint8
    # For shading, float32, v 3. Zeros mean flat shading; None means smooth shading by area-weighted face normals.
    normals: np.ndarray | None = None
    materials: Materials | None = None
    remarks: tuple[str, ...] = ()  # what was approximated or skipped when the mesh was read from a file


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (v 3) of vertices: the mean of their faces' normals, weighted by area; the renderer's default.

    A vertex without faces, or whose faces have no area, gets +z.
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
