"""From signed distances on a grid of tetrahedra to a triangle mesh, and back.

`marching_tets` is DMTet's differentiable extraction (Shen et al. 2021): every edge of the grid with one end inside
carries a vertex of the mesh, every tetrahedron with corners on both sides has one or two triangles. All shapes are
static. `signed_distance` gives the distances to a mesh, with which the fit starts.
"""

from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Bool, Float, Int
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.programs import kept_jit
from sv3d_jax.recon.dmtet.tets import TetGrid

# Least difference of the distances at the ends of an edge. The gradient has its square in the denominator.
MIN_DIFFERENCE = 1e-12
CHUNK = 2**12  # points whose distances are computed at a time

# Triangles by which of a tetrahedron's vertices are inside (bit i: vertex i), as rows of TET_EDGES,
# counter-clockwise from outside. The other eight cases are these turned inside out.
_HALF_TABLE = (
    (),
    ((0, 1, 2),),
    ((0, 4, 3),),
    ((1, 2, 4), (1, 4, 3)),
    ((5, 1, 3),),
    ((0, 3, 5), (0, 5, 2)),
    ((0, 5, 1), (0, 4, 5)),
    ((2, 4, 5),),
)
_TABLE = _HALF_TABLE + tuple(tuple(t[::-1] for t in triangles) for triangles in _HALF_TABLE[::-1])
NUM_TRIANGLES = np.array([len(triangles) for triangles in _TABLE], np.int32)
TRIANGLES = np.array([(*triangles, (0, 0, 0), (0, 0, 0))[:2] for triangles in _TABLE], np.int32)


@dataclass(frozen=True)
class Capacity:
    """Rows of the mesh's arrays, used or not."""

    vertices: int
    faces: int

    def __post_init__(self):
        if min(self.vertices, self.faces) < 1:
            raise ValueError(f"a capacity holds at least one vertex and one face, got {self}")

    def doubled_for(self, surface: "Surface") -> "Capacity":
        """Doubled, either number on its own, until the whole surface fits."""
        vertices, faces = self.vertices, self.faces
        while vertices < surface.num_vertices:
            vertices *= 2
        while faces < surface.num_faces:
            faces *= 2
        return Capacity(vertices, faces)


class Surface(NamedTuple):
    """A triangle mesh in arrays of static length; unused vertices and faces are zeros.

    `num_vertices` and `num_faces` count the whole mesh, also where it exceeds the capacity (`overflow`). Then arrays
    hold a part of it, with faces whose vertices are missing, and are of no use: extract again with
    `capacity.doubled_for(surface)`.
    """

    vertices: Float[Array, "v 3"]
    faces: Int[Array, "t 3"]  # counter-clockwise from outside
    edges: Int[Array, "v 2"]  # the grid vertices between which each vertex lies, lower first, sorted
    num_vertices: Int[Array, ""]
    num_faces: Int[Array, ""]
    overflow: Bool[Array, ""]


def extract(
    grid: TetGrid, positions: Float[Array, "n 3"], sdf: Float[Array, "n"], capacity: Capacity
) -> tuple[Surface, Capacity]:
    """The whole surface, and the capacity that it was extracted with: the given one, doubled until it suffices.

    Not for use under jit, where shapes cannot depend on the data.
    """
    surface = _marching_tets(grid, positions, sdf, capacity=capacity)
    if surface.overflow:
        capacity = capacity.doubled_for(surface)
        surface = _marching_tets(grid, positions, sdf, capacity=capacity)
    return surface, capacity


def marching_tets(
    grid: TetGrid, positions: Float[Array, "n 3"], sdf: Float[Array, "n"], capacity: Capacity
) -> Surface:
    """The zero level set of the signed distances at the grid's displaced vertices; sdf < 0 is inside, 0 is outside.

    Differentiable in positions and sdf; the backward pass uses only arrays of the capacity's size. `capacity` is
    static. The surface is open where it meets the border of the grid.
    """
    inside = sdf < 0
    is_cut = inside[grid.edges[:, 0]] != inside[grid.edges[:, 1]]
    edge, _, last_vertex = _enumerate(is_cut.astype(jnp.int32), capacity.vertices)
    # Corner by corner: on a CPU ten times as fast as one gather and a sum.
    case = sum(inside[grid.tets[:, corner]].astype(jnp.int32) << corner for corner in range(4))
    tet, number, last_face = _enumerate(jnp.asarray(NUM_TRIANGLES)[case], capacity.faces)
    num_vertices, num_faces = last_vertex[-1], last_face[-1]

    has_vertex = (jnp.arange(capacity.vertices) < num_vertices)[:, None]
    edges = jnp.where(has_vertex, grid.edges[edge], 0)
    # Unused rows interpolate between valid numbers, or their gradient would be 0 / 0.
    distances = jnp.where(has_vertex, sdf[edges], np.array([-1.0, 1.0], np.float32))
    vertices = jnp.where(has_vertex, _zero_crossings(positions[edges], distances), 0.0)

    has_face = (jnp.arange(capacity.faces) < num_faces)[:, None]
    sides = jnp.asarray(TRIANGLES)[case[tet], number]
    faces = jnp.where(has_face, last_vertex[grid.tet_edges[tet[:, None], sides]] - 1, 0)
    overflow = (num_vertices > capacity.vertices) | (num_faces > capacity.faces)
    return Surface(vertices, faces, edges, num_vertices, num_faces, overflow)


