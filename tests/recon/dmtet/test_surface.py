import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.recon.dmtet.surface import Capacity, deform, extract, marching_tets, signed_distance
from sv3d_jax.recon.dmtet.tets import TET_EDGES, TetGrid, kuhn_grid
from tests.recon.tets_cases import topology, volume

CELLS = 8
ROOM = Capacity(2048, 4096)  # for all the grid's edges, nearly
CENTER = np.array([0.03, -0.02, 0.05], np.float32)
RADIUS = 0.613


@pytest.fixture(scope="module")
def grid():
    return jax.device_put(kuhn_grid(CELLS))


def sphere(grid, radius=RADIUS):
    return jnp.linalg.norm(grid.vertices - CENTER, axis=1) - radius


def used(surface):
    """Vertices and faces as float64 and int arrays without the unused rows."""
    vertices = np.asarray(surface.vertices, np.float64)[: int(surface.num_vertices)]
    return vertices, np.asarray(surface.faces)[: int(surface.num_faces)]


def noise(grid):
    """Distances of random sign, positive on the border of the grid: every case of the table, many times."""
    on_border = (jnp.abs(grid.vertices) == 1).any(axis=1)
    values = jax.random.normal(jax.random.key(0), on_border.shape)
    return jnp.where(on_border, jnp.abs(values), values)


def mesh_volume(positions, sdf, grid, capacity):
    surface = marching_tets(grid, positions, sdf, capacity)
    a, b, c = jnp.moveaxis(surface.vertices[surface.faces], 1, 0)
    return jnp.sum(a * jnp.cross(b - a, c - a)) / 6


marching = jax.jit(marching_tets, static_argnames="capacity")
volume_and_gradients = jax.jit(jax.value_and_grad(mesh_volume, argnums=(0, 1)), static_argnames="capacity")


# Extraction


@pytest.mark.parametrize("signs", range(16))
def test_faces_of_a_tet_separate_its_corners_and_look_away_from_those_inside(signs):
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    tet = TetGrid(corners, np.arange(4)[None], TET_EDGES, np.arange(6)[None])
    inside = np.array([signs >> corner & 1 for corner in range(4)], bool)
    surface, _ = extract(tet, corners, np.where(inside, -1.0, 1.0).astype(np.float32), Capacity(4, 2))
    vertices, faces = used(surface)
    sizes = {0: (0, 0), 1: (3, 1), 2: (4, 2), 3: (3, 1), 4: (0, 0)}
    assert (len(vertices), len(faces)) == sizes[inside.sum()]
    for a, b, c in vertices[faces]:
        heights = (corners - a) @ np.cross(b - a, c - a)
        assert (heights[inside] < 0).all() and (heights[~inside] > 0).all()


def test_surface_of_any_signs_is_closed_and_oriented(grid):
    surface, _ = extract(grid, grid.vertices, noise(grid), Capacity(64, 64))
    found = topology(used(surface)[1])
    assert found["boundary_edges"] == found["nonmanifold_edges"] == 0


def test_a_plane_is_met_exactly_in_a_deformed_grid(grid):
    positions = deform(grid.vertices, jax.random.normal(jax.random.key(1), grid.vertices.shape), CELLS)
    normal = np.array([2, -1, 2]) / 3
    surface, _ = extract(grid, positions, positions @ normal - 0.1, Capacity(1024, 1024))
    vertices, _ = used(surface)
    np.testing.assert_allclose(vertices @ normal, 0.1, atol=1e-6)


@pytest.mark.parametrize("cells", [8, 16])
def test_volume_and_area_approach_those_of_a_sphere(cells):
    grid = kuhn_grid(cells)
    surface, _ = extract(grid, grid.vertices, sphere(grid), ROOM)
    vertices, faces = used(surface)
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    error = 1.5 * (2 / cells / RADIUS) ** 2  # an inscribed polyhedron with edges of about a cell
    assert 0 < 1 - volume(vertices, faces) / (4 / 3 * np.pi * RADIUS**3) < error
    assert 0 < 1 - area / (4 * np.pi * RADIUS**2) < error


def test_each_vertex_lies_on_the_edge_that_it_names(grid):
    surface, _ = extract(grid, grid.vertices, sphere(grid), ROOM)
    vertices, _ = used(surface)
    ends = np.asarray(grid.vertices)[np.asarray(surface.edges)[: len(vertices)]]
    lengths = np.linalg.norm(ends - vertices[:, None], axis=-1).sum(axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(ends[:, 1] - ends[:, 0], axis=-1), atol=1e-6)


