import json
from pathlib import Path

import numpy as np
import pytest

from sv3d_jax.cameras.pose import camera_from_world, clip_from_camera, intrinsics, look_at

REFERENCE = Path(__file__).parents[1] / "reference" / "recon" / "cameras.json"
DOCUMENT = json.loads(REFERENCE.read_text())
CAMERAS = [camera for cameras in DOCUMENT["cameras"].values() for camera in cameras]


@pytest.mark.parametrize("camera", CAMERAS)
def test_look_at_equals_the_reference(camera):
    pose = look_at(camera["azimuth_deg"], camera["elevation_deg"], camera["radius"])
    np.testing.assert_allclose(pose, camera["c2w_opengl"], atol=1e-12)
    np.testing.assert_allclose(camera_from_world(pose), camera["w2c_opengl"], atol=1e-12)


def test_intrinsics_equal_the_reference():
    (fx, fy), (cx, cy) = intrinsics(DOCUMENT["fov_deg"], DOCUMENT["resolution"])
    np.testing.assert_allclose([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], CAMERAS[0]["K"], atol=1e-9)


@pytest.mark.parametrize("elevation", [-90.0, 90.0])
def test_look_at_is_a_rotation_at_the_poles(elevation):
    rotation = look_at(30.0, elevation, 2.0)[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_clip_space_and_pinhole_formula_agree():
    height, width = 48, 96
    focal, center = np.array([100.0, 90.0]), np.array([50.0, 20.0])
    point = np.array([0.1, -0.05, -1.7, 1.0])
    x, y, _, w = clip_from_camera(focal, center, height, width) @ point
    expected = [focal[0] * point[0] / 1.7 + center[0], center[1] - focal[1] * point[1] / 1.7]
    np.testing.assert_allclose([(x / w + 1) * width / 2, (1 - y / w) * height / 2], expected)


def test_clip_depth_spans_near_to_far():
    matrix = clip_from_camera(*intrinsics(33.8, 64), 64, 64, near=0.5, far=4.0)
    z, w = (matrix @ np.array([[0, 0, -0.5, 1], [0, 0, -4.0, 1]]).T)[2:]
    np.testing.assert_allclose(z / w, [-1, 1], atol=1e-12)
