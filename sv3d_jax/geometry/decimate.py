"""Mesh simplification by edge collapses."""

import warnings

import numpy as np

from sv3d_jax.arrays import Float, Int, Num
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh

# Weight of the distance to the original vertex, relative to that to the planes of its faces.
POINT_WEIGHT = 1e-4
MIN_COSINE = 0.2  # between a face's normals before and after a collapse
CHEAP_SHARE = 0.5  # share of all edges, cheapest first, that one round may collapse


def decimate(mesh: Mesh, max_faces: int) -> Mesh:
    """Simplify a mesh to at most `max_faces` faces; colours are dropped.

    Edges collapse to the point of least quadric error (Garland and Heckbert 1997). Each round collapses at once all
    edges that are cheaper than every edge in their neighbourhood. An edge is kept if its collapse would pinch the
    surface (link condition of Dey et al. 1999), flip a face or move a border, so closed surfaces stay closed. Warns if
    more than `max_faces` faces remain. Vertices at the same position are merged first. Raises InputError for
    `max_faces` below 4.
    """
    if max_faces < 4:
        raise InputError(f"a mesh needs at least 4 faces to be decimated to, got {max_faces}")
    if len(mesh.faces) <= max_faces:
        return mesh
    vertices, merged = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = merged.reshape(-1)[mesh.faces].astype(np.int64)
    faces = _with_three_corners(faces)
    center = vertices.mean(axis=0)  # quadrics lose digits far from the origin
    vertices = vertices - center
    quadrics = _vertex_quadrics(vertices, faces)
    refused = np.zeros(0, np.int64)
    while len(faces) > max_faces:
        edges = _collapsible_edges(faces, len(vertices))
        edges = edges[~np.isin(_keys(edges, len(vertices)), refused)]
        places, costs = _best_places(quadrics[edges[:, 0]] + quadrics[edges[:, 1]])
        chosen = _independent(edges, costs, len(vertices))[: (len(faces) - max_faces + 1) // 2]
        edges, places = edges[chosen], places[chosen]
        if not len(edges):
            warnings.warn(f"the mesh was decimated to {len(faces)} faces, not to {max_faces}", stacklevel=2)
            break
        turned = _turns_a_face(vertices, faces, edges, places)
        refused = np.union1d(refused, _keys(edges[turned], len(vertices)))
        (kept, gone), places = edges[~turned].T, places[~turned]
        vertices[kept] = places
        quadrics[kept] += quadrics[gone]
        successor = np.arange(len(vertices))
        successor[gone] = kept
        faces = _with_three_corners(successor[faces])
    used, faces = np.unique(faces, return_inverse=True)
    return Mesh(vertices[used] + center, faces.reshape(-1, 3).astype(np.int32))


def _with_three_corners(faces: Int[np.ndarray, "t 3"]) -> Int[np.ndarray, "k 3"]:
    first, second, third = faces.T  # compared one by one: numpy reduces an axis of three slowly
    return faces[(first != second) & (second != third) & (third != first)]


def _vertex_quadrics(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "t 3"]) -> np.ndarray:
    """Quadrics (v 4 4) of (x, y, z, 1): squared distances to the planes of each vertex's faces, weighted by area.

    A small weight on the distance to the vertex itself makes every quadric positive definite, and prefers short edges
    in flat regions.
    """
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    cross = np.cross(b - a, c - a)
    doubled_area = np.linalg.norm(cross, axis=1)
    normal = cross / np.where(doubled_area > 0, doubled_area, 1.0)[:, None]
    plane = np.column_stack([normal, -(normal * a).sum(axis=1)])
    of_face = doubled_area[:, None, None] * plane[:, :, None] * plane[:, None, :]
    area = np.full(len(vertices), 1e-12 * doubled_area.mean())
    quadrics = np.zeros((len(vertices), 4, 4))
    for corner in faces.T:
        np.add.at(quadrics, corner, of_face)
        np.add.at(area, corner, doubled_area)
    to_vertex = np.zeros_like(quadrics)
    to_vertex[:, :3, :3] = np.eye(3)
    to_vertex[:, :3, 3] = to_vertex[:, 3, :3] = -vertices
    to_vertex[:, 3, 3] = (vertices**2).sum(axis=1)
    return quadrics + POINT_WEIGHT * area[:, None, None] * to_vertex


