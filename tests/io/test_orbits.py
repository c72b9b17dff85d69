import json

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cameras.orbit import CameraPath, dynamic_orbit, make_orbit, static_orbit
from sv3d_jax.cameras.pose import intrinsics, look_at
from sv3d_jax.errors import CameraError, InputError, SV3DError
from sv3d_jax.io.cameras_file import read_camera_path, write_cameras
from sv3d_jax.io.orbits import OrbitFrames, read_frame, read_orbit, write_orbit
from tests.io.orbit_files import IMAGES, RNG, edit, example_orbit, set_in_frame


@pytest.fixture
def folder(tmp_path):
    return example_orbit(tmp_path / "orbit")


def test_an_orbit_reads_back_as_written(folder):
    path, orbit = dynamic_orbit(5, seed=1), read_orbit(folder)
    np.testing.assert_array_equal(orbit.images, IMAGES.astype(np.float32) / 255.0)
    np.testing.assert_array_equal(orbit.camera_to_world, path.camera_to_world)
    np.testing.assert_array_equal(orbit.azimuths_deg, path.azimuths_deg)
    np.testing.assert_array_equal(orbit.elevations_deg, path.elevations_deg)
    assert (orbit.radius, orbit.fov_deg, orbit.input_frame) == (2.0, 33.8, 4)
    assert orbit.alphas is None and orbit.object_to_world is None
    assert orbit.files == [f"frames/00{i}.png" for i in range(5)]


def test_cameras_json_has_the_agreed_fields(folder):
    document = json.loads((folder / "cameras.json").read_text())
    assert set(document) == {"convention", "fov_deg", "input_frame", "frames"}
    assert set(document["frames"][0]) == {"file", "azimuth_deg", "elevation_deg", "radius", "camera_to_world"}


def test_object_to_world_is_kept(tmp_path):
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    write_orbit(tmp_path, IMAGES, static_orbit(5), object_to_world=matrix)
    np.testing.assert_array_equal(read_orbit(tmp_path).object_to_world, matrix)


def test_frames_with_alpha_give_alphas_and_lie_over_white(tmp_path):
    images = np.dstack([IMAGES.reshape(-1, 16, 3), RNG.integers(0, 256, (60, 16), np.uint8)]).reshape(
        5, 12, 16, 4
    )
    write_orbit(tmp_path, images, static_orbit(5))
    orbit, alphas = read_orbit(tmp_path), images[..., 3] / 255.0
    np.testing.assert_allclose(np.asarray(orbit.alphas), alphas, atol=1e-7)
    expected = IMAGES / 255.0 * alphas[..., None] + 1 - alphas[..., None]
    np.testing.assert_allclose(orbit.images, expected, atol=1 / 255)  # truncated to 8 bits


@pytest.fixture
def masked(tmp_path):
    """An orbit of a partly white box: frames over white with separate alphas."""
    images, alphas = np.full((5, 12, 16, 3), 255, np.uint8), np.zeros((5, 12, 16), np.uint8)
    images[:, 2:6, 4:12] = (200, 30, 0)
    alphas[:, 2:10, 4:12] = 255
    alphas[:, 10, 4:12] = np.arange(30, 35)[:, None]
    write_orbit(tmp_path / "masked", images, static_orbit(5), alphas=alphas)
    return tmp_path / "masked", images, alphas


def test_alphas_beside_frames_over_white_read_back_exactly(masked):
    folder, images, alphas = masked
    orbit = read_orbit(folder)
    np.testing.assert_array_equal(orbit.images, images.astype(np.float32) / 255)
    np.testing.assert_array_equal(orbit.alphas, alphas.astype(np.float32) / 255)
    frames = json.loads((folder / "cameras.json").read_text())["frames"]
    assert [frame["alpha_file"] for frame in frames] == [f"alphas/00{i}.png" for i in range(5)]


