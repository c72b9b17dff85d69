"""A grid of tetrahedra that fills a cube: every small cube is cut in six along its diagonal (Kuhn).

A corner of a cube is a number of three bits x y z. The six tetrahedra go from corner 000 to corner 111 by setting
one bit after the other, in the six possible orders. So an edge joins two corners of which one has all bits of the
other, and runs in one of seven directions: the bits by which they differ.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np

from sv3d_jax.arrays import Array, Bool, Float, Int
from sv3d_jax.recon.capacity import padded

TET_EDGES = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])  # of a tetrahedron's four vertices


class TetGrid(NamedTuple):
    """Tetrahedra of positive orientation (the triangle 1 2 3 is counter-clockwise seen from opposite 0)."""

    vertices: Float[Array, "v 3"]  # in [-1, 1]^3, x slowest
    tets: Int[Array, "m 4"]
    edges: Int[Array, "e 2"]  # each once, lower vertex first, sorted
    tet_edges: Int[Array, "m 6"]  # rows of `edges`, in the order of TET_EDGES


def kuhn_grid(cells: int) -> TetGrid:
    """The grid of `cells`^3 cubes, as numpy arrays: 6 tetrahedra to a cube, (cells + 1)^3 vertices.

    With 64 cells it takes 80 MB.
    """
    side = cells + 1
    axis = np.linspace(-1.0, 1.0, side, dtype=np.float32)
    vertices = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    index = np.arange(side**3, dtype=np.int32).reshape(side, side, side)
    first = index[:-1, :-1, :-1].reshape(-1, 1)  # corner 000 of every cube
    corners = _corners_of_tets()

    bits = np.arange(8)[:, None] >> np.array([2, 1, 0]) & 1
    step = (bits @ np.array([side**2, side, 1])).astype(np.int32)  # from corner 000 to the others
    tets = (first + step[corners.ravel()]).reshape(-1, 4)

    at_end = np.moveaxis(np.indices(index.shape), 0, -1) == cells  # x y z 3
    exists = ~(at_end[..., None, :] & (bits[1:] == 1)).any(-1).reshape(-1, 7)
    lower, direction = np.nonzero(exists)
    edges = np.stack([lower, lower + step[direction + 1]], axis=1).astype(np.int32)

    edge_at = np.cumsum(exists, dtype=np.int32).reshape(-1, 7) - 1  # by lower vertex and direction
    from_corner, to_corner = corners[:, TET_EDGES[:, 0]].ravel(), corners[:, TET_EDGES[:, 1]].ravel()
    tet_edges = edge_at[first + step[from_corner & to_corner], (from_corner ^ to_corner) - 1].reshape(-1, 6)
    return TetGrid(vertices, tets, edges, tet_edges)


def band(
    grid: TetGrid, near: Bool[np.ndarray, "v"]
) -> tuple[TetGrid, Int[np.ndarray, "v2"], Bool[np.ndarray, "v2"]]:
    """The tetrahedra with a near vertex; also the rows of the grid that are their vertices, and which are at the rim.

    At the rim are vertices that an omitted tetrahedron shares, and those on the border of the cube: if the signs there
    do not change, the surface is closed. Arrays are padded with repeated vertices and degenerate tetrahedra to one of
    few sizes, so that bands of different objects share a compiled program.
    """
    kept = near[grid.tets].any(axis=1)
    at_rim = (np.abs(grid.vertices) == 1.0).any(axis=1)
    at_rim[grid.tets[~kept]] = True
    rows, tets = np.unique(grid.tets[kept], return_inverse=True)
    edge_rows, tet_edges = np.unique(grid.tet_edges[kept], return_inverse=True)
    edges = np.searchsorted(rows, grid.edges[edge_rows])
    rows = padded(rows)
    part = TetGrid(
        vertices=grid.vertices[rows],
        tets=padded(tets.reshape(-1, 4).astype(np.int32)),
        edges=padded(edges.astype(np.int32)),
        tet_edges=padded(tet_edges.reshape(-1, 6).astype(np.int32)),
    )
    return part, rows, at_rim[rows]


def _corners_of_tets() -> np.ndarray:
    """Corners of the six tetrahedra (6, 4); odd orders of the axes swap two for the orientation."""
    tets = []
    for order in permutations(range(3)):
        second, third = 4 >> order[0], 4 >> order[0] | 4 >> order[1]
        is_even = np.linalg.det(np.eye(3)[list(order)]) > 0
        tets.append([0, second, third, 7] if is_even else [0, second, 7, third])
    return np.array(tets)
