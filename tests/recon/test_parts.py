"""Loose parts stay if a view shows them, and go if they are as white as the background."""

import numpy as np
import pytest
import trimesh

from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.recon.parts import _visible, without_white_parts
from sv3d_jax.recon.views import HOLE_WEIGHT, prepare_views, usable_frames
from tests.recon.scenes import ball_orbit


@pytest.fixture(scope="module")
def scene():
    """Two balls side by side, the views of a third, and which faces the views see."""
    balls = [trimesh.creation.icosphere(3, 0.9), trimesh.creation.icosphere(2, 0.4)]
    balls[1].apply_translation((0.0, 1.5, 0.0))
    both = trimesh.util.concatenate(balls)
    mesh = Mesh(np.asarray(both.vertices), np.asarray(both.faces, np.int32))
    views, _ = prepare_views(usable_frames(ball_orbit()))
    vertices = np.asarray(mesh.vertices, np.float32)
    face = np.asarray(_visible(vertices, mesh.faces, views.cameras, size=views.masks.shape[1:]))
    return mesh, views, face, len(balls[0].faces)


@pytest.mark.parametrize(
    ("mask", "weight", "stays"),
    [(1.0, HOLE_WEIGHT, False), (0.0, 1.0, False), (1.0, 1.0, True), (1.0, 0.0, True)],
    ids=["hole", "background", "object", "silhouette"],
)
def test_a_loose_part_stays_where_it_is_shown(scene, mask, weight, stays):
    """A silhouette says nothing, so a part that is seen nowhere else stays."""
    mesh, views, face, first = scene
    small = face >= first
    assert small.any(axis=(1, 2)).sum() > 4
    given = views._replace(
        masks=np.where(small, mask, face >= 0).astype(np.float32),
        mask_weights=np.where(small, weight, 1.0).astype(np.float32),
    )
    left = without_white_parts(mesh, given)
    assert len(left.faces) == (len(mesh.faces) if stays else first)
    np.testing.assert_array_equal(left.vertices[left.faces[:first]], mesh.vertices[mesh.faces[:first]])


def test_the_largest_part_stays_whatever_is_shown(scene):
    mesh, views, _, first = scene
    white = views._replace(masks=np.zeros_like(views.masks), mask_weights=np.ones_like(views.masks))
    assert len(without_white_parts(mesh, white).faces) == first


def test_a_mesh_of_one_part_is_left_alone(scene):
    mesh, views, _, first = scene
    one = Mesh(mesh.vertices, mesh.faces[:first])
    assert without_white_parts(one, views) is one
