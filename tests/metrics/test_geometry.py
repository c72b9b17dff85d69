"""Distances, overlap and the verb `eval mesh`, against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import static_orbit
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.meshes import write_glb
from sv3d_jax.io.orbits import write_orbit
from sv3d_jax.metrics.config import EvalMeshConfig
from sv3d_jax.metrics.geometry import (
    color_error,
    compare_meshes,
    distance_to_surface,
    is_closed,
    occupancy,
    run_eval_mesh,
    sample_surface,
    volume_iou,
)
from sv3d_jax.progress import NullProgress


def sphere(radius: float, center=(0.0, 0.0, 0.0)) -> Mesh:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    return Mesh(np.asarray(ball.vertices) + center, np.asarray(ball.faces, np.int32))


def box(low, high) -> Mesh:
    import trimesh

    cube = trimesh.creation.box(bounds=[low, high])
    return Mesh(np.asarray(cube.vertices, np.float64), np.asarray(cube.faces, np.int32))


def test_distance_of_concentric_spheres_is_the_difference_of_radii():
    scores = compare_meshes(sphere(0.4), sphere(0.5), points=2000, voxels=8)
    assert scores["pred_to_target"] == pytest.approx(0.1, abs=1e-3)  # the icosphere's flatness
    assert scores["target_to_pred"] == pytest.approx(0.1, abs=1e-3)


def test_iou_of_concentric_spheres_is_the_cube_of_the_ratio():
    assert volume_iou(sphere(0.4), sphere(0.5), voxels=96) == pytest.approx(0.8**3, abs=3e-3)


def test_distance_to_large_triangles_is_exact():
    points = np.random.default_rng(0).uniform(-2, 2, (500, 3))
    mesh = box([-1, -0.5, -0.25], [1, 0.5, 0.25])
    half = np.array([1, 0.5, 0.25])
    outside = np.linalg.norm(np.maximum(np.abs(points) - half, 0), axis=1)
    inside = np.maximum((half - np.abs(points)).min(axis=1), 0)
    np.testing.assert_allclose(distance_to_surface(points, mesh), outside + inside, atol=1e-12)


def test_distance_agrees_with_trimesh_on_an_irregular_mesh():
    import trimesh

    rng = np.random.default_rng(1)
    mesh = Mesh(rng.normal(size=(60, 3)), rng.integers(0, 60, (40, 3)).astype(np.int32))
    mesh = Mesh(mesh.vertices, mesh.faces[np.ptp(mesh.faces, axis=1) > 0])
    points = rng.normal(size=(50, 3))
    corners = mesh.vertices[mesh.faces]
    expected = [
        np.linalg.norm(
            trimesh.triangles.closest_point(corners, np.tile(p, (len(corners), 1))) - p, axis=1
        ).min()
        for p in points
    ]
    np.testing.assert_allclose(distance_to_surface(points, mesh), expected, atol=1e-9)


def test_samples_are_spread_by_area():
    points = sample_surface(box([0, 0, 0], [1, 1, 3]), 20_000, seed=0)
    on_caps = (points[:, 2] < 1e-9) | (points[:, 2] > 3 - 1e-9)
    assert on_caps.mean() == pytest.approx(2 / 14, abs=0.01)


def test_overlapping_parts_count_as_solid():
    first, second = box([0, 0, 0], [2, 2, 2]), box([1, 1, 1], [3, 3, 3])
    both = Mesh(
        np.concatenate([first.vertices, second.vertices]), np.concatenate([first.faces, second.faces + 8])
    )
    assert occupancy(both, np.zeros(3), 0.1, 30).sum() == 15 * 1000


@pytest.mark.parametrize("closed", [True, False])
def test_a_missing_face_opens_a_mesh(closed):
    mesh = box([0, 0, 0], [1, 1, 1])
    assert is_closed(mesh if closed else Mesh(mesh.vertices, mesh.faces[1:])) is closed


def test_split_vertices_do_not_open_a_mesh():
    mesh = box([0, 0, 0], [1, 1, 1])
    assert is_closed(Mesh(mesh.vertices[mesh.faces].reshape(-1, 3), np.arange(36).reshape(-1, 3)))


def test_an_open_mesh_has_no_iou():
    mesh = box([0, 0, 0], [1, 1, 1])
    assert compare_meshes(mesh, Mesh(mesh.vertices, mesh.faces[1:]), points=100, voxels=8)["iou"] is None


def test_an_equal_mesh_is_met_everywhere():
    scores = compare_meshes(sphere(0.5), sphere(0.5), points=500, voxels=16)
    assert (scores["f_score"], scores["iou"]) == (1.0, 1.0)
    assert scores["chamfer"] < 1e-12


def moved_by_an_orbit(tmp_path) -> EvalMeshConfig:
    """A reconstruction in the world of an orbit, whose mesh file has y up, another size and another position."""
    world = box([-0.5, -0.25, -0.1], [0.5, 0.25, 0.1])
    world_from_file = np.array([[0.5, 0, 0, 0.1], [0, 0, -0.5, 0.2], [0, 0.5, 0, 0.3], [0, 0, 0, 1]])
    file_from_world = np.linalg.inv(world_from_file)
    in_file = world.vertices @ file_from_world[:3, :3].T + file_from_world[:3, 3]
    z_up = in_file @ np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float64)  # (x, y, z) -> (z, x, y)
    write_glb(tmp_path / "pred.glb", world)
    write_glb(tmp_path / "target.glb", Mesh(z_up, world.faces))
    write_orbit(tmp_path / "orbit", np.zeros((2, 32, 32, 3), np.uint8), static_orbit(2), world_from_file)
    return EvalMeshConfig(
        pred=tmp_path / "pred.glb",
        target=tmp_path / "target.glb",
        orbit=tmp_path / "orbit",
        points=200,
        voxels=16,
    )


def test_the_orbit_brings_the_target_to_where_it_was_rendered(tmp_path):
    result = run_eval_mesh(moved_by_an_orbit(tmp_path), NullProgress())
    assert result["chamfer"] < 1e-6  # files hold float32


def test_meshes_far_apart_are_pointed_out(tmp_path):
    from dataclasses import replace

    with pytest.warns(UserWarning, match="--orbit"):
        run_eval_mesh(replace(moved_by_an_orbit(tmp_path), orbit=None), NullProgress())


def test_an_orbit_that_was_not_rendered_is_refused(tmp_path):
    config = moved_by_an_orbit(tmp_path)
    write_orbit(tmp_path / "orbit", np.zeros((2, 32, 32, 3), np.uint8), static_orbit(2))
    with pytest.raises(InputError, match="object_to_world"):
        run_eval_mesh(config, NullProgress())


def colored(mesh: Mesh, factor: float) -> Mesh:
    """A mesh whose red increases with x."""
    red = 0.5 + 0.4 * mesh.vertices[:, 0]
    colors = np.stack([red, np.full_like(red, 0.5), np.full_like(red, 0.2)], axis=1)
    return replace(mesh, vertex_colors=(factor * colors).astype(np.float32))


def test_color_error_is_that_of_the_nearest_places():
    errors = color_error(colored(sphere(0.5), 0.8), colored(sphere(0.5), 1.0), points=4000)
    assert errors["color_error"] == pytest.approx(0.2 * 1.2 / 3, rel=0.02)
    assert errors["color_error_scaled"] < 0.003  # the distance between samples


def test_color_error_reads_a_texture():
    plate = box([-1, -1, -0.1], [1, 1, 0.1])
    uv = (plate.vertices[:, :2] + 1) / 2
    left_black = np.repeat(np.array([[[0, 0, 0], [1, 1, 1]]], np.float32), 64, axis=1)
    textured = replace(plate, uv=uv.astype(np.float32), texture=left_black)
    white = replace(plate, vertex_colors=np.ones((len(plate.vertices), 3), np.float32))
    assert color_error(textured, white, points=4000)["color_error"] == pytest.approx(0.5, abs=0.03)


def test_color_error_needs_colors():
    assert color_error(colored(sphere(0.5), 1.0), sphere(0.5), points=10) is None


@pytest.mark.filterwarnings("error")
@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e29, 1e-29])
def test_very_large_and_small_meshes_are_compared_as_others(factor):
    cube = box([-1, -1, -1], [1, 1, 1])
    scaled = replace(cube, vertices=factor * cube.vertices)
    result = compare_meshes(scaled, scaled, points=100, voxels=8)
    assert result["chamfer"] < 1e-6 and result["iou"] == 1.0  # float64 rounding


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [1e90, 1e-90])
def test_meshes_whose_areas_overflow_or_vanish_are_refused(factor):
    cube = box([-1, -1, -1], [1, 1, 1])
    scaled = replace(cube, vertices=factor * cube.vertices)
    for pair, name in (((scaled, cube), "prediction"), ((cube, scaled), "target")):
        with pytest.raises(InputError, match=f"the {name} has a side of"):
            compare_meshes(*pair, points=100, voxels=8)
