"""Nearest triangles, compared with brute force."""

import numpy as np
import pytest

from sv3d_jax.metrics import face_tree
from sv3d_jax.metrics.face_tree import FaceTree, distance_to_triangles


def triangles_of(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    match kind:
        case "soup":
            return rng.normal(size=(300, 3, 3))
        case "one":
            return rng.normal(size=(1, 3, 3))
        case "grid":  # many centres with equal coordinates
            corner = np.stack(np.meshgrid(*[np.arange(12.0)] * 2, [0.0]), axis=-1).reshape(-1, 1, 3)
            return corner + np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
        case "slivers":
            return rng.normal(size=(200, 1, 3)) + rng.normal(size=(200, 3, 1)) * [5, 1e-3, 1e-9]
        case "no area":
            return np.repeat(rng.normal(size=(50, 1, 3)), 3, axis=1)
        case "equal":
            return np.tile(rng.normal(size=(1, 3, 3)), (70, 1, 1))
        case "far from the origin":
            return 1e6 + rng.normal(size=(300, 1, 3)) + 0.1 * rng.normal(size=(300, 3, 3))
        case "sphere":
            import trimesh

            return np.asarray(trimesh.creation.icosphere(subdivisions=3).triangles)
    raise ValueError(kind)


KINDS = ["soup", "one", "grid", "slivers", "no area", "equal", "far from the origin", "sphere"]


@pytest.mark.parametrize("reach", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("kind", KINDS)
def test_no_triangle_is_nearer_than_the_point_found(kind, reach):
    triangles = triangles_of(kind)
    rng = np.random.default_rng(1)
    middle = triangles.mean(axis=(0, 1))
    points = middle + reach * rng.normal(size=(60, 3))
    points = np.concatenate([points, [middle], triangles[:3].mean(axis=1), triangles[-3:, 0]])
    each = [distance_to_triangles(points, np.broadcast_to(t, (len(points), 3, 3))) for t in triangles]
    np.testing.assert_allclose(
        np.linalg.norm(points - FaceTree(triangles).nearest(points), axis=1),
        np.min(each, axis=0),
        rtol=1e-9,
        atol=1e-14 * np.abs(triangles).max(),  # where a foot lies on a triangle
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_points_lie_on_the_triangles(kind):
    triangles = triangles_of(kind)
    points = triangles.mean(axis=(0, 1)) + 3 * np.random.default_rng(4).normal(size=(60, 3))
    found = FaceTree(triangles).nearest(points)
    each = [distance_to_triangles(found, np.broadcast_to(t, (len(found), 3, 3))) for t in triangles]
    assert np.min(each, axis=0).max() < 1e-9  # normals of slivers are rounded


def test_small_chunks_give_the_same_points(monkeypatch):
    triangles = triangles_of("soup")
    points = np.random.default_rng(2).normal(size=(40, 3))
    whole = FaceTree(triangles).nearest(points)
    monkeypatch.setattr(face_tree, "CHUNK", 7)
    assert np.array_equal(FaceTree(triangles).nearest(points), whole)


def test_no_points_give_no_points():
    assert FaceTree(triangles_of("soup")).nearest(np.zeros((0, 3))).shape == (0, 3)


def test_few_triangles_are_looked_at_from_far_away(monkeypatch):
    triangles = triangles_of("sphere")
    points = np.random.default_rng(3).normal(size=(200, 3))
    points *= 3 / np.linalg.norm(points, axis=1, keepdims=True)
    looked_at = []

    def counted(points, triangles):
        looked_at.append(len(points))
        return distance_to_triangles(points, triangles)

    monkeypatch.setattr(face_tree, "distance_to_triangles", counted)
    FaceTree(triangles).nearest(points)
    assert sum(looked_at) < 40 * len(points)  # of 1280
