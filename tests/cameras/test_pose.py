import json
from pathlib import Path

import numpy as np
import pytest

from sv3d_jax.cameras.pose import intrinsics, look_at

REFERENCE = Path(__file__).parents[1] / "reference" / "recon" / "cameras.json"
DOCUMENT = json.loads(REFERENCE.read_text())
CAMERAS = [camera for cameras in DOCUMENT["cameras"].values() for camera in cameras]


@pytest.mark.parametrize("camera", CAMERAS)
def test_look_at_equals_the_reference(camera):
    pose = look_at(camera["azimuth_deg"], camera["elevation_deg"], camera["radius"])
    np.testing.assert_allclose(pose, camera["c2w_opengl"], atol=1e-12)
    np.testing.assert_allclose(np.linalg.inv(pose), camera["w2c_opengl"], atol=1e-12)


def test_intrinsics_equal_the_reference():
    (fx, fy), (cx, cy) = intrinsics(DOCUMENT["fov_deg"], DOCUMENT["resolution"])
    np.testing.assert_allclose([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], CAMERAS[0]["K"], atol=1e-9)


@pytest.mark.parametrize("elevation", [-90.0, 90.0])
def test_look_at_is_a_rotation_at_the_poles(elevation):
    rotation = look_at(30.0, elevation, 2.0)[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
