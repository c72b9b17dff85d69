"""Scenes of other programs, read like orbits."""

import sys

import numpy as np
import pytest
from PIL import Image, ImageFile

from sv3d_jax.cameras.orbit import CameraWarning, make_orbit
from sv3d_jax.cameras.pose import look_at
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io import images
from sv3d_jax.io.orbits import read_orbit, write_orbit
from sv3d_jax.io.scenes import find_scene, find_scenes, read_scene, read_views
from tests.io.scene_files import copy_case, frame, write_colmap, write_transforms

AZIMUTHS = np.arange(1, 9) * 45.0


def colmap_orbit(folder, turn=None, elevations=10.0):
    """A COLMAP model of an orbit in a rotated world."""
    poses = look_at(AZIMUTHS, elevations, 2.0)
    if turn is not None:
        poses = turn @ poses
    write_colmap(folder, poses)
    (folder / "images").mkdir()
    for index in range(len(poses)):
        Image.new("RGBA", (8, 8), (30 * index, 0, 0, 100)).save(folder / "images" / f"{index}.png")
    return folder


def test_pictures_and_cameras_are_read_together(tmp_path):
    views = read_views(copy_case("reports/cxcy", tmp_path))
    assert views.images.shape == (21, 64, 64, 3) and views.alphas.shape == (21, 64, 64)
    np.testing.assert_allclose(views.center_px, [[36, 28]] * 21)
    np.testing.assert_allclose(
        views.camera_to_world[:, :3, 3], look_at(np.arange(1, 22) * 360 / 21, 10.0, 4.0)[:, :3, 3], atol=1e-9
    )
    assert views.input_frame == 20 and views.azimuths_deg is None


def test_an_orbit_of_ours_is_read_as_one(tmp_path):
    folder = write_transforms(tmp_path, {"fl_x": 9})
    (folder / "cameras.json").write_text(
        '{"fov_deg": 30, "frames": [{"file": "images/0.png", "azimuth_deg": 0, "elevation_deg": 0, "radius": 2}]}'
    )
    assert find_scene(folder) is None
    for path in (folder, folder / "cameras.json"):
        assert read_views(path).fov_deg == read_orbit(folder).fov_deg == 30


def test_a_folder_without_cameras_is_refused(tmp_path):
    with pytest.raises(InputError, match="cameras.json does not exist") as error:
        read_views(tmp_path)
    assert "transforms.json" in error.value.hint and "COLMAP" in error.value.hint


@pytest.mark.parametrize(
    "names, taken",
    [
        (["_train", "_val", "_test"], "_train"),
        (["_test", "_val"], "_test"),
        (["_val"], "_val"),
        (["", "_train"], ""),
    ],
)
def test_of_files_for_training_and_tests_one_is_read(tmp_path, names, taken):
    write_transforms(tmp_path, {"fl_x": 9})
    content = (tmp_path / "transforms.json").read_text()
    (tmp_path / "transforms.json").unlink()
    for name in names:
        (tmp_path / f"transforms{name}.json").write_text(content)
    assert find_scene(tmp_path) == tmp_path / f"transforms{taken}.json"
    if taken and len(names) > 1:
        with pytest.warns(CameraWarning, match=f"transforms{taken}.json is read.*{names[-1]}"):
            read_views(tmp_path)
    else:
        read_views(tmp_path)


def test_each_of_them_can_be_named(tmp_path):
    scene = copy_case("reports/split", tmp_path)
    with pytest.warns(CameraWarning, match="transforms_test.json is read"):
        assert len(read_views(scene / "transforms_test.json").files) == 21


def test_scenes_are_found_at_any_depth_and_not_within_each_other(tmp_path):
    write_transforms(tmp_path / "a", {"fl_x": 9})
    write_colmap(tmp_path / "a" / "colmap", look_at([0], 5.0, 2.0))  # as nerfstudio leaves it
    write_colmap(tmp_path / "b" / "c", look_at([0], 5.0, 2.0))
    assert find_scenes(tmp_path) == [tmp_path / "a/transforms.json", tmp_path / "b/c/sparse/0"]


def test_pictures_of_several_sizes_are_refused(tmp_path):
    write_transforms(tmp_path, {"camera_angle_x": 0.5})
    Image.new("RGBA", (10, 8)).save(tmp_path / "images/1.png")
    with pytest.raises(InputError, match=r"transforms.json: the picture of frames\[1\] has 10x8 pixels.*8x8"):
        read_views(tmp_path)


@pytest.mark.parametrize(
    "case, named",
    [
        ("transforms/ns_k", "k1 = 0.3, k2 = -0.1"),
        ("transforms/ns_fish", "OPENCV_FISHEYE"),
        ("reports/fisheye", "OPENCV_FISHEYE, k1 = 0.1"),
    ],
)
def test_distortion_is_refused_by_name_without_opencv(tmp_path, monkeypatch, case, named):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(CameraError, match=named) as error:
        read_views(copy_case(case, tmp_path))
    assert "sv3d_jax[photos]" in error.value.hint


