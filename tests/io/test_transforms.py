"""Cameras of transforms.json: which values take precedence, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cameras.orbit import CameraWarning
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.transforms import read_transforms
from tests.io.scene_files import copy_case, frame, write_transforms

ANGLE = 2 * np.arctan(0.5)  # across which 8 pixels have a focal length of 8


def lens_of(tmp_path, document, size=(8, 8)):
    folder = write_transforms(tmp_path / "scene", document, size)
    lens = read_transforms(folder / "transforms.json")[0][0].lens
    return (*lens.focal_px, *lens.center_px)


@pytest.mark.parametrize(
    "case, focal, center",
    [
        ("transforms/ns", (105.32440196222689, 105.32440196222689), (32, 32)),
        ("transforms/ns_c", (105.32440196222689, 105.32440196222689), (22, 40)),
        ("transforms/ns_fy", (105.32440196222689, 157.98660294334033), (32, 32)),
        ("reports/plain", (105.32440196222689, 105.32440196222689), (32, 32)),
        ("reports/cxcy", (105.32440196222689, 105.32440196222689), (36, 28)),
        ("reports/flxy", (105.32440196222689, 131.6555024527836), (32, 32)),
    ],
)
def test_lenses_and_poses_are_those_of_the_file(tmp_path, case, focal, center):
    path = copy_case(case, tmp_path) / "transforms.json"
    views = read_transforms(path)[0]
    given = [frame["transform_matrix"] for frame in json.loads(path.read_text())["frames"]]
    np.testing.assert_allclose([view.camera_to_world for view in views], given, atol=1e-12)
    for view in views:
        np.testing.assert_allclose(view.lens.focal_px, focal, rtol=1e-9)
        np.testing.assert_allclose(view.lens.center_px, center)
        assert view.lens.distortion is None


@pytest.mark.parametrize(
    "root, own, size, expected",
    [
        ({"camera_angle_x": ANGLE}, {}, (8, 8), (8, 8, 4, 4)),
        ({"camera_angle_y": ANGLE}, {}, (8, 8), (8, 8, 4, 4)),
        ({"x_fov": np.rad2deg(ANGLE)}, {}, (8, 8), (8, 8, 4, 4)),
        ({"camera_angle_x": ANGLE}, {}, (8, 6), (8, 8, 4, 3)),
        ({"fl_x": 9}, {}, (8, 8), (9, 9, 4, 4)),
        ({"fl_y": 9}, {}, (8, 8), (9, 9, 4, 4)),
        ({"fl_x": 9, "fl_y": 12, "cx": 3, "cy": 5}, {}, (8, 8), (9, 12, 3, 5)),
        ({"fl_x": 18, "w": 16, "h": 16, "cx": 6, "cy": 10}, {}, (8, 8), (9, 9, 3, 5)),
        ({"fl_x": 18, "w": 16.0, "h": 12.0}, {}, (8, 6), (9, 9, 4, 3)),
        ({"cx": 3, "w": 8, "h": 8}, {"fl_x": 10, "cy": 5}, (8, 8), (10, 10, 3, 5)),
        (
            {"aabb_scale": 16, "fl_x": 9, "k1": 0, "p2": 0.0, "ply_file_path": "a.ply"},
            {},
            (8, 8),
            (9, 9, 4, 4),
        ),
    ],
)
def test_focal_lengths_come_from_pixels_or_angles(tmp_path, root, own, size, expected):
    document = root | {"frames": [frame(0, **own)]}
    np.testing.assert_allclose(lens_of(tmp_path, document, size), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "root, own, expected, said",
    [
        (
            {"camera_angle_x": 1.5},
            {"fl_x": 8.0},
            (8, 8),
            "frame's fl_x says 53.13 .* file's camera_angle_x says 85.94",
        ),
        ({"camera_angle_x": 1.5, "fl_x": 8.0}, {}, (8, 8), "file's fl_x .* file's camera_angle_x"),
        (
            {"fl_x": 9.0, "fl_y": 9.0},
            {"camera_angle_x": ANGLE},
            (8, 8),
            "frame's camera_angle_x .* file's fl_x",
        ),
        (
            {"fl_x": 9.0, "camera_angle_y": 1.5},
            {"fl_x": 9.0},
            (9, 9),
            "frame's fl_x .* file's camera_angle_y",
        ),
    ],
)
def test_the_nearest_and_most_exact_number_counts_and_others_are_said(tmp_path, root, own, expected, said):
    with pytest.warns(CameraWarning, match=said) as warned:
        focal = lens_of(tmp_path, root | {"frames": [frame(0, **own), frame(1, **own)]})[:2]
    np.testing.assert_allclose(focal, expected, rtol=1e-12)
    assert len(warned) == 1 and "1 more" in str(warned[0].message)


def test_a_stale_angle_of_the_file_loses_against_every_frames_own(tmp_path):
    path = copy_case("reports/perframe_over", tmp_path) / "transforms.json"
    with pytest.warns(CameraWarning, match="33.8 degrees.* 90 degrees"):
        views = read_transforms(path)[0]
    for view in views:
        assert 2 * np.rad2deg(np.arctan(32 / view.lens.focal_px[0])) == pytest.approx(33.8, abs=1e-6)


@pytest.mark.parametrize(
    "root, distortion",
    [
        ({"k1": 0.3, "k2": -0.1, "p1": 0.0}, "k1 = 0.3, k2 = -0.1"),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0.0}, "OPENCV_FISHEYE"),
        ({"camera_model": "OPENCV", "is_fisheye": True}, "OPENCV_FISHEYE"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
        ({"camera_model": "simple_radial", "k1": 0.1}, "k1 = 0.1"),
        ({"b2": 0.5}, "b2 = 0.5"),
        ({"camera_model": "PINHOLE", "k1": 0, "k2": 0.0}, None),
    ],
)
def test_lens_terms_are_kept(tmp_path, root, distortion):
    folder = write_transforms(tmp_path / "scene", {"fl_x": 9} | root)
    assert read_transforms(folder / "transforms.json")[0][0].lens.distortion == distortion


def test_a_frames_own_terms_win(tmp_path):
    document = {"fl_x": 9, "k1": 0.3, "frames": [frame(0, k1=0.0), frame(1, k1=-0.2), frame(2)]}
    views = read_transforms(write_transforms(tmp_path / "scene", document) / "transforms.json")[0]
    assert [view.lens.distortion for view in views] == [None, "k1 = -0.2", "k1 = 0.3"]


@pytest.mark.parametrize(
    "name",
    [
        "images/0",
        "./images/0.png",
        "images\\0.png",
        ".\\images\\0",
        "../scene/images/0.png",
        "images/../images/0",
    ],
)
def test_names_of_pictures_are_read_as_programs_write_them(tmp_path, name):
    document = {"fl_x": 9, "frames": [frame(0, file_path=name)]}
    assert len(read_transforms(write_transforms(tmp_path / "scene", document) / "transforms.json")[0]) == 1


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".JPG"])
def test_a_name_without_suffix_finds_other_pictures_than_png(tmp_path, suffix):
    folder = write_transforms(
        tmp_path / "scene", {"fl_x": 9, "frames": [frame(0, file_path="images/view.1")]}
    )
    Image.new("RGB", (8, 8)).save(folder / f"images/view.1{suffix}")
    assert read_transforms(folder / "transforms.json")[0][0].picture.rgb.shape == (8, 8, 3)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    file = write_transforms(tmp_path / "scene", {"fl_x": 9}) / "transforms.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_transforms(file)[0]) == 3


def test_a_mask_is_the_alpha_of_its_picture(tmp_path):
    document = {"fl_x": 9, "frames": [frame(0, mask_path="masks/0.png"), frame(1, mask_path="masks/1.png")]}
    folder = write_transforms(tmp_path / "scene", document, mode="RGB")
    (folder / "masks").mkdir()
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5] = 255
    Image.fromarray(mask).save(folder / "masks/0.png")
    Image.fromarray(mask // 255).save(folder / "masks/1.png")  # as labels 0 and 1
    for view in read_transforms(folder / "transforms.json")[0]:
        np.testing.assert_array_equal(view.picture.alpha, mask)


def test_pixels_stay_as_stored_whatever_exif_says(tmp_path):
    folder = write_transforms(tmp_path / "scene", {"fl_x": 9, "frames": [frame(0, file_path="a.jpg")]})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(folder / "a.jpg", exif=exif)
    assert read_transforms(folder / "transforms.json")[0][0].picture.rgb.shape == (6, 8, 3)


TRANSPOSED = np.transpose(frame()["transform_matrix"]).tolist()
FAR = (np.eye(4) + 1e300 * np.eye(4, k=3)).tolist()
MIRROR = np.diag([1.0, -1.0, 1.0, 1.0]).tolist()
TEXTS = [[str(x) for x in row] for row in frame()["transform_matrix"]]
TRUTHS = [[x == 1 for x in row] for row in frame()["transform_matrix"]]
REFUSED = {
    "no focal length": ({}, {}, "no focal length"),
    "an angle of a half turn": ({"camera_angle_x": 3.2}, {}, "camera_angle_x must lie between"),
    "an angle in degrees": ({"camera_angle_x": 33.8}, {}, "camera_angle_x must lie between"),
    "a focal length that is text": ({"fl_x": "9"}, {}, "fl_x must be a finite number, got '9'"),
    "a focal length beyond floats": ({"fl_x": 10**400}, {}, "fl_x must be a finite number"),
    "a negative focal length": ({"fl_x": -9}, {}, "must be positive"),
    "a picture that was turned": ({"fl_x": 9, "w": 6, "h": 8}, {}, "is for 6x8 pixels.*has 8x8"),
    "no width": ({"fl_x": 9, "w": 0, "h": 8}, {}, "w and h must be positive"),
    "no matrix": ({"fl_x": 9}, {"transform_matrix": "x"}, r"frames\[0\]: transform_matrix must be 4x4 numbers"),
    "a matrix with a hole": ({"fl_x": 9}, {"transform_matrix": [[float("nan")] * 4] * 4}, r"must be a finite number"),
    "a matrix beyond floats": ({"fl_x": 9}, {"transform_matrix": [[10**400] * 4] * 4}, r"must be a finite number"),
    "a matrix of texts": ({"fl_x": 9}, {"transform_matrix": TEXTS}, r"must be a finite number, got .1"),
    "a matrix of truths": ({"fl_x": 9}, {"transform_matrix": TRUTHS}, r"must be a finite number, got T"),
    "a fisheye flag as text": ({"fl_x": 9, "is_fisheye": "false"}, {}, "is_fisheye must be true or false, got 'false'"),
    "a panorama flag as text": ({"fl_x": 9}, {"latlong": "no"}, "latlong must be true or false"),
    "a panorama flag as a number": ({"fl_x": 9}, {"equirectangular": 2}, "equirectangular must be true or false"),
    "a panorama flag as a list": ({"fl_x": 9, "is_equirectangular": [0]}, {}, "is_equirectangular must be true or"),
    "a mirror": ({"fl_x": 9}, {"transform_matrix": MIRROR}, "without a scale or a mirror"),
    "a transposed matrix": ({"fl_x": 9}, {"transform_matrix": TRANSPOSED}, "0 0 0 1"),
    "a camera at 1e300": ({"fl_x": 9}, {"transform_matrix": FAR}, "1e.300 from"),
    "no picture's name": ({"fl_x": 9}, {"file_path": None}, "no .file_path"),
    "an absolute name": ({"fl_x": 9}, {"file_path": "/etc/passwd"}, "absolute.*/etc/passwd"),
    "the folder as a name": ({"fl_x": 9}, {"file_path": "."}, "file_path names a folder"),
    "the folder with a slash": ({"fl_x": 9}, {"file_path": "./"}, "file_path names a folder"),
    "the folder above": ({"fl_x": 9}, {"file_path": "images/.."}, "file_path names a folder"),
    "the folder as a mask": ({"fl_x": 9}, {"mask_path": "."}, "mask_path names a folder"),
    "a Windows drive": ({"fl_x": 9}, {"file_path": "C:\\a.png"}, "absolute"),
    "an address": ({"fl_x": 9}, {"file_path": "https://a.b/c.png"}, "address"),
    "two folders up": ({"fl_x": 9}, {"file_path": "../../a.png"}, "outside the folder"),
    "two folders up with backslashes": ({"fl_x": 9}, {"file_path": "images\\..\\..\\..\\a.png"}, "outside the folder"),
}  # fmt: skip


@pytest.mark.parametrize("root, own, text", REFUSED.values(), ids=REFUSED)
def test_what_is_no_camera_or_no_picture_is_refused_by_name(tmp_path, root, own, text):
    folder = write_transforms(tmp_path / "scene", root | {"frames": [frame(0, **own), frame(1)]})
    with pytest.raises(InputError, match=text) as error:
        read_transforms(folder / "transforms.json")
    assert str(folder / "transforms.json") in error.value.message


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b'{"frames": []}', b'{"frames": [1]}', b"\xff\xfe{", b"[" * 100_000, b"9" * 10_000],
)
def test_a_file_without_frames_is_refused(tmp_path, content):
    (tmp_path / "transforms.json").write_bytes(content)
    with pytest.raises(InputError, match="transforms.json"):
        read_transforms(tmp_path / "transforms.json")


def test_rounded_rotations_become_rotations(tmp_path):
    pose = np.eye(4)
    pose[:3, :3] = [[0.936, 0.0, 0.352], [0.0, 1.0, 0.0], [-0.352, 0.0, 0.936]]
    document = {"fl_x": 9, "frames": [frame(0, transform_matrix=pose.tolist())]}
    rotation = read_transforms(write_transforms(tmp_path / "scene", document) / "transforms.json")[0][
        0
    ].camera_to_world
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(rotation, pose, atol=1e-3)


def test_a_lens_refusal_is_a_camera_error(tmp_path):
    folder = write_transforms(tmp_path / "scene", {"fl_x": 9, "w": 6, "h": 8})
    with pytest.raises(CameraError, match="turned|pixels"):
        read_transforms(folder / "transforms.json")


@pytest.mark.parametrize("name", ["images/9", "a" * 5000, "images/0.png/b", "a\0b"])
def test_frames_without_a_picture_are_told_from_the_others(tmp_path, name):
    document = {"fl_x": 9, "frames": [frame(0), frame(1, file_path=name), frame(2)]}
    views, absent = read_transforms(write_transforms(tmp_path / "scene", document) / "transforms.json")
    assert [view.name for view in views] == ["frames[0]", "frames[2]"]
    assert len(absent) == 1 and f"frames[1]: {tmp_path / 'scene' / name} does not exist" in absent[0]


def test_an_absent_mask_is_refused(tmp_path):
    document = {"fl_x": 9, "frames": [frame(0, mask_path="m.png"), frame(1)]}
    with pytest.raises(InputError, match=r"frames\[0\]: .*m.png does not exist"):
        read_transforms(write_transforms(tmp_path / "scene", document) / "transforms.json")


@pytest.mark.parametrize(
    "flag, model", [(True, "OPENCV_FISHEYE"), (1, "OPENCV_FISHEYE"), (0, "OPENCV"), (None, "OPENCV")]
)
def test_flags_are_truths_or_the_numbers_0_and_1(tmp_path, flag, model):
    folder = write_transforms(tmp_path / "scene", {"fl_x": 9, "is_fisheye": flag})
    assert read_transforms(folder / "transforms.json")[0][0].lens.model == model
