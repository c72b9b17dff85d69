"""Reading COLMAP models as written by pycolmap."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cameras.pose import look_at
from sv3d_jax.errors import InputError
from sv3d_jax.io.colmap import find_colmap, read_colmap
from tests.io.scene_files import CASES, write_colmap

RANDOM = CASES / "colmap" / "random"
EXPECTED = json.loads((RANDOM / "expected.json").read_text())


def with_pictures(folder, names, size=(64, 48)):
    for name in names:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)


@pytest.fixture(params=["text", "binary"])
def model(request, tmp_path):
    shutil.copytree(RANDOM if request.param == "text" else RANDOM / "binary", tmp_path / "sparse" / "0")
    with_pictures(tmp_path, [view["name"] for view in EXPECTED])
    return tmp_path / "sparse" / "0"


def test_poses_are_those_that_pycolmap_wrote(model):
    views = {view.name: view for view in read_colmap(model)[0]}
    assert set(views) == {view["name"] for view in EXPECTED}
    for view in EXPECTED:
        opencv_axes = views[view["name"]].camera_to_world @ np.diag([1.0, -1.0, -1.0, 1.0])
        np.testing.assert_allclose(opencv_axes[:3], view["world_from_camera"], atol=1e-9)


def test_points_land_where_pycolmap_puts_them(model):
    seen = []
    for view in read_colmap(model)[0]:
        expected = next(e for e in EXPECTED if e["name"] == view.name)
        x, y, z = (np.array(expected["point"]) - view.camera_to_world[:3, 3]) @ view.camera_to_world[:3, :3]
        if view.lens.distortion is None:
            pixel = [view.lens.center_px[0] - view.lens.focal_px[0] * x / z,
                     view.lens.center_px[1] + view.lens.focal_px[1] * y / z]  # fmt: skip
            np.testing.assert_allclose(pixel, expected["pixel"], atol=1e-6)
        seen.append(view.lens.distortion)
    assert seen.count(None) == 4
    assert seen.count("k1 = 0.1, k2 = -0.02, p1 = 0.001, p2 = -0.002") == 2


def test_views_are_in_the_order_of_their_numbers(tmp_path):
    names = ["view 10.png", "view 9.png", "view 1.png"]
    write_colmap(tmp_path, look_at([0, 10, 20], 5.0, 2.0), names=names)
    with_pictures(tmp_path, names, (8, 8))
    assert [view.name for view in read_colmap(tmp_path / "sparse/0")[0]] == [
        "view 1.png",
        "view 9.png",
        "view 10.png",
    ]


def test_odd_digits_and_numbers_of_any_length_are_names_as_well(tmp_path):
    names = ["v1²2.png", f"v{'9' * 200}.png", f"v{'1' * 201}.png", "v007.png", "v12.png"]
    write_colmap(tmp_path, look_at(np.arange(6) * 10, 5.0, 2.0), names=[*names, f"v{'1' * 5000}.png"])
    with_pictures(tmp_path, names, (8, 8))
    views, absent = read_colmap(tmp_path / "sparse/0")
    order = ["v1²2.png", "v007.png", "v12.png", f"v{'9' * 200}.png", f"v{'1' * 201}.png"]
    assert [view.name for view in views] == order
    assert len(absent) == 1 and absent[0].endswith("1.png does not exist")


@pytest.mark.parametrize(
    "camera, focal, center, distortion",
    [
        ("SIMPLE_PINHOLE 8 8 10 3 5", (10, 10), (3, 5), None),
        ("PINHOLE 16 16 20 24 6 10", (10, 12), (3, 5), None),
        ("SIMPLE_RADIAL 8 8 10 4 4 0.5", (10, 10), (4, 4), "k1 = 0.5"),
        ("SIMPLE_RADIAL 8 8 10 4 4 0", (10, 10), (4, 4), None),
        ("FULL_OPENCV 8 8 10 11 4 4 0 0 0 0 0 0 0 1", (10, 11), (4, 4), "k6 = 1"),
        ("OPENCV_FISHEYE 8 8 10 11 4 4 0 0 0 0", (10, 11), (4, 4), "OPENCV_FISHEYE"),
    ],
)
def test_camera_models_are_read_by_their_parameters(tmp_path, camera, focal, center, distortion):
    write_colmap(tmp_path, look_at([0], 5.0, 2.0), camera)
    with_pictures(tmp_path, ["0.png"], (8, 8))
    lens = read_colmap(tmp_path / "sparse/0")[0][0].lens
    assert lens.focal_px == focal and lens.center_px == center and lens.distortion == distortion


@pytest.mark.parametrize("camera", ["FOV 8 8 10 11 4 4 0.1", "EUCM 8 8 10 11 4 4 0.1 0.2", "NEW 8 8 1 2 3"])
def test_other_camera_models_keep_their_names(tmp_path, camera):
    write_colmap(tmp_path, look_at([0], 5.0, 2.0), camera)
    with_pictures(tmp_path, ["0.png"], (8, 8))
    assert read_colmap(tmp_path / "sparse/0")[0][0].lens.distortion == camera.split()[0]


@pytest.mark.parametrize("name", ["0.png.png", "0.png"])
def test_masks_become_alpha(tmp_path, name):
    write_colmap(tmp_path, look_at([0], 5.0, 2.0))
    with_pictures(tmp_path, ["0.png"], (8, 8))
    (tmp_path / "masks").mkdir()
    mask = np.zeros((8, 8), np.uint8)
    mask[3:, :4] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / name)
    np.testing.assert_array_equal(read_colmap(tmp_path / "sparse/0")[0][0].picture.alpha, mask)


@pytest.mark.parametrize("place", ["sparse/0", "sparse", ".", "colmap/sparse/0"])
def test_the_model_and_its_pictures_are_found(tmp_path, place):
    write_colmap(tmp_path / "other", look_at([0], 5.0, 2.0))
    shutil.copytree(tmp_path / "other/sparse/0", tmp_path / "scene" / place, dirs_exist_ok=True)
    with_pictures(tmp_path / "scene", ["0.png"], (8, 8))
    model = find_colmap(tmp_path / "scene")
    assert model == tmp_path / "scene" / place and len(read_colmap(model)[0]) == 1


LINE = "1 1 0 0 0 0 0 2 1 0.png\n\n"
REFUSED = {
    "cameras.txt": [
        ("1 PINHOLE 8 8 10 10 4\n", "cameras.txt line 1: a PINHOLE camera has 4 parameters"),
        ("1 PINHOLE 8 x 10 10 4 4\n", "cameras.txt line 1: expected CAMERA_ID"),
        (f"1 PINHOLE {'9' * 400} 8 10 10 4 4\n", "cameras.txt line 1: expected CAMERA_ID"),
        (f"1 PINHOLE {'9' * 5000} 8 10 10 4 4\n", "cameras.txt line 1: expected CAMERA_ID"),
        (f"1 PINHOLE {'9' * 300} 8 10 10 4 4\n", "its camera is for 1e.300x8 pixels"),
        ("1 PINHOLE 8 8 1e999 10 4 4\n", "positive and finite"),
        ("# nothing\n", "camera 1, which .*cameras.txt does not know"),
        ("1 PINHOLE 8 8 -10 10 4 4\n", "must be positive"),
        ("1 PINHOLE 6 8 10 10 4 4\n", "for 6x8 pixels"),
    ],
    "images.txt": [
        ("# nothing\n", "holds no image"),
        ("1 1 0 0 0 0 0 2 1\n\n", "images.txt line 1: expected IMAGE_ID"),
        (LINE.strip() + "\n" + LINE, "line 2: expected the points of 0.png"),
        (LINE.replace("1 1 0 0 0", "1 0 0 0 0"), "quaternion of length 1"),
        (LINE.replace(" 2 1 ", " nan 1 "), "position finite"),
        (LINE.replace(" 2 1 ", " 1e300 1 "), "1e.300 from the origin"),
        (LINE.replace("0.png", "9.png"), "names 9.png, and none of its pictures lies in .*images"),
        (LINE.replace("0.png", "../../0.png"), "outside the folder"),
        (LINE.replace("0.png", "/etc/0.png"), "absolute"),
    ],
}


@pytest.mark.parametrize(
    "file, text, match", [(file, *case) for file, cases in REFUSED.items() for case in cases]
)
def test_damaged_models_are_refused_by_line(tmp_path, file, text, match):
    write_colmap(tmp_path, look_at([0], 5.0, 2.0))
    with_pictures(tmp_path, ["0.png"], (8, 8))
    (tmp_path / "sparse/0" / file).write_text(text)
    with pytest.raises(InputError, match=match):
        read_colmap(tmp_path / "sparse/0")


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin"])
@pytest.mark.parametrize("length", [0, 7, 20, 60, -1])
def test_binary_models_that_are_cut_short_are_refused(tmp_path, file, length):
    shutil.copytree(RANDOM / "binary", tmp_path / "0")
    data = (tmp_path / "0" / file).read_bytes()
    (tmp_path / "0" / file).write_bytes(data[:length])
    with pytest.raises(InputError, match=f"{file} is cut short"):
        read_colmap(tmp_path / "0")


def test_a_binary_model_of_an_unknown_kind_says_how_to_convert_it(tmp_path):
    shutil.copytree(RANDOM / "binary", tmp_path / "0")
    data = bytearray((tmp_path / "0" / "cameras.bin").read_bytes())
    data[12:16] = (99).to_bytes(4, "little")
    (tmp_path / "0" / "cameras.bin").write_bytes(data)
    with pytest.raises(InputError, match="model number 99") as error:
        read_colmap(tmp_path / "0")
    assert "colmap model_converter --output_type TXT" in error.value.hint


def test_images_without_a_picture_are_told_from_the_others(tmp_path):
    write_colmap(tmp_path, look_at([0, 10, 20], 5.0, 2.0))
    with_pictures(tmp_path, ["1.png", "2.png"], (8, 8))
    views, absent = read_colmap(tmp_path / "sparse/0")
    assert [view.name for view in views] == ["1.png", "2.png"]
    assert len(absent) == 1 and "images/0.png does not exist" in absent[0]


def test_two_cameras_of_one_id_and_two_images_of_one_name_are_refused(tmp_path):
    model = write_colmap(tmp_path, look_at([0, 90], 5.0, 2.0)) / "sparse/0"
    with_pictures(tmp_path, ["0.png", "1.png"], (8, 8))
    cameras, images = model / "cameras.txt", model / "images.txt"
    once = cameras.read_text()
    cameras.write_text(once + "1 PINHOLE 8 8 20 20 4 4\n")
    with pytest.raises(InputError, match="cameras.txt has two cameras with the id 1"):
        read_colmap(model)
    cameras.write_text(once)
    images.write_text(images.read_text().replace("1.png", "0.png"))
    with pytest.raises(InputError, match="images.txt names the image 0.png twice"):
        read_colmap(model)


def test_a_name_outside_the_scene_is_refused_with_file_and_image(tmp_path):
    names = ["0.png", "../../../etc/passwd"]
    model = write_colmap(tmp_path, look_at([0, 90], 5.0, 2.0), names=names) / "sparse/0"
    with pytest.raises(InputError, match="images.txt: ../../../etc/passwd lies outside the folder"):
        read_colmap(model)
