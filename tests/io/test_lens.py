"""Undistortion of pictures, and refusal of unknown coefficients by name."""

import sys

import numpy as np
import pytest

from sv3d_jax.errors import CameraError
from sv3d_jax.io.images import Picture
from sv3d_jax.io.lens import MODELS, Lens, undistorted

HEIGHT, WIDTH = 96, 128
FOCAL, CENTER = (100.0, 104.0), (60.0, 50.0)


def lens(model="OPENCV", **terms):
    return Lens(FOCAL, CENTER, (WIDTH, HEIGHT), model, terms)


def pixel_centres():
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return columns, rows


def ramp(alpha=None):
    """A picture whose red is the column and whose green is the row."""
    columns, rows = np.floor(pixel_centres())
    return Picture(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8), alpha)


def perspective(x, y, k1=0.0, k2=0.0, p1=0.0, p2=0.0, k3=0.0, k4=0.0, k5=0.0, k6=0.0):
    """The distorted position of a direction on the plane at distance 1, as in OpenCV's documentation."""
    square = x * x + y * y
    radial = (1 + k1 * square + k2 * square**2 + k3 * square**3) / (
        1 + k4 * square + k5 * square**2 + k6 * square**3
    )
    return (
        x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x),
        y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y,
    )


def fisheye(x, y, k1=0.0, k2=0.0, k3=0.0, k4=0.0):
    radius = np.maximum(np.hypot(x, y), 1e-12)
    angle = np.arctan(radius)
    scale = angle * (1 + k1 * angle**2 + k2 * angle**4 + k3 * angle**6 + k4 * angle**8) / radius
    return x * scale, y * scale


UNDONE = {
    "SIMPLE_RADIAL": (perspective, {"k1": 0.3}),
    "RADIAL": (perspective, {"k1": -0.2, "k2": 0.05}),
    "OPENCV": (perspective, {"k1": 0.2, "k2": -0.05, "p1": 0.02, "p2": -0.03}),
    "FULL_OPENCV": (perspective, {"k1": 0.1, "k3": 0.05, "k4": 0.2, "k5": 0.1, "k6": 0.02}),
    "OPENCV_FISHEYE": (fisheye, {"k1": 0.05, "k2": 0.01, "k3": -0.01, "k4": 0.002}),
    "SIMPLE_RADIAL_FISHEYE": (fisheye, {"k1": 0.1}),
    "RADIAL_FISHEYE": (fisheye, {"k1": 0.1, "k2": -0.02}),
    "FISHEYE": (fisheye, {}),
}


@pytest.mark.parametrize("model", UNDONE)
def test_pictures_are_those_of_a_pinhole_at_the_same_place(model):
    distort, terms = UNDONE[model]
    columns, rows = pixel_centres()
    x, y = distort((columns - CENTER[0]) / FOCAL[0], (rows - CENTER[1]) / FOCAL[1], **terms)
    sources = np.stack([x * FOCAL[0] + CENTER[0], y * FOCAL[1] + CENTER[1]], axis=-1)
    inside = ((sources > 1) & (sources < [WIDTH - 1, HEIGHT - 1])).all(axis=-1)
    outside = ((sources < -1) | (sources > [WIDTH + 1, HEIGHT + 1])).any(axis=-1)
    opaque = np.full((HEIGHT, WIDTH), 255, np.uint8)
    found = undistorted(ramp(opaque), lens(model, **terms), "view")
    assert np.abs(found.rgb[..., :2] + 0.5 - sources)[inside].max() < 0.55  # half a level of 8 bits
    assert (found.alpha[inside] == 255).all() and (found.alpha[outside] == 0).all()
    assert (found.rgb[outside] == 0).all()


