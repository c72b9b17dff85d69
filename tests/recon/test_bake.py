"""Meshes with textures: uv, baked colours, and what one sees of them."""

from dataclasses import replace

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import sine_orbit
from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.meshes import read_mesh, write_glb
from sv3d_jax.recon import bake
from sv3d_jax.recon.bake import bake_texture, textured
from sv3d_jax.recon.export import render_mesh
from sv3d_jax.recon.uv import PADDING, smooth_normals, unwrap
from sv3d_jax.render.lighting import SoftLight
from tests.geometry.test_decimate import ball, is_watertight
from tests.recon.sampling import sample_bilinear
from tests.recon.scenes import ball_pictures

RADIUS = 0.4
SIZE = 128


def ball_colors(points, normals):
    """As `ball_pictures` paints its ball."""
    return 0.5 + 0.4 * points / RADIUS


def box() -> Mesh:
    import trimesh

    solid = trimesh.creation.box()
    return Mesh(np.asarray(solid.vertices), solid.faces.astype(np.int32))


@pytest.fixture(scope="module")
def round_mesh() -> Mesh:
    mesh = ball()
    vertices = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True) * RADIUS
    return Mesh(vertices, mesh.faces)


@pytest.fixture(scope="module")
def painted(round_mesh) -> Mesh:
    return textured(round_mesh, ball_colors, SIZE, max_faces=1500)


@pytest.fixture(scope="module")
def cut_ball(round_mesh) -> tuple[Mesh, np.ndarray]:
    return unwrap(round_mesh, SIZE)


