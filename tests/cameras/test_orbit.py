import json
import math
from pathlib import Path

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import (
    CameraPath,
    CameraWarning,
    custom_orbit,
    dynamic_orbit,
    dynamic_samples,
    make_orbit,
    sine_orbit,
    static_orbit,
)
from sv3d_jax.errors import CameraError
from tests.cameras.published import published_demo_azimuths_deg, published_dynamic_orbit

REFERENCE = Path(__file__).parents[1] / "reference"
PUBLISHED = json.loads((REFERENCE / "orbits.json").read_text())
RECON = json.loads((REFERENCE / "recon" / "orbits.json").read_text())


@pytest.mark.parametrize("case", PUBLISHED["static"], ids=lambda case: str(case["n"]))
def test_static_orbit_equals_the_published_command_line(case):
    azimuths = static_orbit(case["n"]).azimuths_deg
    np.testing.assert_allclose(azimuths, case["cli_azimuths_deg"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.deg2rad(azimuths), case["cli_azimuths_rad"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", PUBLISHED["static"], ids=lambda case: str(case["n"]))
def test_demo_azimuths_end_at_two_pi(case):
    azimuths = np.deg2rad(published_demo_azimuths_deg(case["n"]))
    np.testing.assert_allclose(azimuths, case["demo_azimuths_rad"], rtol=0, atol=1e-12)


def test_a_user_list_passes_through_unsorted_as_published():
    case = PUBLISHED["user_azimuths"]
    with pytest.warns(CameraWarning, match="order is kept"):
        path = custom_orbit(case["azimuths_deg"], 10.0, len(case["azimuths_deg"]))
    np.testing.assert_allclose(np.deg2rad(path.azimuths_deg), case["azimuths_rad"], rtol=0, atol=1e-12)


def _dynamic_id(case):
    return f"seed{case['seed']}-{case['length']}-at{case['elev_deg']:g}"


@pytest.mark.parametrize("case", PUBLISHED["dynamic"], ids=_dynamic_id)
def test_dynamic_orbit_equals_the_published_one(case):
    azimuths, elevations = published_dynamic_orbit(case["length"], case["elev_deg"], case["seed"])
    np.testing.assert_allclose(np.deg2rad(azimuths), case["azimuth_rad"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.deg2rad(elevations), case["elevation_rad"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_frames", [5, 21, 40, 84, 128])
def test_dynamic_orbit_has_the_asked_number_of_frames_on_the_published_curve(num_frames):
    path = dynamic_orbit(num_frames, 10.0, seed=3)
    azimuths, elevations = dynamic_samples(10.0, 3)
    curve = np.interp(path.azimuths_deg, np.append(azimuths, 360.0), np.append(elevations, elevations[0]))
    assert len(path) == num_frames
    np.testing.assert_allclose(path.elevations_deg, curve, atol=1e-9)


def test_dynamic_orbit_at_a_divisor_of_84_equals_the_published_one():
    azimuths, elevations = published_dynamic_orbit(21, 10.0, 7)
    path = dynamic_orbit(21, 10.0, 7)
    np.testing.assert_allclose(path.azimuths_deg, azimuths, rtol=0, atol=1e-12)
    np.testing.assert_allclose(path.elevations_deg, elevations, rtol=0, atol=1e-12)


def test_dynamic_orbit_ends_at_the_input_view():
    path = dynamic_orbit(21, -7.0, seed=5)
    assert path.azimuths_deg[-1] == 0.0
    assert path.elevations_deg[-1] == pytest.approx(-7.0, abs=1e-9)


@pytest.mark.parametrize("name,path", [("static", static_orbit(21, 12.5)), ("sine30", sine_orbit(21, 12.5))])
def test_orbits_equal_the_reconstruction_reference(name, path):
    angles = [[frame["azimuth_deg"], frame["elevation_deg"]] for frame in RECON[name]]
    matrices = [frame["c2w_opengl"] for frame in RECON[name]]
    np.testing.assert_allclose(np.stack([path.azimuths_deg, path.elevations_deg], -1), angles, atol=1e-6)
    np.testing.assert_allclose(path.camera_to_world, matrices, atol=1e-6)


def test_sine_orbit_is_clamped_at_89_degrees():
    assert sine_orbit(21, 70.0).elevations_deg.max() == 89.0


def test_the_last_frame_is_the_input_view():
    path = custom_orbit([10.0, 100.0, 190.0], [0.0, 5.0, 10.0], 3)
    assert path.input_frame == 2
    np.testing.assert_allclose(path.azimuths_deg, [180.0, 270.0, 0.0])


def test_a_single_elevation_is_repeated():
    np.testing.assert_array_equal(custom_orbit(None, [25.0], 4).elevations_deg, [25.0] * 4)


def test_azimuths_are_taken_modulo_360_and_this_is_said():
    with pytest.warns(CameraWarning, match="modulo 360"):
        path = custom_orbit([-350.0, 380.0, 0.0], 0.0, 3)
    np.testing.assert_allclose(path.azimuths_deg, [10.0, 20.0, 0.0])


def test_azimuths_just_below_zero_do_not_round_up_to_360():
    assert CameraPath(np.array([-1e-15, 0.0]), np.zeros(2)).azimuths_deg.max() < 360.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "north", None])
@pytest.mark.parametrize("name", ["azimuths_deg", "elevations_deg"])
def test_angles_that_are_no_finite_numbers_are_refused_by_index(name, bad):
    angles = {"azimuths_deg": [10.0, 20.0, 0.0], "elevations_deg": [0.0, 0.0, 0.0]}
    angles[name][1] = bad
    with pytest.raises(CameraError, match=rf"{name}\[1\]"):
        custom_orbit(**angles, num_frames=3)


@pytest.mark.parametrize("bad", [90.5, -91.0])
def test_elevations_beyond_the_poles_are_refused_by_index(bad):
    with pytest.raises(CameraError, match=r"elevations_deg\[2\]"):
        custom_orbit(None, [0.0, 0.0, bad], 3)


@pytest.mark.parametrize("kind", ["static", "sine", "dynamic"])
def test_a_bad_scalar_elevation_is_refused(kind):
    with pytest.raises(CameraError, match="elevation_deg"):
        make_orbit(kind, elevation_deg=math.nan)


def test_a_list_of_another_length_names_both_numbers():
    with pytest.raises(CameraError, match=r"num_frames=21 values, got 20"):
        make_orbit(elevations_deg=[10.0] * 20)
    with pytest.raises(CameraError, match=r"num_frames=21 values, got 22"):
        make_orbit(azimuths_deg=[10.0] * 22)


@pytest.mark.parametrize("num_frames", [-3, 0, 1, 129])
def test_numbers_of_frames_outside_2_to_128_are_refused(num_frames):
    with pytest.raises(CameraError, match=f"between 2 and 128, got {num_frames}"):
        make_orbit(num_frames=num_frames)


def test_other_than_21_frames_come_with_a_quality_warning():
    with pytest.warns(CameraWarning, match="trained on 21"):
        assert len(make_orbit(num_frames=14)) == 14


def test_the_usual_orbit_comes_without_a_warning(recwarn):
    make_orbit("dynamic", seed=1)
    assert not recwarn.list


def test_listed_azimuths_keep_the_elevations_of_the_kind():
    azimuths = list(np.linspace(5, 360, 21))
    path = make_orbit("sine", azimuths_deg=azimuths)
    np.testing.assert_array_equal(path.elevations_deg, sine_orbit().elevations_deg)
    np.testing.assert_allclose(path.azimuths_deg[:-1], azimuths[:-1])


def test_an_elevation_that_no_dynamic_orbit_can_have_ends_in_an_error():
    with pytest.raises(CameraError, match="stays below 90"):
        dynamic_samples(90.0, 0)