def _collapsible_edges(faces: Int[np.ndarray, "t 3"], num_vertices: int) -> Int[np.ndarray, "e 2"]:
    """Edges whose collapse keeps the topology: not at borders, and satisfying the link condition.

    That is, the ends of the edge share no other neighbours than the opposite corners of its two faces.
    """
    from scipy.sparse import coo_matrix

    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    ends = np.stack([np.minimum(start, end), np.maximum(start, end)], axis=1)
    keys, count = np.unique(_keys(ends, num_vertices), return_counts=True)
    edges = np.stack([keys // num_vertices, keys % num_vertices], axis=1)
    fixed = np.zeros(num_vertices, bool)
    fixed[edges[count != 2]] = True
    pairs = np.concatenate([edges, edges[:, ::-1]])
    shape = (num_vertices, num_vertices)
    neighbours = coo_matrix((np.ones(len(pairs), np.int32), (pairs[:, 0], pairs[:, 1])), shape).tocsr()
    shared = neighbours[edges[:, 0]].multiply(neighbours[edges[:, 1]]).sum(axis=1)
    # Edges of a tetrahedron satisfy the link condition, but a collapse would leave two faces back to back.
    valence = np.diff(neighbours.indptr)[edges]
    linked = (np.asarray(shared).ravel() == 2) & (valence[:, 0] + valence[:, 1] > 6)
    return edges[linked & ~fixed[edges[:, 0]] & ~fixed[edges[:, 1]]]


def _best_places(quadrics: Float[np.ndarray, "e 4 4"]) -> tuple[np.ndarray, np.ndarray]:
    """The minimum of each quadric: position (e 3) and value (e)."""
    places = np.linalg.solve(quadrics[:, :3, :3], -quadrics[:, :3, 3:])[..., 0]
    return places, (quadrics[:, 3, :3] * places).sum(axis=1) + quadrics[:, 3, 3]


def _independent(
    edges: Int[np.ndarray, "e 2"], costs: Float[np.ndarray, "e"], num_vertices: int
) -> Int[np.ndarray, "k"]:
    """Indices of edges, cheapest first, that are cheapest among all edges at their ends and at their ends' neighbours.

    No face touches two of them, so they can be collapsed at the same time.
    """
    order = np.argsort(costs, kind="stable")
    rank = np.empty(len(edges), np.int64)
    rank[order] = np.arange(len(edges))
    lowest = np.full(num_vertices, len(edges))
    for end in edges.T:
        np.minimum.at(lowest, end, rank)
    around = lowest.copy()
    for end, other in (edges.T, edges.T[::-1]):
        np.minimum.at(around, end, lowest[other])
    cheap = order[: int(np.ceil(CHEAP_SHARE * len(edges)))]
    first, second = edges[cheap].T
    return cheap[(around[first] == rank[cheap]) & (around[second] == rank[cheap])]


def _turns_a_face(vertices, faces, edges, places) -> np.ndarray:
    """Whether collapsing each edge to its new position would flip or flatten an adjacent face (k, bool)."""
    owner = np.full(len(vertices), -1)
    owner[edges] = np.arange(len(edges))[:, None]
    touched = faces[(owner[faces] >= 0).sum(axis=1) == 1]  # faces with both ends disappear
    moved = owner[touched]
    before = vertices[touched]
    after = np.where(moved[..., None] >= 0, places[moved], before)
    old, new = (np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]) for c in (before, after))
    lengths = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    turned = np.zeros(len(edges), bool)
    turned[moved.max(axis=1)[(old * new).sum(axis=1) <= MIN_COSINE * lengths]] = True
    return turned


def _keys(edges: Num[np.ndarray, "e 2"], num_vertices: int) -> np.ndarray:
    return edges[:, 0] * num_vertices + edges[:, 1]
