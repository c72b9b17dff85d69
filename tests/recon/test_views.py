"""Masks of frames over white, and the box around what the cameras see."""

from dataclasses import replace

import numpy as np
import pytest

from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.recon.views import (
    HOLE_WEIGHT,
    CoverageWarning,
    masks_from_white,
    prepare_views,
    surrounding_box,
)
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
    with pytest.raises(CameraError, match="view 3"):
        surrounding_box(frames)


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


def test_frames_without_an_object_are_refused():
    frames = ball_orbit(with_alpha=False)
    with pytest.raises(InputError, match="no frame shows any object"):
        prepare_views(replace(frames, images=np.ones_like(frames.images)))


def test_frames_without_a_background_are_refused():
    frames = ball_orbit(with_alpha=False)
    with pytest.raises(InputError, match="no frame has any background"):
        prepare_views(replace(frames, images=np.zeros_like(frames.images)))


def test_a_jump_of_the_area_is_pointed_out():
    frames = ball_orbit()
    frames.alphas[4, :, :16] = 0
    frames.alphas[4, :15] = 0
    with pytest.warns(CoverageWarning, match="frames/004.png"):
        prepare_views(frames)