def test_zero_is_outside_and_gives_finite_gradients(grid):
    sdf = jnp.where(jnp.arange(len(grid.vertices)) == len(grid.vertices) // 2, -1.0, 0.0)
    surface = marching(grid, grid.vertices, sdf, ROOM)
    assert surface.num_vertices == 14  # to the neighbours in seven directions and their opposites
    _, gradients = volume_and_gradients(grid.vertices, sdf, grid, ROOM)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)


def test_vanishing_distances_give_finite_vertices_and_gradients(grid):
    sdf = 1e-30 * jnp.sign(sphere(grid))
    value, gradients = volume_and_gradients(grid.vertices, sdf, grid, ROOM)
    assert all(jnp.isfinite(array).all() for array in (value, *gradients))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_no_surface_is_no_error(grid, sign):
    sdf = jnp.full(len(grid.vertices), sign)
    surface = marching(grid, grid.vertices, sdf, ROOM)
    assert (surface.num_vertices, surface.num_faces, surface.overflow) == (0, 0, False)
    assert not surface.vertices.any() and not surface.faces.any()
    _, gradients = volume_and_gradients(grid.vertices, sdf, grid, ROOM)
    assert not gradients[0].any() and not gradients[1].any()


# Gradients


@pytest.mark.parametrize("argument", [0, 1], ids=["positions", "sdf"])
def test_gradient_of_the_volume_is_that_of_finite_differences(grid, argument):
    sdf = sphere(grid)
    sdf = jnp.where(jnp.abs(sdf) < 0.01, 0.01, sdf)  # no sign may change within a step
    given = [deform(grid.vertices, 0.5 * jnp.sin(7 * grid.vertices), CELLS), sdf]
    direction = jax.random.uniform(jax.random.key(2), given[argument].shape, minval=-1.0)
    gradient = volume_and_gradients(*given, grid, ROOM)[1][argument]
    step, volumes = 5e-3, []
    for shift in (-step, step):
        shifted = [value + (shift * direction if k == argument else 0) for k, value in enumerate(given)]
        volumes.append(volume_and_gradients(*shifted, grid, ROOM)[0])
    # Third derivatives along the step, and float32 volumes.
    difference = (volumes[1] - volumes[0]) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), difference, rtol=1e-2, atol=2e-4)


def test_volume_grows_by_the_area_as_distances_shrink(grid):
    _, (_, gradient) = volume_and_gradients(grid.vertices, sphere(grid), grid, ROOM)
    assert -gradient.sum() == pytest.approx(4 * np.pi * RADIUS**2, rel=0.1)  # of the coarse sphere


def test_unused_rows_change_no_gradient(grid):
    sdf = sphere(grid)
    surface, _ = extract(grid, grid.vertices, sdf, ROOM)
    tight = Capacity(int(surface.num_vertices), int(surface.num_faces))
    for wanted, got in zip(
        *(volume_and_gradients(grid.vertices, sdf, grid, room)[1] for room in (tight, ROOM)), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-6)  # the order of float32 sums


# Capacity


@pytest.mark.parametrize("capacity", [Capacity(100, 4096), Capacity(2048, 100)])
def test_overflow_is_told_with_the_numbers_of_the_whole_surface(grid, capacity):
    whole = marching(grid, grid.vertices, sphere(grid), ROOM)
    part = marching(grid, grid.vertices, sphere(grid), capacity)
    assert part.overflow and not whole.overflow
    assert (part.num_vertices, part.num_faces) == (whole.num_vertices, whole.num_faces)