def test_an_opaque_alpha_beside_a_frame_counts(masked):
    folder, _, alphas = masked
    Image.new("L", (16, 12), 255).save(folder / "alphas/002.png")
    read = read_orbit(folder).alphas
    assert (read[2] == 1.0).all() and (read[3] == alphas[3] / np.float32(255)).all()


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda f: (f / "alphas/001.png").unlink(), "alphas/001.png does not exist"),
        (lambda f: (f / "alphas/001.png").write_bytes(b"\x89PNG"), "alphas/001.png is not a picture"),
        (
            lambda f: Image.new("L", (15, 12)).save(f / "alphas/001.png"),
            "alphas/001.png has 15x12 pixels, 001.png has 16x12",
        ),
        (
            lambda f: Image.new("RGB", (16, 12), "red").save(f / "alphas/001.png"),
            "alphas/001.png is not an alpha: it has colours",
        ),
        (
            lambda f: Image.new("L", (16, 12)).save(f / "alphas/001.png"),
            "alphas/001.png is 0 where 001.png is not white",
        ),
        (
            lambda f: Image.new("RGBA", (16, 12), (9, 9, 9, 99)).save(f / "frames/001.png"),
            "frames/001.png has an alpha channel, and also the alpha_file alphas/001.png",
        ),
        (lambda f: edit(f, set_in_frame(1, alpha_file=7)), r"frames\[1\].alpha_file must be a file's name"),
        (lambda f: edit(f, set_in_frame(1, alpha_file="../a.png")), r"frames\[1\].alpha_file lies outside"),
        (lambda f: edit(f, set_in_frame(1, alpha_file="/a.png")), r"frames\[1\].alpha_file lies outside"),
        (lambda f: edit(f, set_in_frame(1, alpha_file=None)), r"frames\[1\] has no alpha_file"),
    ],
)
def test_what_is_wrong_with_an_alpha_file_is_named(masked, change, message):
    folder, _, _ = masked
    change(folder)
    with pytest.raises(InputError, match=message):
        read_orbit(folder)


def test_alphas_do_not_go_beside_frames_that_have_their_own(tmp_path):
    with pytest.raises(InputError, match="do not fit frames of shape"):
        write_orbit(
            tmp_path,
            np.zeros((5, 8, 8, 4), np.uint8),
            static_orbit(5),
            alphas=np.zeros((5, 8, 8), np.uint8),
        )
    assert not list(tmp_path.iterdir())


def test_any_number_of_views_reads(tmp_path):
    write_orbit(tmp_path, np.zeros((1, 8, 8, 3), np.uint8), CameraPath(np.zeros(1), np.zeros(1)))
    assert read_orbit(tmp_path).images.shape == (1, 8, 8, 3)


def test_any_rigid_pose_reads_without_angles(folder):
    pose = look_at(40.0, 70.0, 3.0) @ np.diag([-1.0, -1.0, 1.0, 1.0])  # rolled by 180 degrees
    pose[:3, 3] += 0.3  # and not looking at the origin

    def change(document):
        document["frames"][1] = {"file": "frames/001.png", "camera_to_world": pose.tolist()}

    edit(folder, change)
    orbit = read_orbit(folder)
    np.testing.assert_array_equal(orbit.camera_to_world[1], pose)
    assert orbit.azimuths_deg is None and orbit.radius is None


def test_a_pose_may_be_given_by_angles_alone(folder):
    expected = read_orbit(folder).camera_to_world
    edit(folder, lambda document: [frame.pop("camera_to_world") for frame in document["frames"]])
    np.testing.assert_array_equal(read_orbit(folder).camera_to_world, expected)


def test_without_own_intrinsics_the_field_of_view_spans_the_width(folder):
    orbit = read_orbit(folder)
    np.testing.assert_allclose(orbit.focal_px, np.full((5, 2), 8 / np.tan(np.deg2rad(16.9))))
    np.testing.assert_allclose(orbit.center_px, np.tile([8.0, 6.0], (5, 1)))


@pytest.mark.parametrize(
    "own,focal,center",
    [
        ({"fov_deg": 60.0}, intrinsics(60.0, 16)[0], [8, 6]),
        ({"fl_x": 20.0}, [20, 20], [8, 6]),
        ({"fl_x": 20.0, "fl_y": 30.0, "cx": 7.0, "cy": 5.0}, [20, 30], [7, 5]),
        ({"fl_x": 20.0, "cx": 7.0, "cy": 5.0, "width": 32, "height": 24}, [10, 10], [3.5, 2.5]),
        ({"fov_deg": 60.0, "width": 160, "height": 120}, intrinsics(60.0, 16)[0], [8, 6]),
    ],
)
def test_a_frame_may_carry_its_own_intrinsics(folder, own, focal, center):
    edit(folder, lambda document: document["frames"][2].update(own))
    orbit = read_orbit(folder)
    np.testing.assert_allclose(orbit.focal_px[2], focal)
    np.testing.assert_allclose(orbit.center_px[2], center)
    np.testing.assert_allclose(orbit.center_px[3], [8, 6])


