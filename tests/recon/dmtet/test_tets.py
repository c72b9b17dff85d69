import numpy as np
import pytest

from sv3d_jax.recon.dmtet.tets import TET_EDGES, kuhn_grid

CELLS = 3


@pytest.fixture(scope="module")
def grid():
    return kuhn_grid(CELLS)


def test_vertices_are_a_lattice_with_x_slowest(grid):
    axis = np.linspace(-1, 1, CELLS + 1)
    expected = [[x, y, z] for x in axis for y in axis for z in axis]
    np.testing.assert_allclose(grid.vertices, expected, atol=1e-7)
    assert grid.cells == CELLS


def test_tets_have_positive_equal_volumes_that_fill_the_cube(grid):
    a, b, c, d = np.moveaxis(grid.vertices[grid.tets].astype(np.float64), 1, 0)
    volumes = np.linalg.det(np.stack([b - a, c - a, d - a], axis=1)) / 6
    np.testing.assert_allclose(volumes, 8 / (6 * CELLS**3), rtol=1e-5)


def test_every_triangle_is_of_two_tets_or_on_the_border(grid):
    triangles = np.concatenate([np.delete(grid.tets, corner, axis=1) for corner in range(4)])
    unique, counts = np.unique(np.sort(triangles, axis=1), axis=0, return_counts=True)
    corners = grid.vertices[unique]  # t 3 3
    on_border = ((np.abs(corners) == 1) & (corners == corners[:, :1])).all(axis=1).any(axis=1)
    np.testing.assert_array_equal(counts, np.where(on_border, 1, 2))


def test_edges_are_those_of_the_tets_each_once_and_sorted(grid):
    pairs = np.sort(grid.tets[:, TET_EDGES].reshape(-1, 2), axis=1)
    unique, rows = np.unique(pairs, axis=0, return_inverse=True)
    np.testing.assert_array_equal(grid.edges, unique)
    np.testing.assert_array_equal(grid.tet_edges, rows.reshape(-1, 6))


def test_number_of_edges_is_that_of_seven_directions(grid):
    n = CELLS
    assert len(grid.edges) == 3 * n * (n + 1) ** 2 + 3 * n**2 * (n + 1) + n**3
