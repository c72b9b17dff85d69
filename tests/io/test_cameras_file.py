"""The cameras of a cameras.json: those that cannot be are refused, contradictions are said."""

import json
import re
import warnings

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import CameraPath, CameraWarning, dynamic_orbit, static_orbit
from sv3d_jax.errors import CameraError, SV3DError
from sv3d_jax.io.cameras_file import read_camera_path, write_cameras
from sv3d_jax.io.orbits import read_orbit, write_orbit
from sv3d_jax.io.scenes import read_views
from sv3d_jax.train.data.check import orbit_defects
from tests.io.orbit_files import IMAGES, edit, example_orbit, set_in_frame
from tests.io.scene_files import CASES


@pytest.fixture
def folder(tmp_path):
    return example_orbit(tmp_path / "orbit")


# Cameras with numbers that cannot be


def case_folder(tmp_path, name):
    """An orbit folder with a cameras.json of tests/cases/faults."""
    document = json.loads((CASES / "faults" / name).read_text())
    write_orbit(tmp_path, np.zeros((len(document["frames"]), 4, 4, 3), np.uint8), static_orbit(21))
    (tmp_path / "cameras.json").write_text(json.dumps(document))
    return tmp_path


@pytest.mark.parametrize(
    "name, text",
    [
        ("cameras_radius_1e300.json", r"frames\[0\].radius must lie between 1e-09 and 1e\+09, got 1e\+300"),
        ("cameras_elevation_4000.json", r"frames\[0\].elevation_deg is 4000, outside \[-90, 90\]"),
    ],
)
def test_numbers_that_no_camera_has_are_refused_with_the_file(tmp_path, name, text):
    with pytest.raises(CameraError, match=f"cameras.json: {text}"):
        read_orbit(case_folder(tmp_path, name))


def test_steep_views_are_read(tmp_path):
    orbit = read_orbit(case_folder(tmp_path, "cameras_elevations_-85_to_85.json"))
    assert orbit.elevations_deg.min() == -84.8 and orbit.elevations_deg.max() == 84.8


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.update(radius=0.0) or frame.pop("camera_to_world"),
        lambda frame: frame.update(radius=-2.0) or frame.pop("camera_to_world"),
        lambda frame: frame.update(radius=1e10) or frame.pop("camera_to_world"),
        lambda frame: frame.update(elevation_deg=-90.5),
        lambda frame: frame.update(azimuth_deg=10**400),
        lambda frame: frame["camera_to_world"][0].__setitem__(3, 1e30),
    ],
)
def test_so_are_other_numbers_of_the_kind(folder, change):
    edit(folder, lambda document: change(document["frames"][2]))
    with pytest.raises(CameraError, match=r"cameras.json: frames\[2\]"):
        read_orbit(folder)


# Angles beside matrices