@pytest.mark.parametrize("case", ["transforms/ns_k", "transforms/ns_fish", "reports/fisheye"])
def test_undistorted_pictures_have_the_pinholes_of_the_file(tmp_path, case):
    with pytest.warns(CameraWarning, match="undistorted"):
        views = read_views(copy_case(case, tmp_path))
    np.testing.assert_allclose(views.focal_px, 105.32440196222689, rtol=1e-9)
    np.testing.assert_allclose(views.center_px, 32.0)
    plain = read_views(copy_case("transforms/ns", tmp_path))
    assert np.abs(views.images - plain.images).max() > 0.1


TURNS = {
    "none": np.eye(3),
    "y down": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "upside down": np.diag([1.0, -1.0, -1.0]),
    "any": look_at(33.0, -52.0, 1.0)[:3, :3],
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("elevations", [10.0, 60 * np.sin(np.arange(8))], ids=["level", "swinging"])
def test_a_colmap_world_is_set_upright_by_its_cameras(tmp_path, turn, elevations):
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    views = read_views(colmap_orbit(tmp_path, matrix, elevations))
    x, y, z = views.camera_to_world[:, :3, 3].T
    np.testing.assert_allclose(np.rad2deg(np.arcsin(z / 2)), np.broadcast_to(elevations, 8), atol=1e-6)
    np.testing.assert_allclose(np.diff(np.unwrap(np.arctan2(y, x))), np.pi / 4, atol=1e-6)
    scene = matrix @ look_at(AZIMUTHS, elevations, 2.0)
    np.testing.assert_allclose(views.object_to_world @ scene, views.camera_to_world, atol=1e-9)


def test_a_named_axis_points_up(tmp_path):
    y_up = np.eye(4)
    y_up[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    scene = read_scene(find_scene(colmap_orbit(tmp_path, y_up)))
    np.testing.assert_allclose(
        (scene.world_from_scene("y") @ scene.camera_to_scene)[:, 2, 3], 2 * np.sin(np.pi / 18)
    )
    np.testing.assert_allclose(scene.world_from_scene("z"), np.eye(4))


def test_cameras_without_a_common_up_need_an_axis(tmp_path):
    poses = np.stack([look_at(0.0, 0.0, 2.0), look_at(0.0, 0.0, 2.0) @ np.diag([-1.0, -1.0, 1.0, 1.0])])
    write_colmap(tmp_path, poses)
    (tmp_path / "images").mkdir()
    for index in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{index}.png")
    with pytest.raises(CameraError, match="no common up"):
        read_views(tmp_path)
    assert len(read_views(tmp_path, "z").files) == 2


def test_pictures_without_alpha_stay_so(tmp_path):
    assert read_views(write_transforms(tmp_path, {"fl_x": 9, "frames": [frame()]}, mode="RGB")).alphas is None


def test_views_without_a_picture_are_left_out_and_said_once(tmp_path):
    scene = copy_case("transforms/ns", tmp_path)
    for index in (3, 7):
        (scene / "images" / f"frame_{index + 1:05d}.png").unlink()
    with pytest.warns(
        CameraWarning, match=r"left out: .*frames\[3\]: .*frame_00004.png does not exist.* 1 more"
    ) as warned:
        views = read_views(scene)
    assert len(warned) == 1 and len(views.files) == 19 and "frames[3]" not in views.files


def test_a_scene_without_any_picture_is_refused(tmp_path):
    write_transforms(tmp_path, {"fl_x": 9, "frames": [frame(0, file_path="a"), frame(1, file_path="b")]})
    with pytest.raises(InputError, match=r"frames\[0\]: .* does not exist"):
        read_views(tmp_path)


@pytest.mark.parametrize("kind", ["orbit", "transforms", "colmap"])
def test_pictures_that_do_not_fit_into_memory_together_are_refused_before_one_is_decoded(
    tmp_path, monkeypatch, kind
):
    folder = write_transforms(tmp_path / "scene", {"camera_angle_x": 0.6}, size=(40, 40))
    if kind == "orbit":
        write_orbit(folder, np.zeros((3, 40, 40, 3), np.uint8), make_orbit("static", 3, 0.0))
    if kind == "colmap":
        (folder / "transforms.json").unlink()
        write_colmap(folder, np.tile(np.eye(4), (3, 1, 1)), names=[f"{n}.png" for n in range(3)])
    monkeypatch.setattr(images, "MAX_TOTAL_PIXELS", 2 * 40 * 40)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("pixels are decoded"))
    with pytest.raises(InputError, match="more than 0 megapixels in all, up to (2|002).png"):
        read_views(folder)