def test_the_input_frame_is_the_last_unless_said(folder):
    edit(folder, lambda document: document.pop("input_frame"))
    assert read_orbit(folder).input_frame == 4
    edit(folder, lambda document: document.update(input_frame=1))
    assert read_orbit(folder).input_frame == 1


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda d: d.update(frames=[]), "needs a list"),
        (lambda d: d.update(frames="many"), "needs a list"),
        (lambda d: d.update(input_frame=5), "input_frame"),
        (lambda d: d.update(fov_deg="wide"), "fov_deg must be a finite number"),
        (lambda d: d.update(fov_deg=None), r"frames\[0\] has no intrinsics"),
        (lambda d: d.update(fov_deg=190), r"frames\[0\]: fov_deg must lie"),
        (lambda d: d.update(object_to_world=[[1, 0], [0, 1]]), "object_to_world must be 4x4"),
        (set_in_frame(3, file=None), r"frames\[3\] has no \"file\""),
        (set_in_frame(3, file="."), r"frames\[3\] names a folder"),
        (set_in_frame(3, file="frames/.."), r"frames\[3\] names a folder"),
        (set_in_frame(3, file="../outside.png"), r"frames\[3\] lies outside"),
        (set_in_frame(3, file="/etc/passwd"), r"frames\[3\] lies outside"),
        (set_in_frame(2, camera_to_world=[[1]]), r"frames\[2\].camera_to_world must be 4x4"),
        (
            set_in_frame(2, camera_to_world=[[float("nan")] * 4] * 4),
            r"frames\[2\].camera_to_world\[0\]\[0\] must be a finite number, got nan",
        ),
        (
            set_in_frame(2, camera_to_world=[[10**400] * 4] * 4),
            r"frames\[2\].camera_to_world\[0\]\[0\] must be a finite number",
        ),
        (
            lambda d: d.update(object_to_world=[[10**400] * 4] * 4),
            r"object_to_world\[0\]\[0\] must be a finite number",
        ),
        (set_in_frame(1, azimuth_deg=10**400), r"frames\[1\].azimuth_deg must be a finite number"),
        (set_in_frame(3, file="a" * 5000), "a{5000} does not exist"),
        (set_in_frame(3, file="a\0b"), "a\0b does not exist"),
        (
            set_in_frame(2, camera_to_world=[["a"] * 4] * 4),
            r"frames\[2\].camera_to_world\[0\]\[0\] must be a finite number",
        ),
        (set_in_frame(2, camera_to_world=np.diag([1, 1, -1, 1]).tolist()), r"frames\[2\].*not a rotation"),
        (set_in_frame(2, camera_to_world=np.diag([2, 2, 2, 1]).tolist()), r"frames\[2\].*not a rotation"),
        (set_in_frame(1, azimuth_deg=float("nan")), r"frames\[1\].azimuth_deg"),
        (set_in_frame(1, elevation_deg="up"), r"frames\[1\].elevation_deg"),
        (set_in_frame(1, fl_x=-5), r"frames\[1\]: focal lengths"),
        (set_in_frame(1, width=-5), r"frames\[1\]: width and height must be sizes in pixels, got -5x"),
        (
            lambda d: [d["frames"][0].pop(name) for name in ("camera_to_world", "radius")],
            r"frames\[0\] needs",
        ),
    ],
)
def test_what_is_wrong_in_cameras_json_is_named(folder, change, message):
    edit(folder, change)
    with pytest.raises(InputError, match=message):
        read_orbit(folder)


def test_a_folder_without_cameras_json_is_refused(tmp_path):
    with pytest.raises(InputError, match="cameras.json does not exist"):
        read_orbit(tmp_path)