_marching_tets = kept_jit(marching_tets)


def deform(vertices: Float[Array, "n 3"], offsets: Float[Array, "n 3"], cells: int) -> Float[Array, "n 3"]:
    """Vertices of a grid of `cells`^3 cubes, moved along each axis by tanh(offset) times half a cube."""
    return vertices + jnp.tanh(offsets) / cells


def signed_distance(
    mesh: Mesh, grid_vertices: Float[np.ndarray, "n 3"], truncate: float
) -> Float[np.ndarray, "n"]:
    """Distance to a closed mesh, negative inside, cut off at `truncate` on both sides (float32).

    `grid_vertices` are all vertices of a `kuhn_grid`, under any axis-aligned affine map. Exact up to rounding. Inside
    is where the faces' winding number is not 0, so parts may overlap and either orientation will do.
    """
    side = round(len(grid_vertices) ** (1 / 3))
    points = np.asarray(grid_vertices, np.float64)
    lattice = points.reshape(side, side, side, 3)
    axes = lattice[:, 0, 0, 0], lattice[0, :, 0, 1], lattice[0, 0, :, 2]
    triangles = mesh.vertices[mesh.faces].astype(np.float64)
    distance = _truncated_distance(triangles, points, truncate)
    return np.where(_winding(triangles, axes).ravel() != 0, -distance, distance).astype(np.float32)


