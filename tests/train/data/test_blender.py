"""Orbits that Blender rendered, as orbit folders."""

import json

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.cameras.pose import look_at
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.progress import NullProgress
from sv3d_jax.train.data.blender import run_import
from sv3d_jax.train.data.check import run_check
from sv3d_jax.train.data.config import CheckConfig, ImportConfig

CENTER, RADIUS = np.array([1.0, -2.0, 0.5]), 4.5
AZIMUTHS = 37.0 + np.array([60.0, 110.0, 190.0, 250.0, 300.0, 360.0])
ELEVATIONS = np.array([10.0, 20.0, 15.0, 0.0, -10.0, 5.0])


def write_scene(folder, azimuths=AZIMUTHS, elevations=ELEVATIONS, change=lambda poses: poses, mode="RGBA"):
    """A scene with its cameras about CENTER; frame i is of colour i."""
    poses = look_at(azimuths, elevations, RADIUS)
    poses[:, :3, 3] += CENTER
    poses = change(poses)
    (folder / "train").mkdir(parents=True)
    frames = []
    for index, pose in enumerate(poses):
        frame = Image.new("RGBA", (8, 8), (30 * index, 0, 0, 255))
        frame.putpixel((7, 7), (0, 0, 0, 0))
        frame.convert(mode).save(folder / "train" / f"r_{index}.png")
        frames.append({"file_path": f"./train/r_{index}", "transform_matrix": pose.tolist()})
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.6911, "frames": frames}))


def imported(folder, output, **options):
    return run_import(ImportConfig(orbits=(folder,), output=output, **options), NullProgress())


def test_cameras_become_an_orbit_at_radius_2_about_the_origin(tmp_path):
    write_scene(tmp_path / "scene")
    imported(tmp_path / "scene", tmp_path / "out")
    orbit = read_orbit(tmp_path / "out")
    expected = CameraPath(AZIMUTHS, ELEVATIONS)
    np.testing.assert_allclose(orbit.camera_to_world, expected.camera_to_world, atol=1e-9)
    np.testing.assert_allclose(orbit.fov_deg, np.rad2deg(0.6911))
    assert orbit.radius == 2.0 and orbit.input_frame == 5
    assert [round(255 * image[0, 0, 0]) for image in orbit.images] == [0, 30, 60, 90, 120, 150]
    assert run_check(CheckConfig(folder=tmp_path / "out"), NullProgress())["ok"]


def test_the_way_from_the_scene_takes_its_cameras_to_ours(tmp_path):
    write_scene(tmp_path / "scene")
    imported(tmp_path / "scene", tmp_path / "out")
    orbit = read_orbit(tmp_path / "out")
    scene = look_at(AZIMUTHS, ELEVATIONS, RADIUS)[:, :3, 3] + CENTER
    matrix = orbit.object_to_world
    np.testing.assert_allclose(
        scene @ matrix[:3, :3].T + matrix[:3, 3], orbit.camera_to_world[:, :3, 3], atol=1e-9
    )


def test_a_scene_with_y_up_is_turned(tmp_path):
    y_up = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    write_scene(tmp_path / "scene", change=lambda poses: y_up @ poses)
    imported(tmp_path / "scene", tmp_path / "out", up="y")
    np.testing.assert_allclose(read_orbit(tmp_path / "out").elevations_deg, ELEVATIONS, atol=1e-9)
    with pytest.raises(CameraError, match="tilted sideways"):
        imported(tmp_path / "scene", tmp_path / "wrong")


def test_a_clockwise_orbit_is_turned_round_and_keeps_its_last_view(tmp_path):
    write_scene(tmp_path / "scene", azimuths=-AZIMUTHS)
    imported(tmp_path / "scene", tmp_path / "out")
    orbit = read_orbit(tmp_path / "out")
    assert np.all(np.diff(orbit.azimuths_deg[:-1]) > 0)
    assert [round(255 * image[0, 0, 0]) for image in orbit.images] == [120, 90, 60, 30, 0, 150]


def look_aside(poses):
    poses[2] = poses[2] @ np.block(
        [[look_at(20.0, 0.0, 1.0)[:3, :3], np.zeros((3, 1))], [np.zeros((1, 3)), 1.0]]
    )
    return poses


def step_back(poses):
    poses[2, :3, 3] += 1.0 * poses[2, :3, 2]
    return poses


def scaled(poses):
    poses[:, :3, :3] *= 2.0
    return poses


REFUSED = {
    "a camera that looks aside": ({"change": look_aside}, "do not look at one point: frames"),
    "a camera further away": ({"change": step_back}, "at distances 4.5 to 5.5"),
    "random views": ({"azimuths": AZIMUTHS[[2, 0, 4, 1, 3, 5]]}, "once round"),
    "half a turn": ({"azimuths": np.linspace(0, 180, 6)[[0, 1, 2, 5, 4, 3]]}, "once round"),
    "matrices with a scale": ({"change": scaled}, "without a scale"),
    "no alpha": ({"mode": "RGB"}, "no transparent pixel"),
}


@pytest.mark.parametrize("scene, text", REFUSED.values(), ids=REFUSED)
def test_what_is_no_orbit_is_refused(tmp_path, scene, text):
    write_scene(tmp_path / "scene", **scene)
    with pytest.raises(InputError, match=text):
        imported(tmp_path / "scene", tmp_path / "out")


def test_a_missing_frame_is_named(tmp_path):
    write_scene(tmp_path / "scene")
    (tmp_path / "scene" / "train" / "r_3.png").unlink()
    with pytest.raises(InputError, match=r"frames\[3\].*r_3"):
        imported(tmp_path / "scene", tmp_path / "out")


def test_of_a_folder_bad_orbits_are_left_out(tmp_path):
    write_scene(tmp_path / "scenes" / "good")
    write_scene(tmp_path / "scenes" / "bad", azimuths=AZIMUTHS[[2, 0, 4, 1, 3, 5]])
    result = imported(tmp_path / "scenes", tmp_path / "out")
    assert (tmp_path / "out" / "good" / "cameras.json").is_file() and len(result["imported"]) == 1
    assert len(result["left_out"]) == 1 and "bad" in result["left_out"][0]
