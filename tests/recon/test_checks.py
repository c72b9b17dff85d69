"""Wrong cameras are noticed, right ones are not, on a figure whose sides differ in colour."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import static_azimuths_deg
from sv3d_jax.cameras.pose import intrinsics, look_at
from sv3d_jax.io.orbits import OrbitFrames
from sv3d_jax.recon.checks import CameraFitWarning, check_cameras
from sv3d_jax.recon.views import prepare_views
from sv3d_jax.train.data.figure_batches import render_figures

VIEWS, SIZE = 12, 64
AZIMUTHS, ELEVATIONS = static_azimuths_deg(VIEWS), np.full(VIEWS, 15.0)


@pytest.fixture(scope="module")
def images():
    return np.asarray(render_figures([3], AZIMUTHS[None], ELEVATIONS[None], SIZE))[0]


def check(images, azimuths, elevations, **changes):
    focal, center = intrinsics(33.8, SIZE)
    frames = OrbitFrames(
        images=images.astype(np.float32) / 255,
        alphas=None,
        camera_to_world=look_at(azimuths, elevations, 2.0),
        focal_px=np.tile(focal, (VIEWS, 1)),
        center_px=np.tile(center, (VIEWS, 1)),
        azimuths_deg=azimuths,
        elevations_deg=elevations,
        radius=2.0,
        input_frame=VIEWS - 1,
        fov_deg=33.8,
        object_to_world=None,
        files=[f"frames/{index:03}.png" for index in range(VIEWS)],
    )
    frames = replace(frames, **changes)
    return check_cameras(frames, prepare_views(frames)[0])


def test_right_cameras_pass(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(images, AZIMUTHS, ELEVATIONS)["finding"] is None


def test_a_reversed_orbit_is_noticed(images):
    with pytest.warns(CameraFitWarning, match="the other way"):
        result = check(images, -AZIMUTHS, ELEVATIONS)
    assert result["reversed"] < 0.3 * result["given"]


@pytest.mark.parametrize(("error", "direction"), [(20.0, "lower"), (-20.0, "higher")])
def test_wrong_elevations_are_noticed(images, error, direction):
    with pytest.warns(CameraFitWarning, match=f"about 20 degrees {direction} than given"):
        check(images, AZIMUTHS, ELEVATIONS + error)


def test_cameras_without_angles_are_not_judged(images):
    assert check(images, AZIMUTHS, ELEVATIONS, azimuths_deg=None) is None


def test_cameras_that_are_no_orbit_are_not_judged(images):
    poses = look_at(AZIMUTHS, ELEVATIONS + 3.0, 2.0)
    assert check(images, AZIMUTHS, ELEVATIONS, camera_to_world=poses) is None


def test_an_orbit_too_steep_to_be_raised_is_compared_with_its_reverse_alone(images):
    elevations = np.linspace(-85, 85, VIEWS)
    result = check(images, AZIMUTHS, elevations)
    assert result["raised"] == {} and result["reversed"] > 0
