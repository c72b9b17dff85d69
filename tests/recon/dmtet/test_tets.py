import numpy as np
import pytest

from sv3d_jax.recon.dmtet.tets import TET_EDGES, band, kuhn_grid

CELLS = 3


@pytest.fixture(scope="module")
def grid():
    return kuhn_grid(CELLS)


def test_vertices_are_a_lattice_with_x_slowest(grid):
    axis = np.linspace(-1, 1, CELLS + 1)
    expected = [[x, y, z] for x in axis for y in axis for z in axis]
    np.testing.assert_allclose(grid.vertices, expected, atol=1e-7)


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


# Bands


@pytest.fixture(scope="module")
def whole():
    return kuhn_grid(8)


@pytest.fixture(scope="module")
def near(whole):
    return np.abs(np.linalg.norm(whole.vertices, axis=1) - 0.6) < 0.2


def test_a_band_holds_the_tets_that_have_a_near_vertex(whole, near):
    part, rows, _ = band(whole, near)
    tets = rows[part.tets]
    solid = tets[(np.diff(np.sort(tets, axis=1), axis=1) > 0).all(axis=1)]  # not the padding
    np.testing.assert_array_equal(solid, whole.tets[near[whole.tets].any(axis=1)])
    np.testing.assert_array_equal(part.vertices, whole.vertices[rows])


def test_edges_of_a_band_are_those_of_its_tets(whole, near):
    part, _, _ = band(whole, near)
    solid = (np.diff(np.sort(part.tets, axis=1), axis=1) > 0).all(axis=1)
    ends = np.sort(part.edges[part.tet_edges[solid]], axis=-1)
    np.testing.assert_array_equal(ends, np.sort(part.tets[solid][:, TET_EDGES], axis=-1))


def test_padding_has_no_extent_and_few_sizes(whole, near):
    part, rows, _ = band(whole, near)
    count = near[whole.tets].any(axis=1).sum()
    assert (part.tets[count:] == 0).all() and len(part.tets) < 1.25 * count
    assert len({len(band(whole, near & (np.arange(len(near)) > k))[0].tets) for k in range(20)}) <= 2


def test_inside_a_band_all_neighbours_are_there(whole, near):
    _, rows, at_rim = band(whole, near)
    inner = rows[~at_rim]
    has_all = ~np.isin(inner, whole.tets[~near[whole.tets].any(axis=1)])
    assert len(inner) and has_all.all()
    assert at_rim[(np.abs(whole.vertices[rows]) == 1).any(axis=1)].all()
