"""Triangulations fill polygons exactly once and keep their winding."""

import numpy as np
import pytest

from sv3d_jax.geometry.polygons import triangulate

ARROW = np.array([[2, -1], [0, 2], [-2, -1], [0, 0]], float)  # area 4: a triangle of 6 less a notch of 2
STAR_ANGLES = np.arange(10) * np.pi / 5
STAR = np.stack([np.cos(STAR_ANGLES), np.sin(STAR_ANGLES)], axis=1) * np.tile([1.0, 0.4], 5)[:, None]
COMB = np.array(
    [[0, 0], [5, 0], [5, 3], [4, 3], [4, 1], [3, 1], [3, 3], [2, 3], [2, 1], [1, 1], [1, 3], [0, 3]]
)
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
TURN *= np.linalg.det(TURN)


def in_space(flat: np.ndarray) -> np.ndarray:
    """A planar polygon (k 2), rotated and moved in space."""
    return np.pad(np.asarray(flat, float), ((0, 0), (0, 1))) @ TURN.T + [100.0, -20.0, 3.0]


def area_vectors(vertices, indices, triangles):
    a, b, c = np.moveaxis(vertices[np.asarray(indices)[triangles]], 1, 0)
    return np.cross(b - a, c - a) / 2


def cut(*polygons):
    """Vertices, indices, counts, triangles, the polygon of each and the remarks."""
    vertices = np.concatenate(polygons)
    indices, counts, remarks = np.arange(len(vertices)), [len(polygon) for polygon in polygons], []
    return vertices, indices, *triangulate(vertices, indices, np.array(counts), remarks.append), remarks


def shoelace(flat):
    (x, y) = np.asarray(flat, float).T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


@pytest.mark.parametrize("flat", [ARROW, STAR, COMB], ids=["arrow", "star", "comb"])
def test_concave_polygons_are_filled_once_from_every_first_corner(flat):
    for first in range(len(flat)):
        vertices, indices, triangles, _, remarks = cut(in_space(np.roll(flat, first, axis=0)))
        along = area_vectors(vertices, indices, triangles) @ TURN[:, 2]
        assert (along > -1e-9).all()
        assert along.sum() == pytest.approx(shoelace(flat), rel=1e-9)
        assert np.abs(along).sum() == pytest.approx(shoelace(flat), rel=1e-9)
        assert not remarks


def test_clockwise_polygons_stay_clockwise():
    for flat in (ARROW, COMB):
        vertices, indices, triangles, _, _ = cut(in_space(flat[::-1]))
        assert area_vectors(vertices, indices, triangles) @ TURN[:, 2] @ np.ones(
            len(triangles)
        ) == pytest.approx(-shoelace(flat), rel=1e-9)


def test_random_polygons_around_a_point_are_filled_once():
    rng = np.random.default_rng(0)
    for count in (5, 6, 9, 40, 300):
        angles = np.sort(rng.random(count)) * 2 * np.pi
        flat = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.3, 1, (count, 1))
        if np.diff(angles, append=angles[0] + 2 * np.pi).max() > np.pi:
            continue
        vertices, indices, triangles, _, remarks = cut(in_space(flat))
        areas = area_vectors(vertices, indices, triangles)
        assert np.linalg.norm(areas, axis=1).sum() == pytest.approx(shoelace(flat), rel=1e-6)
        assert np.linalg.norm(areas.sum(0)) == pytest.approx(shoelace(flat), rel=1e-6)
        assert not remarks


def test_triangles_are_in_the_order_of_their_polygons_and_name_them():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    _, indices, triangles, polygon, _ = cut(
        *(in_space(flat) for flat in (COMB, square, square[:3], square[:2], ARROW))
    )
    starts = np.array([0, 12, 16, 19, 21, 25])
    assert polygon.tolist() == [0] * 10 + [1, 1, 2, 4, 4]
    assert (triangles >= starts[polygon][:, None]).all() and (triangles < starts[polygon + 1][:, None]).all()


def test_convex_quads_are_cut_from_the_first_corner():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    assert cut(in_space(square))[2].tolist() == [[0, 1, 2], [0, 2, 3]]


def test_a_corner_on_the_side_of_a_quad_makes_no_empty_triangle():
    flat = np.array([[0, 0], [1, 0], [2, 0], [0, 2]])
    vertices, indices, triangles, _, _ = cut(in_space(flat))
    assert np.linalg.norm(area_vectors(vertices, indices, triangles), axis=1).min() == pytest.approx(1.0)


def test_bent_polygons_keep_all_their_corners():
    bent = in_space(STAR) + np.random.default_rng(1).normal(scale=0.02, size=(10, 3))
    _, _, triangles, _, remarks = cut(bent)
    assert sorted(set(triangles.ravel().tolist())) == list(range(10)) and len(triangles) == 8
    assert not remarks


@pytest.mark.parametrize("count", [4, 5, 7])
def test_polygons_of_no_area_become_fans_without_a_word(count):
    line = np.outer(np.arange(count), [1.0, 2.0, 3.0])
    for points in (line, np.zeros((count, 3))):
        _, _, triangles, _, remarks = cut(points)
        assert triangles.shape == (count - 2, 3) and not remarks


@pytest.mark.parametrize(
    "flat",
    [
        [[0, 0], [1, 1], [1, 0], [0, 1.5]],
        [[0, 0], [3, 0], [3, 2], [1, -1], [0, 2]],
        np.random.default_rng(2).random((60, 2)),
    ],
    ids=["bow", "five", "sixty"],
)
def test_polygons_whose_sides_cross_become_fans_and_are_told(flat):
    _, _, triangles, _, remarks = cut(in_space(flat))
    assert triangles.shape == (len(flat) - 2, 3)
    assert remarks == ["1 polygons, which intersect themselves or have very many corners, are drawn as fans"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300, -1e308])
def test_vertices_that_are_no_places_do_not_stop_the_cut(bad):
    for flat in (ARROW, COMB):
        points = in_space(flat)
        points[2, 1] = bad
        assert len(cut(points, in_space(ARROW))[2]) >= len(flat) - 2 + 2


def test_polygons_far_from_the_origin_and_tiny_ones_are_cut_right():
    flat = np.pad(ARROW, ((0, 0), (0, 1)))
    for points, area in ((flat * 1e-9, 4e-18), (flat + 1e7, 4.0), (flat * 1e100, 4e200)):
        vertices, indices, triangles, _, _ = cut(points)
        total = np.abs(area_vectors(vertices, indices, triangles)[:, 2]).sum()
        assert total == pytest.approx(area, rel=1e-6)


def test_polygons_of_very_many_corners_are_not_searched():
    vertices = np.random.default_rng(4).random((200_000, 3))
    counts, remarks = np.full(2, 100_000), []
    triangles, _ = triangulate(vertices, np.arange(200_000), counts, remarks.append)
    assert len(triangles) == 199_996 and len(remarks) == 1


def test_no_polygons_make_no_triangles():
    triangles, polygon = triangulate(np.zeros((2, 3)), np.arange(2), np.array([2]), print)
    assert triangles.shape == (0, 3) and polygon.shape == (0,)
