"""Surfaces of sampled fields."""

import numpy as np
import pytest

from sv3d_jax.errors import SV3DError
from sv3d_jax.geometry.marching_cubes import extract_surface, keep_large_components


def distance(center, shape=(24, 24, 24)) -> np.ndarray:
    return np.linalg.norm(np.indices(shape) - np.reshape(center, (3, 1, 1, 1)), axis=0)


def signed_volume(vertices, faces) -> float:
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def is_watertight(vertices, faces) -> bool:
    import trimesh

    return trimesh.Trimesh(vertices, faces, process=False).is_watertight


def test_vertices_lie_where_the_field_crosses_the_level():
    vertices, _ = extract_surface(-distance((11, 12, 10)), -6.5)
    np.testing.assert_allclose(
        np.linalg.norm(vertices - (11, 12, 10), axis=1), 6.5, atol=0.03
    )  # linear cells


def test_faces_look_outwards():
    volume = signed_volume(*extract_surface(-distance((11, 12, 10)), -6.5))
    assert volume == pytest.approx(4 / 3 * np.pi * 6.5**3, rel=0.02)


def test_a_surface_cut_by_the_border_is_closed():
    assert is_watertight(*extract_surface(-distance((2, 12, 23)), -6.5))


def test_noise_gives_a_closed_surface():
    field = np.random.default_rng(0).integers(0, 3, (12, 12, 12)).astype(np.float32)
    assert is_watertight(*extract_surface(field, 1.0))  # many samples lie exactly on the level


def test_cavities_are_filled():
    radius = distance((12, 12, 12))
    shell = -np.abs(radius - 7)
    volume = signed_volume(*extract_surface(shell, -1.5))
    assert volume == pytest.approx(4 / 3 * np.pi * 8.5**3, rel=0.02)


def test_small_parts_are_dropped():
    field = np.maximum(8 - distance((9, 9, 9)), 1.5 - distance((21, 21, 21)))
    vertices, faces = extract_surface(field, 0.0)
    kept, kept_faces = keep_large_components(vertices, faces, 0.1)
    assert kept.max() < 18 < vertices.max()
    assert is_watertight(kept, kept_faces)


def test_the_largest_part_always_stays():
    vertices, faces = extract_surface(8 - distance((9, 9, 9)), 0.0)
    assert len(keep_large_components(vertices, faces, 1.0)[1]) == len(faces)


def test_an_empty_surface_says_the_range_of_the_field():
    with pytest.raises(SV3DError, match=r"between 0.25 and 1.5 .* level 2$"):
        extract_surface(np.linspace(0.25, 1.5, 64).reshape(4, 4, 4), 2.0)
