"""The mixed family: closed parts, endless variety, the same object for the same seed."""

import numpy as np
import pytest

from sv3d_jax.metrics.geometry import is_closed, occupancy
from sv3d_jax.train.data.mixed import SHAPES, mixed_mesh


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_closed_and_face_outwards(name):
    for seed in range(3):
        vertices, faces = SHAPES[name](np.random.default_rng(seed))
        corners = vertices[faces]
        area_vector = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).sum(0)
        np.testing.assert_allclose(area_vector, 0.0, atol=1e-9)  # float64 sums over thousands of faces
        assert np.linalg.det(corners).sum() > 0  # six times the enclosed volume


@pytest.mark.parametrize("seed", [3, 10000002, 10000004])
def test_an_object_of_several_parts_is_one_closed_surface(seed):
    mesh = mixed_mesh(seed)
    low, size = mesh.vertices.min(axis=0), np.ptp(mesh.vertices, axis=0).max()
    assert is_closed(mesh)
    # Signed volumes count what lies in two parts twice, voxels count it once.
    signed_volume = np.linalg.det(mesh.vertices[mesh.faces]).sum() / 6
    voxels = occupancy(mesh, low, size / 96, 96).sum() * (size / 96) ** 3
    assert signed_volume == pytest.approx(voxels, rel=0.02)


def test_same_seed_gives_the_same_object():
    assert np.array_equal(mixed_mesh(5).vertices, mixed_mesh(5).vertices)


def test_objects_differ_in_shape_and_hold_valid_colours():
    objects = [mixed_mesh(seed) for seed in range(12)]
    assert len({len(mesh.faces) for mesh in objects}) > 6
    assert all(0 <= mesh.vertex_colors.min() <= mesh.vertex_colors.max() <= 1 for mesh in objects)