def test_extract_doubles_the_capacity_until_the_surface_fits(grid):
    surface, capacity = extract(grid, grid.vertices, sphere(grid), Capacity(10, 4096))
    assert not surface.overflow
    assert capacity.faces == 4096  # the other number stays
    assert capacity.vertices // 2 < surface.num_vertices <= capacity.vertices
    assert capacity.vertices % 10 == 0 and (capacity.vertices // 10).bit_count() == 1
    wanted, _ = extract(grid, grid.vertices, sphere(grid), ROOM)
    for got, expected in zip(used(surface), used(wanted), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_capacity_that_fits_exactly_does_not_overflow(grid):
    whole = marching(grid, grid.vertices, sphere(grid), ROOM)
    exact = Capacity(int(whole.num_vertices), int(whole.num_faces))
    assert extract(grid, grid.vertices, sphere(grid), exact)[1] == exact


def test_a_capacity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Capacity(0, 8)


# Offsets


def test_vertices_move_less_than_half_a_cube_and_stay_without_offset(grid):
    far = deform(grid.vertices, jnp.full(grid.vertices.shape, 3.0), CELLS) - grid.vertices
    np.testing.assert_allclose(far, np.tanh(3.0) / CELLS, atol=1e-6)
    np.testing.assert_array_equal(deform(grid.vertices, jnp.zeros_like(grid.vertices), CELLS), grid.vertices)


# Signed distance


def box(low, high) -> Mesh:
    mesh = trimesh.creation.box(bounds=[low, high])
    return Mesh(np.array(mesh.vertices), np.array(mesh.faces, np.int32))


def box_distance(points, low, high):
    center, half = np.add(low, high) / 2, np.subtract(high, low) / 2
    beyond = np.abs(points - center) - half
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)


@pytest.mark.parametrize(
    "low, high",
    [
        ([-0.61, -0.33, -0.52], [0.47, 0.58, 0.71]),
        ([-0.5, -0.25, -0.5], [0.5, 0.75, 0.5]),  # its sides, edges and diagonals meet vertices of the grid
    ],
)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_distance_to_a_box_is_exact(low, high, scale):
    points = scale * kuhn_grid(16).vertices
    low, high = scale * np.array(low), scale * np.array(high)
    got = signed_distance(box(low, high), points, 0.25)
    np.testing.assert_allclose(got, np.clip(box_distance(points, low, high), -0.25, 0.25), atol=1e-6)


def test_distance_to_a_sphere_is_that_to_its_polyhedron():
    points = kuhn_grid(16).vertices
    polyhedron = trimesh.creation.icosphere(subdivisions=4, radius=RADIUS)
    polyhedron.apply_transform(trimesh.transformations.rotation_matrix(1.0, [1, 2, 3]))
    got = signed_distance(Mesh(np.array(polyhedron.vertices), np.array(polyhedron.faces)), points, 0.25)
    wanted = np.clip(np.linalg.norm(points, axis=1) - RADIUS, -0.25, 0.25)
    sagitta = RADIUS - np.linalg.norm(polyhedron.triangles_center, axis=1).min()
    np.testing.assert_allclose(got, wanted, atol=sagitta + 1e-6)


def test_overlapping_parts_count_as_one_body_and_a_hole_is_outside():
    points = kuhn_grid(16).vertices
    bounds = [([-0.7] * 3, [0.7] * 3), ([0.3] * 3, [0.9] * 3), ([-0.4] * 3, [0.1] * 3)]
    solid, other, hole = (box(*bound) for bound in bounds)
    faces = [solid.faces, other.faces + 8, hole.faces[:, ::-1] + 16]
    mesh = Mesh(
        np.concatenate([solid.vertices, other.vertices, hole.vertices]),
        np.concatenate(faces).astype(np.int32),
    )
    inside = [box_distance(points, *bound) < 0 for bound in bounds]
    np.testing.assert_array_equal(
        signed_distance(mesh, points, 0.25) < 0, (inside[0] | inside[1]) & ~inside[2]
    )


def test_a_mesh_turned_inside_out_has_the_same_distance():
    points, mesh = kuhn_grid(8).vertices, box([-0.61, -0.33, -0.52], [0.47, 0.58, 0.71])
    turned = Mesh(mesh.vertices, mesh.faces[:, ::-1])
    np.testing.assert_array_equal(signed_distance(turned, points, 0.5), signed_distance(mesh, points, 0.5))


def test_surface_of_the_distance_is_the_mesh_again():
    grid = kuhn_grid(16)
    ball = trimesh.creation.icosphere(subdivisions=3, radius=RADIUS)
    sdf = signed_distance(Mesh(np.array(ball.vertices), np.array(ball.faces)), grid.vertices, 2 * 2 / 16)
    vertices, faces = used(extract(grid, grid.vertices, sdf, ROOM)[0])
    # Chords as long as the diagonal of a cube, and the polyhedron's own.
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), RADIUS, atol=0.0125)
    assert topology(faces)["euler"] == 2
