"""Scenes of other programs, as orbit folders."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.cameras.pose import look_at
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.progress import NullProgress
from sv3d_jax.train.data.check import run_check
from sv3d_jax.train.data.config import CheckConfig, ImportConfig
from sv3d_jax.train.data.scenes import run_import
from tests.io.scene_files import copy_case, write_colmap

CENTER, RADIUS = np.array([1.0, -2.0, 0.5]), 4.5
AZIMUTHS = 37.0 + np.array([60.0, 110.0, 190.0, 250.0, 300.0, 360.0])
ELEVATIONS = np.array([10.0, 20.0, 15.0, 0.0, -10.0, 5.0])


def write_scene(folder, azimuths=AZIMUTHS, elevations=ELEVATIONS, change=lambda poses: poses, mode="RGBA"):
    """A scene with its cameras around CENTER; frame i has colour i."""
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
    with pytest.raises(CameraError, match="tilted sideways: the x axis of frames.* is [0-9.]+ degrees off"):
        imported(tmp_path / "scene", tmp_path / "wrong")


def test_a_clockwise_orbit_is_turned_round_and_keeps_its_last_view(tmp_path):
    write_scene(tmp_path / "scene", azimuths=-AZIMUTHS)
    imported(tmp_path / "scene", tmp_path / "out")
    orbit = read_orbit(tmp_path / "out")
    assert np.all(np.diff(orbit.azimuths_deg[:-1]) > 0)
    assert [round(255 * image[0, 0, 0]) for image in orbit.images] == [120, 90, 60, 30, 0, 150]


def look_aside(poses):
    poses[2] = poses[2] @ np.block(
        [[Rotation.from_euler("y", 20, degrees=True).as_matrix(), np.zeros((3, 1))], [np.zeros((1, 3)), 1.0]]
    )
    return poses


def step_back(poses):
    poses[2, :3, 3] += 1.0 * poses[2, :3, 2]
    return poses


def on_its_head(poses):
    poses[:, :3, :2] *= -1
    return poses


def scaled(poses):
    poses[:, :3, :3] *= 2.0
    return poses


REFUSED = {
    "a camera that looks aside": (
        {"change": look_aside},
        r"transforms.json: the cameras do not look at one point: frames\[2\] misses it by 0.[23]",
    ),
    "cameras on their heads": ({"change": on_its_head}, "are upside down"),
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


def document_of(folder):
    return json.loads((folder / "cameras.json").read_text())


@pytest.mark.parametrize(
    "case, focal, center",
    [
        ("transforms/ns", None, None),
        ("transforms/ns_c", (105.32440196222689, 105.32440196222689), (22, 40)),
        ("transforms/ns_fy", (105.32440196222689, 157.98660294334033), (32, 32)),
        ("reports/plain", None, None),
        ("reports/cxcy", (105.32440196222689, 105.32440196222689), (36, 28)),
        ("reports/flxy", (105.32440196222689, 131.6555024527836), (32, 32)),
        ("reports/split", None, None),
        ("reports/perframe_over", None, None),
    ],
)
@pytest.mark.filterwarnings("ignore::sv3d_jax.cameras.orbit.CameraWarning")
def test_cases_keep_their_lenses_and_poses(tmp_path, case, focal, center):
    imported(copy_case(case, tmp_path), tmp_path / "out")
    orbit = read_orbit(tmp_path / "out")
    expected = CameraPath(np.arange(1, 22) * 360 / 21, np.full(21, 10.0))
    np.testing.assert_allclose(orbit.camera_to_world, expected.camera_to_world, atol=1e-6)
    np.testing.assert_allclose(orbit.focal_px, [focal or (105.32440196222689,) * 2] * 21, rtol=1e-6)
    np.testing.assert_allclose(orbit.center_px, [center or (32, 32)] * 21, atol=1e-6)
    document = document_of(tmp_path / "out")
    assert document["fov_deg"] == pytest.approx(33.8, abs=1e-6)
    assert ("fl_x" in document["frames"][0]) == (focal is not None)
    assert orbit.alphas is not None


@pytest.mark.parametrize(
    "case, named", [("transforms/ns_k", "k1 = 0.3"), ("transforms/ns_fish", "OPENCV_FISHEYE")]
)
def test_distortion_without_opencv_is_refused_by_its_terms(tmp_path, monkeypatch, case, named):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(CameraError, match=named):
        imported(copy_case(case, tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["away", "opencv"])
def test_cameras_that_look_away_are_told_by_how_much_and_what_axes_are_expected(tmp_path, case):
    with pytest.raises(CameraError, match="all cameras look away from the point .* by 180 degrees") as error:
        imported(copy_case(f"reports/{case}", tmp_path), tmp_path / "out")
    assert "OpenCV" in error.value.hint and "negate the second and third column" in error.value.hint


def test_lenses_follow_their_views_when_an_orbit_is_turned_round(tmp_path):
    write_scene(tmp_path / "scene", azimuths=-AZIMUTHS)
    file = tmp_path / "scene" / "transforms.json"
    document = json.loads(file.read_text())
    del document["camera_angle_x"]
    for index, frame in enumerate(document["frames"]):
        frame["fl_x"] = 10.0 + index
    file.write_text(json.dumps(document))
    imported(tmp_path / "scene", tmp_path / "out")
    np.testing.assert_allclose(read_orbit(tmp_path / "out").focal_px[:, 0], [14, 13, 12, 11, 10, 15])


def test_a_colmap_model_of_an_orbit_is_imported_whatever_its_world(tmp_path):
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("xyz", [70, 20, -130], degrees=True).as_matrix()
    poses = look_at(AZIMUTHS, ELEVATIONS, RADIUS)
    poses[:, :3, 3] += CENTER
    write_colmap(tmp_path / "scene", tilt @ poses, "PINHOLE 8 8 12 13 4 4")
    (tmp_path / "scene" / "images").mkdir()
    for index in range(len(poses)):
        Image.new("RGBA", (8, 8), (30 * index, 0, 0, 100)).save(tmp_path / "scene/images" / f"{index}.png")
    imported(tmp_path / "scene", tmp_path / "out")
    orbit = read_orbit(tmp_path / "out")
    np.testing.assert_allclose(
        orbit.camera_to_world, CameraPath(AZIMUTHS, ELEVATIONS).camera_to_world, atol=1e-6
    )
    np.testing.assert_allclose(orbit.focal_px, [[12, 13]] * 6)
    positions = (tilt @ poses)[:, :, 3] @ orbit.object_to_world.T
    np.testing.assert_allclose(positions, orbit.camera_to_world[:, :, 3], atol=1e-6)


def test_pictures_that_are_not_square_are_left_to_reconstruct(tmp_path):
    write_scene(tmp_path / "scene", mode="RGBA")
    for file in (tmp_path / "scene" / "train").iterdir():
        Image.new("RGBA", (10, 8), (1, 2, 3, 90)).save(file)
    with pytest.raises(InputError, match="10x8 pixels, training needs square ones") as error:
        imported(tmp_path / "scene", tmp_path / "out")
    assert "sv3d reconstruct" in error.value.hint


def test_masks_take_the_place_of_alpha(tmp_path):
    write_scene(tmp_path / "scene", mode="RGB")
    file = tmp_path / "scene" / "transforms.json"
    document = json.loads(file.read_text())
    mask = np.zeros((8, 8), np.uint8)
    mask[2:] = 255
    Image.fromarray(mask).save(tmp_path / "scene" / "mask.png")
    for frame in document["frames"]:
        frame["mask_path"] = "mask.png"
    file.write_text(json.dumps(document))
    imported(tmp_path / "scene", tmp_path / "out")
    np.testing.assert_array_equal(read_orbit(tmp_path / "out").alphas[3], mask / 255)


def test_a_folder_without_scenes_says_what_is_known(tmp_path):
    with pytest.raises(InputError, match="holds no cameras") as error:
        imported(tmp_path, tmp_path / "out")
    assert "COLMAP" in error.value.hint


def test_a_scene_is_not_imported_over_its_own_pictures(tmp_path):
    write_scene(tmp_path)
    (tmp_path / "train").rename(tmp_path / "frames")
    file = tmp_path / "transforms.json"
    file.write_text(file.read_text().replace("./train", "frames"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(InputError, match="is an input of this run"):
        imported(tmp_path, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    imported(tmp_path, tmp_path / "orbit")  # a folder of its own may lie within the scene's
