"""Masks of frames over white, and the box around what the cameras see."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from sv3d_jax.cameras.orbit import sine_orbit
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.orbits import read_orbit, write_orbit
from sv3d_jax.recon.views import (
    HOLE_WEIGHT,
    CoverageWarning,
    half_size,
    masks_from_white,
    prepare_views,
    surrounding_box,
    usable_frames,
    without_holes,
)
from sv3d_jax.render.rasterize import project
from tests.recon.scenes import ball_orbit


def white_frame_with(*patches) -> np.ndarray:
    image = np.ones((1, 40, 40, 3), np.float32)
    for rows, columns, color in patches:
        image[0, rows, columns] = color
    return image


def test_the_box_of_an_sv3d_orbit_is_the_standard_one():
    box = surrounding_box(ball_orbit())
    np.testing.assert_allclose(box.center, 0)
    assert 2 * box.scale == pytest.approx(2 * np.sin(np.deg2rad(16.9)) / 0.97)


def test_the_box_follows_the_world_of_the_cameras():
    box = surrounding_box(ball_orbit(center=(5, -3, 2), scale=10))
    np.testing.assert_allclose(box.center, (5, -3, 2))
    assert box.scale == pytest.approx(10 * surrounding_box(ball_orbit()).scale)


def test_cameras_in_box_coordinates_do_not_depend_on_the_world():
    views, _ = prepare_views(ball_orbit(center=(5, -3, 2), scale=10))
    expected, _ = prepare_views(ball_orbit())
    np.testing.assert_allclose(views.camera_to_box, expected.camera_to_box, atol=1e-5)


def test_a_single_view_has_a_box_on_its_axis():
    frames = ball_orbit(num_frames=2)
    one = {
        name: getattr(frames, name)[:1]
        for name in ("images", "alphas", "camera_to_world", "focal_px", "center_px")
    }
    np.testing.assert_allclose(surrounding_box(replace(frames, **one)).center, 0, atol=1e-9)


def test_a_camera_that_looks_away_is_named():
    frames = ball_orbit()
    frames.camera_to_world[3, :3, [0, 2]] *= -1
    with pytest.raises(CameraError, match="1 of 8 cameras look away .* frames/003.png by 180 degrees"):
        surrounding_box(frames)


def test_outward_cameras_hear_of_opencvs_axes():
    for signs in ([-1, 1, -1, 1], [1, -1, -1, 1]):
        frames = ball_orbit()
        turned = replace(frames, camera_to_world=frames.camera_to_world @ np.diag(signs).astype(float))
        with pytest.raises(CameraError, match="all cameras look away") as error:
            surrounding_box(turned)
        assert "OpenCV" in error.value.hint


def masks_of_ball(frames, center, radius) -> np.ndarray:
    """Coverage of a ball that stands aside, 0 or 1."""
    height, width = frames.images.shape[1:3]
    rows, columns = np.mgrid[:height, :width] + 0.5
    masks = []
    for pose, focal, middle in zip(frames.camera_to_world, frames.focal_px, frames.center_px, strict=True):
        rays = np.stack(
            [(columns - middle[0]) / focal[0], (middle[1] - rows) / focal[1], -np.ones_like(rows)], -1
        )
        rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True) @ pose[:3, :3].T
        offset = np.asarray(center) - pose[:3, 3]
        masks.append(np.linalg.norm(offset - (rays @ offset)[..., None] * rays, axis=-1) < radius)
    return np.array(masks, np.float32)


def wide_orbit():
    """Cameras around the origin with pictures of 32 x 96 pixels whose principal points are not in their middle."""
    frames = ball_orbit(num_frames=12)
    return replace(
        frames,
        images=np.ones((12, 32, 96, 3), np.float32),
        alphas=None,
        center_px=frames.center_px + [20.0, 0.0],
    )


def test_an_object_in_the_ball_that_all_see_leaves_the_box_as_it_is():
    frames = wide_orbit()
    masks = masks_of_ball(frames, (0.1, -0.1, 0.05), 0.3)
    box, plain = surrounding_box(frames, masks), surrounding_box(frames)
    assert box.scale == plain.scale and (box.center == plain.center).all()


def test_the_box_goes_where_the_masks_show_the_object():
    frames = wide_orbit()
    box = surrounding_box(frames, masks_of_ball(frames, (0.55, 0.0, 0.1), 0.25))
    np.testing.assert_allclose(box.center, (0.55, 0.0, 0.1), atol=0.02)
    assert 0.25 < 2 * box.scale * 0.97 < 0.3  # half its side, less what the ball leaves


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"camera_to_world": 1e300}, "from the origin"),
        ({"camera_to_world": 1e-11}, "ball of radius|distance from what it shows"),
        ({"focal_px": 1e30}, "focal lengths must be 0.001 to 10000 times the picture"),
        ({"focal_px": 1e-30}, "focal lengths must be 0.001 to 10000 times the picture"),
        ({"center_px": 1e30}, "the principal point must lie within 100 sizes"),
    ],
)
def test_cameras_beyond_single_precision_are_refused(changes, text):
    frames = ball_orbit()
    ((name, factor),) = changes.items()
    array = getattr(frames, name).copy()
    array[(..., slice(3), 3) if name == "camera_to_world" else ...] *= factor
    with pytest.raises(CameraError, match=text):
        prepare_views(usable_frames(replace(frames, **{name: array})))


@pytest.mark.parametrize("side", [32, 33])
def test_views_of_half_the_size_show_the_same(side):
    views, _ = prepare_views(ball_orbit(size=side))
    views = views._replace(normals=np.tile(np.float32([0, 0.6, 0.8]), (*views.masks.shape, 1)))
    halves = half_size(views)
    assert halves.images.shape[1:] == ((side + 1) // 2, (side + 1) // 2, 3)
    np.testing.assert_allclose(
        halves.images[:, 8, 8], views.images[:, 16:18, 16:18].mean(axis=(1, 2)), atol=1e-6
    )
    assert halves.masks.sum() == pytest.approx(views.masks.sum() / 4, rel=1e-4)
    np.testing.assert_allclose(halves.normals, np.tile([0, 0.6, 0.8], (*halves.masks.shape, 1)), atol=1e-6)
    point = np.array([[0.3, -0.2, 0.4]], np.float32)
    whole, half = (np.asarray(project(point, *seen.cameras)) for seen in (views, halves))
    np.testing.assert_allclose(half, whole * [0.5, 0.5, 1.0], rtol=1e-5)


def test_holes_in_the_object_are_filled_and_dust_removed():
    image = white_frame_with(
        (slice(10, 30), slice(10, 30), 0.3),
        (slice(18, 22), slice(18, 22), 1.0),
        (slice(2, 3), slice(2, 3), 0.0),
    )
    masks, _ = masks_from_white(image)
    expected = np.zeros((40, 40))
    expected[10:30, 10:30] = 1
    np.testing.assert_array_equal(masks[0], expected)


def test_holes_are_filled_with_little_weight():
    patches = (slice(5, 35), slice(5, 35), 0.3), (slice(15, 25), slice(15, 25), 1.0)
    masks, weights = masks_from_white(white_frame_with(*patches))
    assert (masks[0, 15:25, 15:25] == 1).all() and (weights[0, 15:25, 15:25] == HOLE_WEIGHT).all()
    assert (weights[0, 8:13, 8:32] == 1).all() and (weights[0, :4] == 1).all()


def test_the_silhouette_of_a_mask_from_colours_is_left_open():
    _, weights = masks_from_white(white_frame_with((slice(10, 30), slice(10, 30), 0.3)))
    assert weights[0, 20].tolist() == [1.0] * 9 + [0.0, 0.0] + [1.0] * 18 + [0.0, 0.0] + [1.0] * 9


def test_masks_from_white_find_the_ball():
    frames = ball_orbit()
    masks, weights = masks_from_white(frames.images)
    assert weights.mean() > 0.8
    np.testing.assert_array_equal(masks[weights > 0], np.round(frames.alphas[weights > 0]))


def test_coverage_at_the_silhouette_is_guessed_from_the_colour_inside():
    frames = ball_orbit()
    masks, _ = masks_from_white(frames.images)
    assert np.abs(masks - frames.alphas).max() < 0.15


def test_an_object_that_is_white_on_white_keeps_its_whole_mask_where_alphas_stand_beside_the_frames(tmp_path):
    cameras = sine_orbit(8)
    alphas = np.round(255 * ball_orbit(cameras=cameras).alphas).astype(np.uint8)
    images = np.full((*alphas.shape, 3), 255, np.uint8)
    images[:, 20:][alphas[:, 20:] == 255] = (200, 90, 0)  # the lower part alone has a colour
    write_orbit(tmp_path, images, cameras, alphas=alphas)
    views, _ = prepare_views(usable_frames(read_orbit(tmp_path)))
    np.testing.assert_array_equal(views.masks, alphas / np.float32(255))
    assert (views.mask_weights == 1.0).all()


@pytest.mark.parametrize("with_alpha", [False, True], ids=["white", "transparent"])
def test_frames_without_an_object_are_refused(with_alpha):
    frames = ball_orbit(with_alpha=with_alpha)
    changes = (
        {"alphas": np.zeros_like(frames.alphas)} if with_alpha else {"images": np.ones_like(frames.images)}
    )
    with pytest.raises(InputError, match="no frame shows any object"):
        prepare_views(usable_frames(replace(frames, **changes)))


@pytest.mark.parametrize("with_alpha", [False, True], ids=["dark", "opaque"])
def test_frames_without_a_background_are_refused(with_alpha):
    frames = ball_orbit(with_alpha=with_alpha)
    changes = (
        {"alphas": np.ones_like(frames.alphas)} if with_alpha else {"images": np.zeros_like(frames.images)}
    )
    with pytest.raises(InputError, match="no frame has any background"):
        prepare_views(usable_frames(replace(frames, **changes)))


# Frames that cannot be used


@pytest.mark.parametrize("with_alpha", [False, True])
def test_frames_that_show_nothing_are_left_out_and_named(with_alpha):
    frames = ball_orbit(with_alpha=with_alpha)
    for shown in (frames.images, frames.alphas)[: 1 + with_alpha]:
        shown[2] = 1.0 if shown is frames.images else 0.0
    with pytest.warns(CoverageWarning, match="1 of 8 frames show no object .*: frames/002.png"):
        left = usable_frames(frames)
    assert left.files == [file for file in frames.files if file != "frames/002.png"]
    assert left.files[left.input_frame] == frames.files[frames.input_frame]
    np.testing.assert_array_equal(left.camera_to_world[2:], frames.camera_to_world[3:])
    np.testing.assert_array_equal(left.azimuths_deg[2:], frames.azimuths_deg[3:])


def test_an_input_view_that_shows_nothing_is_replaced():
    frames = ball_orbit()
    frames.alphas[-1] = 0.0
    with pytest.warns(CoverageWarning):
        left = usable_frames(frames)
    assert left.files[left.input_frame] == "frames/006.png"


def test_good_frames_stay_as_they_are():
    frames = ball_orbit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable_frames(frames) is frames


@pytest.mark.parametrize("count", [1, 2])
def test_views_from_one_side_tell_no_depth(count):
    frames = ball_orbit(num_frames=100)  # 3.6 degrees apart
    arrays = "images", "alphas", "camera_to_world", "focal_px", "center_px"
    some = replace(
        frames, **{name: getattr(frames, name)[:count] for name in arrays}, files=frames.files[:count]
    )
    with pytest.warns(CoverageWarning, match=f"depth is unconstrained: {count} view"):
        usable_frames(some)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["images", "alphas", "camera_to_world", "focal_px", "center_px"])
def test_values_that_are_not_finite_are_named_with_their_frame(name, value):
    frames = ball_orbit()
    getattr(frames, name)[3].flat[1] = value
    with pytest.raises(InputError, match=f"{name} of frames/003.png are not finite"):
        usable_frames(frames)


@pytest.mark.parametrize(
    ("name", "shape", "error"),
    [
        ("images", (8, 32, 32), InputError),
        ("images", (8, 32, 32, 4), InputError),
        ("alphas", (8, 32, 31), InputError),
        ("camera_to_world", (8, 3, 4), CameraError),
        ("camera_to_world", (7, 4, 4), CameraError),
        ("focal_px", (8,), CameraError),
        ("center_px", (1, 2), CameraError),
    ],
)
def test_arrays_of_other_shapes_are_named(name, shape, error):
    with pytest.raises(error, match=f"{name} need the shape .*, got {re.escape(str(shape))}"):
        usable_frames(replace(ball_orbit(), **{name: np.zeros(shape)}))


def test_pictures_of_another_range_are_refused_with_theirs():
    frames = ball_orbit()
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\], they reach from .* to 255"):
        usable_frames(replace(frames, images=255 * frames.images))


def test_a_jump_of_the_area_is_pointed_out():
    frames = ball_orbit()
    frames.alphas[4, :, :16] = 0
    frames.alphas[4, :15] = 0
    with pytest.warns(CoverageWarning, match="frames/004.png"):
        prepare_views(frames)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_the_first_view_is_compared_with_the_last_where_the_cameras_go_all_around(count):
    """An object that is small in the first view and grows slowly, in views all around or from a part of the circle."""
    frames = ball_orbit()
    arrays = "images", "alphas", "camera_to_world", "focal_px", "center_px"
    frames = replace(
        frames, **{name: getattr(frames, name)[:count] for name in arrays}, files=frames.files[:count]
    )
    frames.alphas[0, :, :16] = frames.alphas[0, :15] = 0.0  # a quarter
    if count > 2:
        frames.alphas[1, :, :16] = 0.0  # a half
    jump = "frames/000.png" if count == 8 else "frames/001.png" if count == 2 else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare_views(frames)
    named = [re.search(r"before (\S+)", str(warning.message)).group(1) for warning in caught]
    assert named == ([jump] if jump else [])


def test_masks_are_filled_as_scipy_fills_them():
    rng = np.random.default_rng(0)
    for share in (0.3, 0.5, 0.7):
        mask = rng.random((40, 30)) < share
        np.testing.assert_array_equal(without_holes(mask), ndimage.binary_fill_holes(mask))
    for value in (False, True):
        assert (without_holes(np.full((5, 4), value)) == value).all()
