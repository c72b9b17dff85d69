"""Simplified meshes have fewer faces and the same closed surface."""

import numpy as np
import pytest
from scipy import ndimage

from sv3d_jax.errors import InputError
from sv3d_jax.geometry.decimate import decimate
from sv3d_jax.geometry.marching_cubes import extract_surface
from sv3d_jax.geometry.mesh import Mesh


def ball(resolution: int = 24, radius: float = 9.0) -> Mesh:
    """A sphere around the origin."""
    grid = np.indices((resolution,) * 3) - (resolution - 1) / 2
    vertices, faces = extract_surface(radius - np.linalg.norm(grid, axis=0), 0.0)
    return Mesh(vertices - (resolution - 1) / 2, faces)


def noisy(seed: int) -> Mesh:
    """A surface with handles, thin bridges and separate parts, where collapses may pinch."""
    field = np.random.default_rng(seed).normal(size=(28, 28, 28))
    return Mesh(*extract_surface(ndimage.gaussian_filter(field, 1.5), 0.0))


def sheet(count: int = 12) -> Mesh:
    """A planar square with a border."""
    x, y = np.meshgrid(np.arange(count), np.arange(count), indexing="ij")
    corner = (x * count + y)[:-1, :-1].ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + count, corner + 1], 1),
            np.stack([corner + 1, corner + count, corner + count + 1], 1),
        ]
    )
    return Mesh(np.stack([x, y, 0 * x], -1).reshape(-1, 3).astype(float), faces.astype(np.int32))


def is_watertight(mesh: Mesh) -> bool:
    """Whether every edge has exactly two faces, which use it in opposite directions."""
    start, end = mesh.faces.ravel(), np.roll(mesh.faces, -1, axis=1).ravel()
    forward, back = start * len(mesh.vertices) + end, end * len(mesh.vertices) + start
    return len(np.unique(forward)) == len(forward) and np.array_equal(np.sort(forward), np.sort(back))


def volume(mesh: Mesh) -> float:
    return float(np.linalg.det(mesh.vertices[mesh.faces]).sum() / 6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_tangled_surface_stays_watertight_at_the_wanted_count(seed, share):
    mesh = noisy(seed)
    wanted = int(share * len(mesh.faces)) // 2 * 2
    result = decimate(mesh, wanted)
    assert is_watertight(mesh) and is_watertight(result)
    assert len(result.faces) == wanted


def test_handles_stay():
    mesh = noisy(0)
    result = decimate(mesh, len(mesh.faces) // 4)
    assert (
        len(result.vertices) - len(result.faces) / 2 == len(mesh.vertices) - len(mesh.faces) / 2
    )  # Euler's number


def test_a_ball_stays_round():
    result = decimate(ball(), 500)
    radius = np.linalg.norm(result.vertices, axis=1)
    assert (
        np.abs(radius - 9.0).max() < 0.2
    )  # 500 even triangles in a sphere of radius 9 sink by 0.11 in the middle
    assert abs(volume(result) / (4 / 3 * np.pi * 9.0**3) - 1) < 0.02


def test_a_box_stays_exact():
    import trimesh

    fine = trimesh.creation.box().subdivide().subdivide().subdivide()
    result = decimate(Mesh(np.asarray(fine.vertices), fine.faces.astype(np.int32)), 40)
    assert len(result.faces) == 40
    assert abs(volume(result) - 1.0) < 1e-3
    assert np.abs(np.abs(result.vertices).max(axis=1) - 0.5).max() < 1e-3


def test_vertices_at_one_place_count_as_one():
    mesh = ball(12, 4.0)
    torn = Mesh(
        mesh.vertices[mesh.faces].reshape(-1, 3),
        np.arange(3 * len(mesh.faces), dtype=np.int32).reshape(-1, 3),
    )
    assert is_watertight(decimate(torn, 100))


def test_a_border_stays_where_it_was():
    result = decimate(sheet(), 60)
    on_border = (result.vertices[:, :2] == 0).any(1) | (result.vertices[:, :2] == 11).any(1)
    assert on_border.sum() == 44
    assert len(result.faces) <= 60


def test_what_cannot_be_had_is_said():
    with pytest.warns(UserWarning, match="not to 10"):
        result = decimate(sheet(), 10)
    assert len(result.faces) == 44  # 44 border vertices, which never move, around the last one of the others


def test_a_small_mesh_is_left_alone():
    mesh = ball(8, 2.0)
    assert decimate(mesh, len(mesh.faces)) is mesh


def test_the_same_mesh_gives_the_same_result():
    first, second = (decimate(noisy(1), 2000) for _ in range(2))
    assert np.array_equal(first.vertices, second.vertices) and np.array_equal(first.faces, second.faces)


def test_too_few_faces_are_refused():
    with pytest.raises(InputError, match="at least 4"):
        decimate(ball(8, 2.0), 3)