def points_on(mesh: Mesh, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Points all over the surface, and their uv."""
    rng = np.random.default_rng(0)
    corners = mesh.faces[rng.integers(len(mesh.faces), size=count)]
    weights = rng.dirichlet(np.ones(3), size=count)
    return tuple(np.einsum("nk,nkc->nc", weights, values[corners]) for values in (mesh.vertices, mesh.uv))


def texture_error(mesh: Mesh, colors_at) -> np.ndarray:
    """How far bilinear samples all over the surface are from the colours there."""
    points, uv = points_on(mesh)
    return np.abs(np.asarray(sample_bilinear(mesh.texture, uv.astype(np.float32))) - colors_at(points, None))


def texel_length(mesh: Mesh) -> float:
    """On the surface, on average."""
    areas = []
    for corners in (mesh.vertices[mesh.faces], np.pad(mesh.uv, ((0, 0), (0, 1)))[mesh.faces]):
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        areas.append(np.linalg.norm(cross, axis=1).sum())
    return float(np.sqrt(areas[0] / areas[1]) / len(mesh.texture))


# uv


def test_copies_of_a_vertex_are_equal_bit_by_bit(round_mesh, cut_ball):
    mesh, original = cut_ball
    assert np.array_equal(mesh.vertices, round_mesh.vertices[original])
    assert np.array_equal(original[mesh.faces], round_mesh.faces)


def test_a_cut_surface_is_still_closed_where_its_vertices_are_merged(cut_ball):
    _, place = np.unique(cut_ball[0].vertices, axis=0, return_inverse=True)
    assert is_watertight(Mesh(cut_ball[0].vertices, place.reshape(-1)[cut_ball[0].faces]))


def test_charts_lie_apart_inside_the_square(cut_ball):
    mesh, _ = cut_ball
    assert 0 < mesh.uv.min() and mesh.uv.max() < 1
    a, b, c = np.moveaxis(mesh.uv[mesh.faces].astype(np.float64), 1, 0)
    areas = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    large = 1024
    covered = (bake._faces_at_texels(mesh, large)[0] >= 0).sum() / large**2
    assert abs(areas.sum() / covered - 1) < 2e-3  # overlaps would cover less than the sum of the areas


def test_vertex_colors_follow_their_vertices(round_mesh):
    colors = np.random.default_rng(0).random((len(round_mesh.vertices), 3), np.float32)
    mesh, original = unwrap(replace(round_mesh, vertex_colors=colors), SIZE)
    assert np.array_equal(mesh.vertex_colors, colors[original])


def test_normals_are_the_same_on_both_sides_of_a_seam(round_mesh, cut_ball):
    mesh, original = cut_ball
    np.testing.assert_allclose(smooth_normals(mesh), smooth_normals(round_mesh)[original], atol=1e-12)


def test_normals_of_a_ball_point_outwards(cut_ball):
    mesh, _ = cut_ball
    assert (smooth_normals(mesh) * mesh.vertices / RADIUS).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("size", [0, -1, 8001])
def test_sizes_that_no_texture_has_are_refused(round_mesh, size):
    with pytest.raises(InputError, match=f"got {size}"):
        unwrap(round_mesh, size)
    with pytest.raises(InputError, match=f"got {size}"):
        textured(round_mesh, ball_colors, size)


# Texture


def test_a_painted_ball_looks_painted_from_views_of_its_own(painted, tmp_path):
    write_glb(tmp_path / "ball.glb", painted)
    mesh = read_mesh(tmp_path / "ball.glb")
    cameras = sine_orbit(5, 20.0, 40.0)
    focal, middle = intrinsics(cameras.fov_deg, 64)
    focal, middle = np.tile(focal, (5, 1)), np.tile(middle, (5, 1))
    seen = render_mesh(mesh, cameras.camera_to_world, focal, middle, 64, 64) / 255
    expected, coverage = ball_pictures(cameras, 64, RADIUS)
    error = np.abs(seen - expected)[coverage == 1]
    # Towards the rim 1500 flat faces lie up to 0.002 below the ball, and show points farther round.
    assert error.mean() < 0.005
    assert np.quantile(error, 0.99) < 0.03


def waves(points, normals):
    return 0.5 + 0.3 * np.sin(5 * points)  # slope 1.5 at most


def test_texture_has_the_colours_of_a_box_to_its_edges():
    mesh = textured(box(), waves, SIZE)
    error = texture_error(mesh, waves) / (1.5 * texel_length(mesh))
    # In texels: the nearest texel in the chart, up to a diagonal away, stands for those beyond its border.
    assert error.max() < np.sqrt(2)
    assert error.mean() < 0.02  # a texture that is shifted by half a texel has 0.2


def test_error_inside_the_charts_is_of_second_order():
    coarse, fine = (
        np.median(texture_error(textured(box(), waves, size), waves)) for size in (SIZE, 2 * SIZE)
    )
    assert coarse / fine > 3  # if texel centres are where the renderer has them; else 2


def test_both_sides_of_every_seam_have_one_colour(painted):
    place = np.unique(painted.vertices, axis=0, return_inverse=True)[1].reshape(-1)
    start, end = painted.faces.ravel(), np.roll(painted.faces, -1, axis=1).ravel()
    sides = {}
    for a, b in zip(start.tolist(), end.tolist(), strict=True):
        sides.setdefault(frozenset((place[a], place[b])), []).append((a, b))
    seams = np.array([(one, other[::-1]) for one, other in sides.values() if set(one) != set(other)])
    assert len(seams) > 20
    first, last = np.moveaxis(painted.uv[seams], 2, 0)  # seam side 2
    for share in (0.0, 0.3, 0.5):
        place_on_seam = share * first + (1 - share) * last
        one, other = np.moveaxis(np.asarray(sample_bilinear(painted.texture, place_on_seam)), 1, 0)
        apart = np.abs(one - other) / texel_length(painted)  # the slope is 1
        assert apart.max() < 2 * np.sqrt(2)  # what each side may be off
        assert apart.mean() < 0.6


def test_gutter_repeats_the_nearest_texel_and_the_rest_is_mean(cut_ball):
    mesh, _ = cut_ball
    texture = bake_texture(mesh, ball_colors, SIZE, gutter=3)
    covered = bake._faces_at_texels(mesh, SIZE)[0] >= 0
    inside = np.argwhere(covered)
    mean = texture[covered].mean(axis=0)
    kinds = set()
    for row, column in np.argwhere(~covered)[::7]:
        distance = np.linalg.norm(inside - [row, column], axis=1)
        nearest = inside[distance == distance.min()]
        near = distance.min() <= 3
        wanted = texture[tuple(nearest.T)] if near else mean[None]
        assert np.abs(texture[row, column] - wanted).max(axis=1).min() < 1e-6
        kinds.add(bool(near))
    assert kinds == {True, False}


def test_charts_have_two_texels_of_gutter_each_at_least(cut_ball):
    from scipy import ndimage

    labels, count = ndimage.label(bake._faces_at_texels(cut_ball[0], SIZE)[0] >= 0, np.ones((3, 3)))
    assert count > 1 and PADDING >= 4
    for chart in range(1, count + 1):
        to_others = ndimage.distance_transform_edt((labels == 0) | (labels == chart))
        assert to_others[labels == chart].min() > 4


def test_a_face_smaller_than_a_texel_has_its_colour():
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [6, 0, 0], [5, 1, 0]])
    uv = np.array([[0.1, 0.1], [0.5, 0.1], [0.1, 0.5], [0.91, 0.91], [0.92, 0.91], [0.91, 0.92]], np.float32)
    mesh = Mesh(vertices, np.arange(6, dtype=np.int32).reshape(2, 3), uv=uv)
    texture = bake_texture(
        mesh, lambda points, _: np.where(points[:, :1] > 3, [0, 0, 1], [1, 0, 0]), 16, gutter=2
    )
    np.testing.assert_allclose(sample_bilinear(texture, uv[[0, 4]]), [[1, 0, 0], [0, 0, 1]], atol=1e-6)


def test_colors_are_asked_for_in_pieces_of_one_size(cut_ball, monkeypatch):
    whole = bake_texture(cut_ball[0], ball_colors, SIZE)
    monkeypatch.setattr(bake, "CHUNK", 1000)
    shapes = set()

    def colors_at(points, normals):
        shapes.add((points.shape, normals.shape))
        return ball_colors(points, normals)

    assert np.array_equal(bake_texture(cut_ball[0], colors_at, SIZE), whole)
    assert shapes == {((1000, 3), (1000, 3))}


def test_shading_can_be_baked_in(cut_ball):
    light = SoftLight(np.array([0.0, 0.6, 0.8]), 0.2)
    mesh, _ = cut_ball
    texture = bake_texture(
        mesh, lambda points, normals: np.repeat(light.shade(normals)[:, None], 3, axis=1), SIZE
    )
    points, uv = points_on(mesh)
    expected = light.shade(points / np.linalg.norm(points, axis=1, keepdims=True))
    error = np.abs(np.asarray(sample_bilinear(texture, uv.astype(np.float32)))[:, 0] - expected)
    assert error.max() < 0.03 and error.mean() < 0.005


def test_colors_beyond_white_are_clipped(cut_ball):
    texture = bake_texture(cut_ball[0], lambda points, normals: np.where(points > 0, 3.0, -3.0), 32)
    assert texture.min() == 0.0 and texture.max() == 1.0


def test_a_mesh_without_uv_is_refused(round_mesh):
    with pytest.raises(InputError, match="no uv"):
        bake_texture(round_mesh, ball_colors, SIZE)


def test_the_same_mesh_gives_the_same_file(painted, round_mesh, tmp_path):
    for name, mesh in (("a", painted), ("b", textured(round_mesh, ball_colors, SIZE, max_faces=1500))):
        write_glb(tmp_path / f"{name}.glb", mesh)
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()