def contradictions(folder, read=read_orbit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(folder)
    return [str(warning.message) for warning in caught if warning.category is CameraWarning]


def test_angles_that_agree_with_their_matrices_need_no_words(folder):
    assert contradictions(folder) == []


def test_azimuths_may_count_from_any_direction(folder):
    def turned(document):
        for frame in document["frames"]:
            frame["azimuth_deg"] += 100.0

    edit(folder, turned)
    assert contradictions(folder) == []


@pytest.mark.parametrize("index", [1, 4])
def test_an_azimuth_that_contradicts_its_matrix_is_said_with_both_numbers(folder, index):
    true = dynamic_orbit(5, seed=1).azimuths_deg[index]
    edit(folder, lambda document: document["frames"][index].update(azimuth_deg=true + 30))
    (said,) = contradictions(folder)
    assert f"cameras.json: frames[{index}].azimuth_deg is {true + 30:g}" in said
    assert f"stands at {true:.4g} degrees; the matrix is used" in said


def test_azimuths_that_go_round_the_other_way_are_said_once(folder):
    def reversed_azimuths(document):
        for frame in document["frames"]:
            frame["azimuth_deg"] *= -1

    edit(folder, reversed_azimuths)
    (said,) = contradictions(folder)
    assert "more frames contradict themselves" in said


def test_an_elevation_that_contradicts_its_matrix_is_said(folder):
    true = dynamic_orbit(5, seed=1).elevations_deg[0]
    edit(folder, lambda document: document["frames"][0].update(elevation_deg=true + 20))
    (said,) = contradictions(folder)
    assert f"frames[0].elevation_deg is {true + 20:g}" in said and f"stands at {true:.4g} degrees" in said


def test_a_path_to_sample_takes_the_angle_and_says_so(folder):
    true = dynamic_orbit(5, seed=1).azimuths_deg[1]
    edit(folder, lambda document: document["frames"][1].update(azimuth_deg=true + 5))
    (said,) = contradictions(folder, read_camera_path)
    assert "its angles are used" in said


def turned(frame):
    """The camera of a frame looks the other way."""
    pose = np.array(frame["camera_to_world"])
    pose[:3, :3] = pose[:3, :3] @ np.diag([-1.0, 1.0, -1.0])
    frame["camera_to_world"] = pose.tolist()


def moved(frame, factor):
    """The camera of a frame stands at a multiple of its distance."""
    pose = np.array(frame["camera_to_world"])
    pose[:3, 3] *= factor
    del frame["radius"]
    frame["camera_to_world"] = pose.tolist()


BOUNDS = r"frames\[1\].radius must lie between 1e-09 and 1e\+09"
FOCAL = r"frames\[1\]: focal lengths must be 0.001 to 10000 times the picture, got"
IMPOSSIBLE = {
    **{
        f"radius {radius}": (set_in_frame(1, radius=radius), BOUNDS)
        for radius in (0, -2, 1e-300, 1e300, -1e300)
    },
    **{
        f"radius {str(radius)[:5]}": (
            set_in_frame(1, radius=radius),
            r"frames\[1\].radius must be a finite number",
        )
        for radius in (float("nan"), float("inf"), "12", True, [2], 10**400)
    },
    **{
        f"focal length {focal}": (set_in_frame(1, fl_x=focal), FOCAL)
        for focal in (0, -5, 1e-9, 1e-300, 1e300)
    },
    **{
        f"field of view {fov}": (set_in_frame(1, fov_deg=fov), r"frames\[1\]: f")
        for fov in (0, 1e-9, 180, 179.99)
    },
    "aside": (
        set_in_frame(1, fl_x=20.0, cx=1e6),
        r"frames\[1\]: the principal point must lie within 100 sizes",
    ),
    "picture of no size": (
        set_in_frame(1, fl_x=20.0, width=1e-300),
        r"frames\[1\]: width and height must be sizes",
    ),
    "looking away": (
        lambda d: turned(d["frames"][1]),
        r"1 of 5 cameras look away .* frames\[1\] by 180 degrees",
    ),
    "in the object": (
        lambda d: moved(d["frames"][1], 1e-4),
        r"frames\[1\] stands in the object: 0.0002 from",
    ),
    "far out": (
        lambda d: moved(d["frames"][1], 1e300),
        r"frames\[1\].camera_to_world stands .* from the origin",
    ),
    "elevation": (set_in_frame(1, elevation_deg=4000), r"frames\[1\].elevation_deg is 4000, outside"),
}


@pytest.mark.parametrize("change, text", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_cameras_are_refused_by_all_that_read_them(folder, change, text):
    edit(folder, change)
    for read in (read_orbit, read_views, read_camera_path):
        with warnings.catch_warnings(), pytest.raises(CameraError, match=f"cameras.json: {text}"):
            warnings.simplefilter("ignore", CameraWarning)
            read(folder)
    assert any(re.search(text, defect) for defect in orbit_defects(folder))


FLAT = np.diag([1.0, 1.0, 1.0, 1.0])
FLAT[:2, :2] = 1.0  # no column is 0, but two are the same


@pytest.mark.parametrize("matrix", [1e300 * np.eye(4), np.diag([0, 0, 0, 1]), np.diag([1, 1, 0, 1]), FLAT])
def test_a_placement_that_flattens_or_blows_up_the_object_is_refused(folder, matrix):
    edit(folder, lambda document: document.update(object_to_world=matrix.tolist()))
    match = "object_to_world (has numbers beyond|must end with the row)"
    with pytest.raises(CameraError, match=match):
        read_orbit(folder)
    assert any(re.search(match, defect) for defect in orbit_defects(folder))


@pytest.mark.parametrize("radius", [1e-6, 1e6])
def test_small_and_large_worlds_are_read(tmp_path, radius):
    path = CameraPath(static_orbit(5).azimuths_deg, static_orbit(5).elevations_deg, radius)
    write_orbit(tmp_path, IMAGES, path)
    assert read_orbit(tmp_path).radius == radius and len(read_camera_path(tmp_path)) == 5


@pytest.mark.parametrize(
    "what",
    [{"object_to_world": np.full((4, 4), np.nan)}, {"lenses": (np.full((5, 2), np.inf), np.ones((5, 2)))}],
)
def test_cameras_that_are_not_finite_are_not_written(tmp_path, what):
    with pytest.raises(SV3DError, match="is not written: rows of"):
        write_orbit(tmp_path / "out", IMAGES, static_orbit(5), **what)
    with pytest.raises(SV3DError, match=r"cameras.json is not written"):
        write_cameras(tmp_path / "cameras.json", static_orbit(5), object_to_world=np.full((4, 4), np.nan))
    assert list(tmp_path.iterdir()) == []


ROWS = np.eye(4)
TEXTS = [[str(x) for x in row] for row in ROWS]


@pytest.mark.parametrize(
    "change, text",
    [
        (set_in_frame(2, camera_to_world=TEXTS), r"frames\[2\].camera_to_world\[0\]\[0\] must be a finite number"),
        (set_in_frame(2, camera_to_world=(ROWS == 1).tolist()), r"camera_to_world\[0\]\[0\] must be a finite number"),
        (set_in_frame(2, camera_to_world=ROWS[:3].tolist()), r"frames\[2\].camera_to_world must be 4x4 numbers"),
        (set_in_frame(2, camera_to_world=[*ROWS[:3].tolist(), [0, 0, 1, 1]]), "must end with the row 0 0 0 1"),
        (set_in_frame(2, camera_to_world=np.diag([1, 1, 1, 2]).tolist()), "must end with the row 0 0 0 1"),
        (set_in_frame(2, width=0), "width and height must be sizes in pixels, got 0x"),
        (set_in_frame(2, height=0), "width and height must be sizes in pixels"),
        (lambda document: document.update(input_frame=True), "input_frame must be a frame's index, got True"),
        (lambda document: document.update(input_frame=-1), "input_frame must be a frame's index, got -1"),
        (lambda document: document.update(input_frame=4.0), "input_frame must be a frame's index, got 4.0"),
        (lambda document: document.update(object_to_world=TEXTS), r"object_to_world\[0\]\[0\] must be a finite"),
        (lambda document: document.update(object_to_world=[]), "object_to_world must be 4x4 numbers"),
        (lambda document: document.update(object_to_world=False), "object_to_world must be 4x4 numbers, got False"),
        (lambda document: document.update(object_to_world=(2 * ROWS).tolist()), "to_world must end with the row"),
    ],
)  # fmt: skip
def test_what_is_no_camera_is_refused_by_readers_and_found_by_data_check(folder, change, text):
    edit(folder, change)
    with pytest.raises(CameraError, match=text):
        read_orbit(folder)
    assert any(re.search(text, defect) for defect in orbit_defects(folder))


def test_a_radius_that_contradicts_its_matrix_is_said_and_the_matrix_counts(folder):
    def changed(document):
        for frame in document["frames"]:
            frame["radius"] = 3

    edit(folder, changed)
    (said,) = contradictions(folder)
    assert "frames[0].radius is 3, but its camera_to_world stands at 2, and 4 more frames" in said
    with pytest.warns(CameraWarning):
        assert read_orbit(folder).radius == pytest.approx(2.0)


def test_a_matrix_that_is_null_counts_as_absent(folder):
    before = read_orbit(folder).camera_to_world
    edit(folder, set_in_frame(1, camera_to_world=None))
    np.testing.assert_allclose(read_orbit(folder).camera_to_world, before, atol=1e-9)
    assert len(read_camera_path(folder)) == 5
