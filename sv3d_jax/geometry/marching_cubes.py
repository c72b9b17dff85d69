"""Closed surfaces from sampled scalar fields (marching cubes)."""

import numpy as np

from sv3d_jax.errors import SV3DError


def extract_surface(field: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (v 3, float64, in units of samples) and faces (t 3) where the field (x y z) crosses `level`.

    The field is larger inside the surface, and counts as small outside the grid, so the surface is closed. Faces are
    counter-clockwise seen from outside. Enclosed cavities are filled. Raises SV3DError if the surface is empty.
    """
    from scipy import ndimage
    from skimage import measure

    inside = ndimage.binary_fill_holes(field > level)
    if not inside.any() or not np.isfinite(field).all():
        raise SV3DError(
            f"the surface is empty: the field lies between {field.min():.4g} and {field.max():.4g}"
            f" and nowhere exceeds the level {level:.4g}",
            hint="are the frames cut out (alpha or a white background), and do the cameras fit them?",
        )
    # Samples exactly at the level would give triangles without area.
    gap = 1e-3 * (abs(level) + 1e-6)
    signed = np.where(inside, np.maximum(field, level + gap), np.minimum(field, level - gap)) - level  # pyright: ignore[reportCallIssue]
    signed = np.pad(signed, 1, constant_values=-gap)
    # The classic algorithm (Lorensen): the default one makes edges with four faces in ambiguous cells of noisy fields.
    vertices, faces, _, _ = measure.marching_cubes(
        signed, 0.0, gradient_direction="ascent", method="lorensen"
    )
    return vertices.astype(np.float64) - 1.0, faces.astype(np.int32)


def keep_large_components(
    vertices: np.ndarray, faces: np.ndarray, min_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """The connected components with at least `min_share` of all faces; the largest one is always kept."""
    component = face_components(vertices, faces)
    sizes = np.bincount(component)
    return keep_faces(vertices, faces, sizes[component] >= min(min_share * len(faces), sizes.max()))


def face_components(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """For each face the number of its connected component."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_matrix((np.ones(len(edges), bool), tuple(edges.T)), shape=(len(vertices),) * 2)
    return connected_components(graph, directed=False)[1][faces[:, 0]]


def keep_faces(vertices: np.ndarray, faces: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The faces where `kept` is true, and the vertices that they use."""
    used, renumbered = np.unique(faces[kept], return_inverse=True)
    return vertices[used], renumbered.reshape(-1, 3).astype(np.int32)
