"""Silhouette antialiasing, compared with areas, their derivatives, and supersampled images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import ConvexHull

from sv3d_jax.render import antialias as module
from sv3d_jax.render.antialias import box_filter, closed_mesh_edges, mesh_edges
from sv3d_jax.render.rasterize import rasterize

SIZE = 24
NUM_VERTICES, NUM_FACES = 400, 132  # all scenes are padded to one shape, which compiles once
QUAD = np.array([[0, 1, 2], [0, 2, 3]])


def pictures(screen, faces, colors, point_ids):
    """Antialiased colours of faces over black, and the rasterized ones."""
    fragments = rasterize(screen, faces, SIZE, SIZE)
    sharp = jnp.pad(colors, ((0, 1), (0, 0)))[fragments.face_id]  # the background's id -1 takes the last
    return module.antialias(sharp, fragments, screen, faces, mesh_edges(faces, point_ids)), sharp


@jax.jit
def weighted_gradients(screen, faces, colors, weights):
    """Gradients of sum(weights * image) with respect to vertices and colours."""

    def total(screen, colors):
        return (pictures(screen, faces, colors, jnp.arange(NUM_VERTICES))[0] * weights).sum()

    return jax.grad(total, argnums=(0, 1))(screen, colors)


compiled = jax.jit(pictures)
WHITE = jnp.ones((NUM_FACES, 3))
RANDOM = jnp.asarray(np.random.default_rng(0).uniform(size=(NUM_FACES, 3)), jnp.float32)
ONE_CHANNEL = jnp.zeros((1, SIZE, SIZE, 3)).at[..., 0].set(1.0)


def render(screen, faces, colors=RANDOM, point_ids=None):
    return compiled(screen, faces, colors, np.arange(NUM_VERTICES) if point_ids is None else point_ids)


def area(screen, faces):
    return float(render(screen, faces, WHITE)[0][..., 0].sum())


def area_gradient(screen, faces):
    return np.asarray(weighted_gradients(screen, faces, WHITE, ONE_CHANNEL)[0])


def padded(points, faces):
    """Vertices `1 v 3` (at depth 1 if flat) and faces, in the shape of all scenes."""
    points = np.asarray(points, np.float32)
    screen = np.ones((1, NUM_VERTICES, 3), np.float32)
    screen[0, : len(points), : points.shape[1]] = points
    return screen, np.pad(np.asarray(faces, np.int32), ((0, NUM_FACES - len(faces)), (0, 0)))


def polygon_area(corners):
    x, y = np.asarray(corners, np.float64)[:, :2].T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


TRIANGLE = np.array([[3.3, 2.1], [6.6, 21.2], [20.4, 7.7]])


def lens():
    """A closed double cone whose triangles are smaller than a pixel at the outline."""
    count, center = 60, [11.8, 12.3]
    angle = np.arange(count) * 2 * np.pi / count
    rim = np.stack([np.cos(angle), -np.sin(angle)], -1) * 8.1 + center
    points = np.insert(np.array([*rim, center, center]), 2, 1.0, axis=-1)
    points[-2:, 2] = 0.9, 1.1
    low = np.arange(count)
    high, apex = np.roll(low, -1), 0 * low + count
    faces = [np.stack([apex, low, high], -1), np.stack([apex + 1, high, low], -1)]
    return padded(points, np.concatenate(faces))


def sheet():
    """Triangles that extend beyond all borders of the image."""
    side = np.linspace(-9, 33, 9)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    points += np.random.default_rng(0).uniform(-0.8, 0.8, points.shape)
    first = (np.arange(8)[:, None] * 9 + np.arange(8)).ravel()
    faces = [np.stack([first, first + 9, first + 1], -1), np.stack([first + 1, first + 9, first + 10], -1)]
    return points, np.concatenate(faces)


def two_layers():
    """A triangle in front of a larger one."""
    far = [[1.2, 1.7, 2.0], [3.1, 22.4, 2.0], [22.8, 8.9, 2.0]]
    near = [[8.4, 3.2, 1.0], [2.3, 13.8, 1.0], [16.9, 16.1, 1.0]]
    return padded([*far, *near], np.arange(6).reshape(2, 3))


# Edges


def listed(faces, point_ids=None):
    """The faces of all rows in use, by the vertices of the edge."""
    rows, edges = {}, jax.jit(mesh_edges)(faces, point_ids)
    for vertices, pair in zip(np.asarray(edges.vertices), np.asarray(edges.faces), strict=True):
        if pair[0] >= 0:
            rows.setdefault(tuple(sorted(vertices.tolist())), []).append(sorted(pair.tolist()))
    return rows


QUAD_EDGES = {(0, 1): [[-1, 0]], (1, 2): [[-1, 0]], (0, 2): [[0, 1]], (2, 3): [[-1, 1]], (0, 3): [[-1, 1]]}


def sides(faces, edges):
    """The rows in use, as (vertices, faces)."""
    rows = zip(np.asarray(edges.vertices), np.asarray(edges.faces), strict=True)
    return [(*sorted(vertices.tolist()), *pair.tolist()) for vertices, pair in rows if pair[0] >= 0]


def test_edges_of_a_closed_surface_are_those_of_the_general_way_in_the_same_order():
    faces = random_sphere(300)
    padded = jnp.pad(faces, ((0, 9), (0, 0)))
    ours = jax.jit(closed_mesh_edges, static_argnums=1)(padded, 300)
    assert len(ours.faces) == 3 * len(padded) // 2
    assert sides(padded, ours) == sides(padded, mesh_edges(padded))
    assert len(sides(padded, ours)) == 3 * len(faces) // 2


def test_edges_of_more_vertices_than_fit_into_a_number_are_found_in_the_general_way():
    faces = 70_000 + random_sphere(40)
    assert sides(faces, closed_mesh_edges(faces, 2**17)) == sides(faces, mesh_edges(faces))


@pytest.mark.parametrize("is_fan", [False, True])
def test_edges_do_not_depend_on_how_large_the_vertex_ids_are(is_fan):
    """Small ids of edges with one or two faces are sorted in another way than large ones."""
    faces = random_sphere(60)[7:]  # with a border
    if is_fan:  # an edge of four faces
        faces = jnp.concatenate(
            [faces, jnp.stack([jnp.array([60, 61, third]) for third in (62, 63, 64, 65)])]
        )
    small = jnp.pad(faces, ((0, 5), (0, 0)))
    large = jnp.where(jnp.arange(len(small))[:, None] < len(faces), small + 70_000, small)
    shifted = [(low + 70_000, high + 70_000, *pair) for low, high, *pair in sides(small, mesh_edges(small))]
    assert shifted == sides(large, mesh_edges(large))
    assert len(shifted) > 100


def random_sphere(count):
    """The convex hull of points on a sphere; faces in random order, all wound alike."""
    points = np.random.default_rng(0).normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    hull = ConvexHull(points)
    first, second = np.diff(points[hull.simplices], axis=1).swapaxes(0, 1)
    outward = np.einsum("tc,tc->t", np.cross(first, second), hull.equations[:, :3])
    faces = np.where(outward[:, None] > 0, hull.simplices, hull.simplices[:, ::-1])
    return jnp.asarray(np.random.default_rng(1).permutation(faces), jnp.int32)


def test_each_edge_is_listed_once_with_its_faces():
    assert listed(QUAD) == QUAD_EDGES


def test_padded_faces_have_no_edges():
    assert listed(np.pad(QUAD, ((0, 3), (0, 0)))) == QUAD_EDGES


def test_vertex_ids_may_exceed_the_root_of_the_integer_range():
    scaled = {(70_000 * a, 70_000 * b): faces for (a, b), faces in QUAD_EDGES.items()}
    assert listed(70_000 * QUAD) == scaled


def test_split_vertices_of_one_point_are_no_border():
    rows = listed(np.arange(6).reshape(2, 3), np.array([0, 1, 2, 0, 2, 3]))
    pairs = sorted(pair for pairs in rows.values() for pair in pairs)
    assert pairs == sorted(pair for pairs in QUAD_EDGES.values() for pair in pairs)


def test_edge_of_three_faces_has_two_rows():
    assert listed(np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]]))[0, 1] == [[0, 1], [1, 2]]


# Coverage


@pytest.mark.parametrize("axes", [[0, 1], [1, 0]])
def test_coverage_and_gradient_of_a_strip_are_exact(axes):
    # Sides from row -5 to row 30: only the line at row 12 matters, 17/35 of the way.
    corners = np.array([[4.3, -5.0], [9.1, 30.0], [15.2, 30.0], [17.7, -5.0]])
    screen, faces = padded(corners[:, axes], QUAD)
    share, top, bottom = 17 / 35, 17.7 - 4.3, 15.2 - 9.1
    np.testing.assert_allclose(area(screen, faces), 24 * (top * (1 - share) + bottom * share), rtol=1e-6)
    along = 24 * np.array([share - 1, -share, share, 1 - share])
    slope = np.array([4.8, 4.8, -2.5, -2.5]) / 35
    expected = np.stack([along, -along * slope], -1)[:, axes]
    # float32 sums over 24 rows
    np.testing.assert_allclose(area_gradient(screen, faces)[0, :4, :2], expected, atol=1e-4)


def test_coverage_of_a_triangle_is_its_area():
    np.testing.assert_allclose(area(*padded(TRIANGLE, QUAD[:1])), polygon_area(TRIANGLE), rtol=0.005)


def test_gradient_in_the_colour_is_the_area():
    screen, faces = padded(TRIANGLE, QUAD[:1])
    gradient = weighted_gradients(screen, faces, RANDOM, ONE_CHANNEL)[1]
    np.testing.assert_allclose(gradient[0], [polygon_area(TRIANGLE), 0.0, 0.0], rtol=0.005)


def test_outline_of_triangles_smaller_than_a_pixel_moves_as_a_disc_does():
    screen, faces = lens()
    exact, slopes = polygon_area(screen[0, :60]), []
    for shift in np.random.default_rng(0).uniform(-0.5, 0.5, (40, 2)):
        moved = screen + np.array([*shift, 0.0], np.float32)
        np.testing.assert_allclose(area(moved, faces), exact, rtol=0.005)
        slopes.append((area_gradient(moved, faces)[0, :, :2] * screen[0, :, :2]).sum())
    # One picture has only some 16 rows; scaling about the corner moves the disc as well.
    np.testing.assert_allclose(np.mean(slopes), 2 * exact, rtol=0.01)


@pytest.mark.parametrize("tilt", [-0.01, 0.0, 0.01])
def test_diagonal_edge_counts_once(tilt):
    # The edge runs from the picture's upper right corner to the lower left.
    screen, faces = padded([[-60.0, -60.0], [-60.0, 84.25], [84.25 + tilt, -60.0]], QUAD[:1])
    slope = area_gradient(screen, faces)[..., 0].sum()
    assert abs(slope - 24) <= 1.01  # the pixels in the corners have no neighbour


# Which edges


def test_edges_between_visible_faces_leave_the_picture_unchanged():
    assert np.array_equal(*render(*padded(*sheet())))


def test_split_vertices_leave_no_seam():
    points, faces = sheet()
    ids = np.pad(faces.ravel(), (0, NUM_VERTICES - faces.size))
    split = padded(points[faces.ravel()], np.arange(faces.size).reshape(-1, 3))
    assert np.array_equal(*render(*split, point_ids=ids))


def test_hidden_edges_leave_the_picture_unchanged():
    points, faces = sheet()
    points = np.insert(np.concatenate([points, TRIANGLE]), 2, 1.0, axis=-1)
    points[-3:, 2] = 1.2
    assert np.array_equal(*render(*padded(points, [*faces, *(QUAD[:1] + len(points) - 3)])))


def test_parts_that_no_pixel_centre_sees_leave_the_picture_unchanged():
    screen, faces = padded([[10.7, 2.0], [10.9, 20.0], [11.2, 3.0]], QUAD[:1])
    colors = jax.random.uniform(jax.random.key(0), (1, SIZE, SIZE, 3))

    @jax.jit
    def smooth(screen, faces):
        fragments = rasterize(screen, faces, SIZE, SIZE)
        return module.antialias(colors, fragments, screen, faces, mesh_edges(faces))

    assert np.array_equal(smooth(screen, faces), colors)


def test_picture_comes_near_the_supersampled_one():
    screen, faces = two_layers()
    smooth, sharp = render(screen, faces)
    fine = rasterize(screen * np.array([16.0, 16.0, 1.0], np.float32), faces, 16 * SIZE, 16 * SIZE).face_id
    expected = box_filter(jnp.pad(RANDOM, ((0, 1), (0, 0)))[fine], 16)
    assert np.abs(smooth - expected).mean() < 0.15 * np.abs(sharp - expected).mean()


def test_gradient_matches_finite_differences():
    screen, faces = two_layers()
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
    direction = (rng.normal(size=screen.shape) * [1.0, 1.0, 0.0]).astype(np.float32)
    ends = [(render(screen + step * direction, faces)[0] * weights).sum() for step in (1e-3, -1e-3)]
    gradient = weighted_gradients(screen, faces, RANDOM, weights)[0]
    np.testing.assert_allclose((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-3, rtol=5e-3)  # float32


def test_views_are_independent():
    screen, faces = two_layers()
    views = [screen, screen + np.array([1.7, -0.6, 0.0], np.float32), 24.0 - 0.9 * screen]
    together = render(np.concatenate(views), faces)[0]
    alone = np.concatenate([render(view, faces)[0] for view in views])
    # Coordinates up to 24 are rounded in another order; in which, depends on the number of cores.
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_length_of_the_chunks_changes_nothing(monkeypatch):
    """Nothing but rounding, of the picture and of its gradient."""
    screen, faces = two_layers()
    given = screen, faces, RANDOM, np.arange(NUM_VERTICES)
    weights = np.random.default_rng(1).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)

    def picture_and_gradient():  # traced anew each time
        total = jax.grad(lambda screen, *others: (pictures(screen, *others)[0] * weights).sum())
        return jax.jit(lambda *given: (pictures(*given)[0], total(*given)))(*given)

    expected = picture_and_gradient()
    assert float(jnp.abs(expected[1]).max()) > 0.1
    monkeypatch.setattr(module, "CHUNK", 7)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), picture_and_gradient(), expected)


def test_vertices_that_cannot_be_drawn_leave_the_gradient_finite():
    behind = np.array([[2.0, 2.0, -1.0], [np.nan, 2.0, -1.0], [2.0, 9.0, -1.0]])
    points = np.concatenate([behind, np.insert(TRIANGLE, 2, 1.0, axis=-1)])
    assert np.isfinite(area_gradient(*padded(points, np.arange(6).reshape(2, 3)))).all()


def test_box_filter_takes_means_of_blocks():
    pixels = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert np.array_equal(box_filter(pixels, 2)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]])