def test_without_alpha_what_leaves_the_picture_is_white():
    black = Picture(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    found = undistorted(black, lens(k1=0.8), "view")
    assert found.alpha is None
    assert (found.rgb[0, 0] == 255).all() and (found.rgb[50, 60] == 0).all()


def test_a_fold_of_the_polynomial_shows_nothing_twice():
    opaque = np.full((HEIGHT, WIDTH), 255, np.uint8)
    wide = Lens((40.0, 40.0), (64.0, 48.0), (WIDTH, HEIGHT), "OPENCV", {"k1": -0.3})
    found = undistorted(ramp(opaque), wide, "view")
    columns, rows = pixel_centres()
    radius = np.hypot(columns - 64, rows - 48) / 40
    folded = radius > 1 / np.sqrt(0.9) + 0.01  # where r - 0.3 r^3 falls
    assert folded.any() and (found.alpha[folded] == 0).all()
    assert (found.alpha[radius < 1 / np.sqrt(0.9) - 0.03] == 255).all()


def test_colours_do_not_bleed_into_what_is_transparent():
    alpha = np.where(np.arange(WIDTH) < 64, 255, 0).astype(np.uint8) * np.ones((HEIGHT, 1), np.uint8)
    rgb = np.where(alpha[..., None] > 0, [200, 10, 10], [0, 255, 0]).astype(np.uint8)
    found = undistorted(Picture(rgb, alpha), lens(k1=0.1), "view")
    assert (np.abs(found.rgb[found.alpha > 0].astype(int) - [200, 10, 10]) <= 1).all()


def test_terms_of_zero_are_no_distortion(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    picture = ramp()
    for model in MODELS:
        if not model.endswith("FISHEYE"):
            assert undistorted(picture, lens(model, k1=0.0, p2=-0.0), "view") is picture


@pytest.mark.parametrize("model, terms, named", [
    ("OPENCV", {"k1": 0.3, "k2": -0.1, "p1": 0.0}, "k1 = 0.3, k2 = -0.1, and"),
    ("OPENCV", {"p2": 1e-3}, "p2 = 0.001"),
    ("OPENCV_FISHEYE", {"k1": 0.0}, "OPENCV_FISHEYE"),
    ("FISHEYE", {}, "FISHEYE"),
])  # fmt: skip
def test_without_opencv_the_terms_are_named_with_the_way_to_install_it(monkeypatch, model, terms, named):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(CameraError, match=named) as error:
        undistorted(ramp(), lens(model, **terms), "view 7")
    assert error.value.message.startswith("view 7") and "sv3d_jax[photos]" in error.value.hint


@pytest.mark.parametrize("model, terms, text", [
    ("EQUIRECTANGULAR", {}, "EQUIRECTANGULAR is not known"),
    ("THIN_PRISM_FISHEYE", {}, "THIN_PRISM_FISHEYE is not known"),
    ("OPENCV", {"k4": 0.1}, "k4 = 0.1 is no coefficient of the camera model OPENCV"),
    ("OPENCV", {"b1": 2.0}, "b1 = 2 is no coefficient"),
    ("OPENCV_FISHEYE", {"p1": 0.1}, "p1 = 0.1 is no coefficient"),
    ("OPENCV", {"k1": float("nan")}, "k1 must lie between"),
])  # fmt: skip
def test_terms_that_cannot_be_undone_are_refused_by_name(model, terms, text):
    with pytest.raises(CameraError, match=text):
        undistorted(ramp(), lens(model, **terms), "view")


def test_a_lens_fits_a_smaller_copy_of_its_picture():
    half = lens().fitted(64, 48, "view")
    assert half.focal_px == (50.0, 52.0) and half.center_px == (30.0, 25.0) and half.size == (64, 48)


@pytest.mark.parametrize("width, height", [(96, 128), (128, 90)])
def test_a_lens_does_not_fit_a_picture_of_another_shape(width, height):
    with pytest.raises(CameraError, match=f"for 128x96 pixels, the picture has {width}x{height}"):
        lens().fitted(width, height, "view")


@pytest.mark.parametrize("model, terms", [
    ("OPENCV", {"k1": 1e300}), ("OPENCV", {"k1": float("inf")}), ("OPENCV", {"p1": 1e200}), ("OPENCV", {"k1": 1e10}),
    ("OPENCV", {"k2": -1e8}), ("OPENCV", {"k1": 1e5}), ("OPENCV", {"p1": -1e5}), ("OPENCV_FISHEYE", {"k4": 1e8}),
    ("FULL_OPENCV", {"k4": 1e8}), ("SIMPLE_RADIAL", {"k1": 1e300}),
])  # fmt: skip
@pytest.mark.parametrize("alpha", [None, np.full((HEIGHT, WIDTH), 255, np.uint8)])
def test_terms_that_leave_next_to_nothing_of_the_picture_are_refused(model, terms, alpha):
    (name,) = terms
    with pytest.raises(CameraError, match=f"a picture: .*{name}") as error:
        undistorted(ramp(alpha), lens(model, **terms), "a picture")
    assert "must lie between" in error.value.message or "would show" in error.value.message