def test_an_absent_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_orbit(tmp_path / "absent")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "\xff\xfe", "[" * 100_000, '{"fov_deg": ' + "9" * 10_000 + "}"]
)
def test_a_damaged_cameras_json_is_refused(folder, text):
    (folder / "cameras.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="cameras.json"):
        read_orbit(folder)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_a_frame_that_no_file_can_be_called_is_refused_by_its_name(tmp_path, name):
    with pytest.raises(InputError) as error:
        read_frame(tmp_path, {"file": name}, 0)
    assert str(tmp_path / name) in error.value.message


def test_absent_frames_are_named_and_counted(folder):
    (folder / "frames/001.png").unlink()
    (folder / "frames/003.png").unlink()
    with pytest.raises(InputError, match="frames/001.png does not exist") as error:
        read_orbit(folder)
    assert "2 of 5" in str(error.value.hint)


def test_frames_of_different_sizes_are_named(folder):
    Image.new("RGB", (9, 7)).save(folder / "frames/002.png")
    with pytest.raises(InputError, match="frames/002.png has 9x7 pixels, frames/000.png has 16x12"):
        read_orbit(folder)


def test_images_and_cameras_must_be_equally_many(tmp_path):
    with pytest.raises(SV3DError, match="5 images for 4 cameras"):
        write_orbit(tmp_path, IMAGES, static_orbit(4))
    assert not list(tmp_path.iterdir())


def test_a_camera_path_survives_the_file(tmp_path):
    path = make_orbit("dynamic", seed=3)
    write_cameras(tmp_path / "path.json", path)
    again = read_camera_path(tmp_path / "path.json")
    np.testing.assert_allclose(again.azimuths_deg, path.azimuths_deg, atol=1e-12)
    np.testing.assert_allclose(again.elevations_deg, path.elevations_deg, atol=1e-12)


def test_a_camera_path_without_angles_has_those_of_its_positions(folder):
    def change(document):
        for frame in document["frames"]:
            del frame["azimuth_deg"], frame["elevation_deg"]

    edit(folder, change)
    path, expected = read_camera_path(folder), dynamic_orbit(5, seed=1)
    np.testing.assert_allclose(path.azimuths_deg, expected.azimuths_deg, atol=1e-9)
    np.testing.assert_allclose(path.elevations_deg, expected.elevations_deg, atol=1e-9)


def test_a_camera_path_begins_or_ends_at_the_input_view(folder):
    edit(folder, lambda document: document.update(input_frame=0))
    path = read_camera_path(folder)
    assert path.input_frame == 0 and path.azimuths_deg[0] == 0.0
    assert path.with_input("last").azimuths_deg[-1] == 0.0
    edit(folder, lambda document: document.update(input_frame=2))
    with pytest.raises(CameraError, match="the last or the first of the frames, got frame 2"):
        read_camera_path(folder)


# Lenses of their own


def test_lenses_are_written_where_the_field_of_view_does_not_say_them(tmp_path):
    focal, center = intrinsics(33.8, (12, 16))
    plain = np.tile(focal, (5, 1)), np.tile(center, (5, 1))
    write_orbit(tmp_path, IMAGES, static_orbit(5), lenses=plain)
    assert "fl_x" not in json.loads((tmp_path / "cameras.json").read_text())["frames"][0]
    own = plain[0] * [1.0, 1.25], plain[1] + np.arange(5)[:, None]
    write_orbit(tmp_path, IMAGES, static_orbit(5), lenses=own)
    orbit = read_orbit(tmp_path)
    np.testing.assert_array_equal(orbit.focal_px, own[0])
    np.testing.assert_array_equal(orbit.center_px, own[1])


def own_views() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (3, 8, 6, 3) and masks (3, 8, 6), uint8."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 255, (3, 8, 6, 3), np.uint8), 255 * rng.integers(0, 2, (3, 8, 6), np.uint8)


def test_views_of_one_s_own_are_an_orbit(tmp_path):
    images, masks = own_views()
    cameras = CameraPath([120, 240, 0], [10, 20, 0], radius=3.0, fov_deg=40.0)
    frames = OrbitFrames.from_views(images, cameras)
    np.testing.assert_array_equal(frames.images, np.float32(images) / np.float32(255))
    assert frames.alphas is None and frames.radius == 3.0 and frames.input_frame == 2
    np.testing.assert_array_equal(frames.camera_to_world, cameras.camera_to_world)
    focal, center = intrinsics(40.0, (8, 6))
    assert (frames.focal_px == focal).all() and (frames.center_px == center).all()
    rgba = np.concatenate([images, masks[..., None]], axis=-1)
    write_orbit(tmp_path, rgba, cameras)
    written = read_orbit(tmp_path)
    paths = [tmp_path / name for name in written.files]
    pil = [Image.fromarray(image) for image in rgba]
    for forms in ((paths, None), (pil, None), (rgba, None), (images, masks), (images / 255, masks > 0)):
        given = OrbitFrames.from_views(forms[0], cameras, forms[1])
        np.testing.assert_array_equal(given.images, written.images)
        np.testing.assert_array_equal(given.alphas, written.alphas)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cameras": np.eye(4)}, "cameras must be a CameraPath, got ndarray"),
        ({"cameras": static_orbit(4)}, "got 3 images for 4 cameras"),
        ({"masks": own_views()[1][:2]}, "got 2 masks for 3 cameras"),
        (
            {"masks": own_views()[1][:, 1:]},
            r"masks\[0\] must be uint8 \(8, 6\) as its picture, got uint8 \(7, 6\)",
        ),
        ({"images": 300.0 * own_views()[0]}, r"images\[0\]: holds floats outside \[0, 1\]"),
        (
            {"images": [own_views()[0][0], own_views()[0][1, 1:], own_views()[0][2]]},
            r"images\[1\] has 6x7 pixels",
        ),
        ({"images": ["absent.png"] * 3}, r"images\[0\]: absent.png does not exist"),
    ],
)
def test_what_is_wrong_with_views_of_one_s_own_is_named(change, says):
    with pytest.raises(InputError, match=says):
        OrbitFrames.from_views(**{"images": own_views()[0], "cameras": static_orbit(3)} | change)


def test_frames_of_an_orbit_say_what_they_are():
    frames = OrbitFrames.from_views(own_views()[0], static_orbit(3))
    assert repr(frames) == "OrbitFrames(3 views of 6x8, without alpha, input frame 2)"
    assert len(frames) == 3 and "data:image/png;base64," in frames._repr_html_()