def _enumerate(counts: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Expands counts to (owner, index within owner) for the first `size` items (`repeat` with static size).

    Also the running sum of the counts. By binary search, which beats a scatter from all owners by far.
    """
    ends = jnp.cumsum(counts)
    items = jnp.arange(size)
    owner = jnp.minimum(jnp.searchsorted(ends, items, side="right"), len(counts) - 1)
    return owner, jnp.where(items < ends[-1], items - ends[owner] + counts[owner], 0), ends


def _zero_crossings(ends: jax.Array, distances: jax.Array) -> jax.Array:
    """Where between two ends (v 2 3) the linear distance (v 2), of which one is negative, is 0."""
    first, second = distances[:, 0], distances[:, 1]
    sign = jnp.where(first < 0, -1.0, 1.0)
    share = sign * first / jnp.maximum(sign * (first - second), MIN_DIFFERENCE)
    return ends[:, 0] + share[:, None] * (ends[:, 1] - ends[:, 0])


def _truncated_distance(triangles: np.ndarray, points: np.ndarray, truncate: float) -> np.ndarray:
    """Distance of points (n 3) to the nearest of triangles (t 3 3), at most `truncate`.

    No point of a small triangle is farther than `reach` from its centre. So the nearest triangle's centre is at most
    `reach` farther away than the nearest centre.
    """
    from scipy.spatial import cKDTree

    triangles = _split(triangles, truncate / 2)
    centers = triangles.mean(axis=1)
    reach = 1.001 * np.linalg.norm(triangles - centers[:, None], axis=-1).max()
    tree = cKDTree(centers)
    to_center, _ = tree.query(points, distance_upper_bound=truncate + reach)
    near = np.flatnonzero(np.isfinite(to_center))
    result = np.full(len(points), float(truncate))
    for start in range(0, len(near), CHUNK):
        chunk = near[start : start + CHUNK]
        found = tree.query_ball_point(points[chunk], to_center[chunk] + reach, return_sorted=False)
        counts = np.fromiter(map(len, found), np.int64, len(found))
        candidates = np.fromiter(chain.from_iterable(found), np.int64, counts.sum())
        distance = _point_triangle_distance(np.repeat(points[chunk], counts, axis=0), triangles[candidates])
        result[chunk] = np.minimum(np.minimum.reduceat(distance, np.cumsum(counts) - counts), truncate)
    return result


def _split(triangles: np.ndarray, max_edge: float) -> np.ndarray:
    """The same surface in triangles without an edge longer than `max_edge`: the longest is halved again and again."""
    small = []
    while len(triangles):
        lengths = np.linalg.norm(np.roll(triangles, -1, axis=1) - triangles, axis=-1)
        is_small = lengths.max(axis=1) <= max_edge
        small.append(triangles[is_small])
        large = triangles[~is_small]
        start = lengths[~is_small].argmax(axis=1)[:, None] + np.arange(3)
        a, b, c = np.moveaxis(np.take_along_axis(large, start[..., None] % 3, axis=1), 1, 0)
        middle = (a + b) / 2
        triangles = np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])
    return np.concatenate(small)


def _point_triangle_distance(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Of pairs (n 3), (n 3 3): to the plane where the foot of the perpendicular is inside, else to the sides."""
    sides = np.roll(triangles, -1, axis=1) - triangles
    offsets = points[:, None] - triangles
    normals = np.cross(sides[:, 0], sides[:, 1])
    squared_normal = np.einsum("ni,ni->n", normals, normals)
    tiny = np.finfo(np.float64).tiny
    along = np.einsum("nki,nki->nk", offsets, sides) / np.maximum((sides**2).sum(-1), tiny)
    to_sides = ((offsets - np.clip(along, 0.0, 1.0)[..., None] * sides) ** 2).sum(-1).min(axis=1)
    is_left = np.einsum("nki,ni->nk", np.cross(sides, offsets), normals) >= 0
    above = is_left.all(axis=1) & (squared_normal > 0)
    to_plane = np.einsum("ni,ni->n", offsets[:, 0], normals) ** 2 / np.maximum(squared_normal, tiny)
    return np.sqrt(np.where(above, to_plane, to_sides))


def _winding(triangles: np.ndarray, axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Winding number (x y z) of a closed surface around the points of a lattice.

    It is the number of faces above a point that look up, less those that look down. A line through an edge or a
    vertex counts as passing on one side of it, the same for all faces that share it, so none is counted twice.
    """
    low, high = triangles.min(axis=1), triangles.max(axis=1)
    first = np.stack([np.searchsorted(axes[k], low[:, k], side="left") for k in (0, 1)], axis=1)
    last = np.stack([np.searchsorted(axes[k], high[:, k], side="right") for k in (0, 1)], axis=1)
    size = last - first
    counts = size.prod(axis=1)
    face = np.repeat(np.arange(len(triangles)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    i, j = first[face, 0] + number // size[face, 1], first[face, 1] + number % size[face, 1]
    x, y = axes[0][i], axes[1][j]

    corners = triangles[face]
    turns = sum(_turn(corners[:, k], corners[:, (k + 1) % 3], x, y) for k in range(3))
    hit = np.flatnonzero(turns)
    a, b, c = np.moveaxis(corners[hit], 1, 0)
    normal = np.cross(b - a, c - a)
    steepness = np.where(normal[:, 2] == 0, 1.0, normal[:, 2])
    height = a[:, 2] - ((x[hit] - a[:, 0]) * normal[:, 0] + (y[hit] - a[:, 1]) * normal[:, 1]) / steepness
    level = np.searchsorted(axes[2], np.clip(height, low[face[hit], 2], high[face[hit], 2]), side="left")

    shape = len(axes[0]), len(axes[1]), len(axes[2]) + 1
    place = np.ravel_multi_index((i[hit], j[hit], level), shape)
    at_level = np.bincount(place, weights=turns[hit], minlength=np.prod(shape)).reshape(shape)
    from_above = at_level[..., ::-1].cumsum(axis=-1)[..., ::-1]
    return np.rint(from_above[..., 1:]).astype(np.int32)


def _turn(start: np.ndarray, end: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether the side from start to end passes a point on its right upwards (1), downwards (-1) or not (0).

    The sum over a polygon's sides is its winding number around the point.
    """
    upwards = start[:, 1] < end[:, 1]
    # From its lower end, so that both faces of an edge get the same number to the last bit.
    low, high = np.where(upwards[:, None], start, end), np.where(upwards[:, None], end, start)
    passes = (low[:, 1] <= y) & (y < high[:, 1])
    rise = np.where(passes, high[:, 1] - low[:, 1], 1.0)
    crossing = low[:, 0] + (y - low[:, 1]) * (high[:, 0] - low[:, 0]) / rise
    return np.where(passes & (crossing > x), np.where(upwards, 1, -1), 0)
