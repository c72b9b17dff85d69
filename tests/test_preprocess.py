import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sv3d_jax import cutout
from sv3d_jax.errors import InputError
from sv3d_jax.io.images import Picture, read_picture
from sv3d_jax.preprocess import prepare_image

REFERENCE = Path(__file__).parent / "reference" / "image"
CASES = json.loads((REFERENCE / "image.json").read_text())["cases"]
GREY = (214, 216, 219)


def ring(size=200, background=GREY, color=(170, 40, 30), hole=None):
    """A smooth-edged ring on a plain background, its coverage, and the same with a filled hole."""
    large = Image.new("L", (size * 4, size * 4))
    draw = ImageDraw.Draw(large)
    draw.ellipse((size, size * 0.8, size * 3 - 1, size * 2.8 - 1), fill=255)
    if hole is None:
        draw.ellipse((size * 1.7, size * 1.5, size * 2.3, size * 2.1), fill=0)
    coverage = np.asarray(large.resize((size, size), Image.Resampling.BOX)) / 255.0
    rgb = coverage[..., None] * np.array(color) + (1 - coverage[..., None]) * np.array(background)
    return np.rint(rgb).astype(np.uint8), coverage


@pytest.fixture
def without_remover(monkeypatch):
    monkeypatch.setattr(cutout, "has_rembg", lambda: False)


@pytest.mark.parametrize("case", [c for c in CASES if "output" in c], ids=lambda case: case["output"])
def test_pictures_equal_the_published_preparation_byte_for_byte(case):
    prepared = prepare_image(
        read_picture(REFERENCE / case["input"]), 576, frame_ratio=case["ratio"], published_side=True
    )
    with Image.open(REFERENCE / case["output"]) as expected:
        np.testing.assert_array_equal(prepared.pixels, np.asarray(expected))
    assert list(prepared.bbox) == case["bbox_xywh"]


def test_a_wide_object_does_not_fit_the_published_square_and_this_is_said():
    with pytest.raises(InputError, match="360x60 pixels and does not fit"):
        prepare_image(read_picture(REFERENCE / "in_fail.png"), 576, published_side=True)


def test_a_wide_object_fits_the_default_square():
    prepared = prepare_image(read_picture(REFERENCE / "in_fail.png"), 420)
    rows, columns = np.nonzero((prepared.pixels < 255).any(axis=-1))
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (360, 60)
    assert (columns.min(), rows.min()) == (30, 180)


def test_a_very_wide_picture_is_padded_and_this_is_said():
    picture = Picture(np.zeros((40, 400, 3), np.uint8), np.full((40, 400), 254, np.uint8))
    prepared = prepare_image(picture, 100)
    assert prepared.pixels.shape == (100, 100, 3)
    assert prepared.notes == ["the picture is 400x40, far from square, and is padded"]


def test_a_square_beyond_memory_is_refused():
    picture = Picture(np.zeros((32, 20_000, 3), np.uint8), np.ones((32, 20_000), np.uint8))
    for background in ("auto", "keep"):
        with pytest.raises(InputError, match="20000x20000"):
            prepare_image(picture, 64, background)


def test_a_frame_ratio_scales_the_object():
    rgba = np.zeros((100, 100, 4), np.uint8)
    rgba[40:60, 20:30] = 255, 0, 0, 255
    prepared = prepare_image(Picture(rgba[..., :3], rgba[..., 3]), 80, frame_ratio=0.5)
    rows = np.flatnonzero((prepared.pixels[..., 1] < 128).any(axis=1))
    assert (rows.min(), rows.max()) == (20, 59)


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.01, float("nan")])
def test_frame_ratios_outside_0_to_1_are_refused(ratio):
    with pytest.raises(InputError, match="frame ratio"):
        prepare_image(
            Picture(np.zeros((40, 40, 3), np.uint8), np.ones((40, 40), np.uint8)), 64, frame_ratio=ratio
        )


def test_colour_under_transparent_pixels_does_not_show():
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., 1] = 255  # bright green where nothing is to be seen
    rgba[20:40, 20:50] = 200, 0, 0, 255
    pixels = prepare_image(Picture(rgba[..., :3], rgba[..., 3]), 150).pixels.astype(int)
    assert (pixels[..., 1] - pixels[..., 2]).max() <= 1  # red over white: green and blue are equal


def test_soft_edges_are_composited_over_white():
    rgb, alpha = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 51, np.uint8)
    np.testing.assert_array_equal(prepare_image(Picture(rgb, alpha), 64).pixels, 204)


def test_alpha_of_zero_everywhere_is_refused(tmp_path):
    Image.new("RGBA", (64, 64), (200, 0, 0, 0)).save(tmp_path / "nothing.png")
    for background in ("auto", "alpha", "keep"):
        with pytest.raises(InputError, match="transparent everywhere"):
            prepare_image(read_picture(tmp_path / "nothing.png"), 64, background)


def test_opaque_alpha_is_not_taken_for_a_cut_out(tmp_path, without_remover):
    rgb, _ = ring()
    Image.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])).save(tmp_path / "opaque.png")
    picture = read_picture(tmp_path / "opaque.png")
    assert prepare_image(picture, 200).bbox == (50, 40, 100, 100)
    with pytest.raises(InputError, match="no cut-out"):
        prepare_image(picture, 200, "alpha")


def test_a_uniform_border_is_keyed(without_remover):
    rgb, coverage = ring()
    prepared = prepare_image(Picture(rgb), 200)
    expected = 255 * (1 - coverage[..., None]) + coverage[..., None] * np.array([170, 40, 30])
    expected = np.roll(expected, 10, axis=0)  # centred
    outer = np.hypot(*(np.mgrid[:200, :200] - 99.5)) > 25
    error = np.abs(prepared.pixels - expected)[outer]
    assert error.max() < 16 and error.mean() < 0.1
    assert prepared.notes == ["the background was keyed by the uniform colour of the border"]


def test_a_hole_in_the_colour_of_the_background_stays(without_remover):
    rgb, _ = ring()
    np.testing.assert_array_equal(prepare_image(Picture(rgb), 200).pixels[100, 100], GREY)


def test_a_noisy_jpeg_border_is_keyed_without_dust(tmp_path, without_remover):
    rgb, _ = ring()
    noise = np.random.default_rng(0).normal(0, 2, rgb.shape)
    Image.fromarray(np.clip(rgb + noise, 0, 255).astype(np.uint8)).save(tmp_path / "photo.jpg", quality=85)
    x, y, width, height = prepare_image(read_picture(tmp_path / "photo.jpg"), 200).bbox
    np.testing.assert_allclose([x, y, width, height], [50, 40, 100, 100], atol=3)


def test_an_object_that_touches_the_border_is_keyed(without_remover):
    rgb, _ = ring()
    prepared = prepare_image(Picture(rgb[:110]), 200)
    assert prepared.bbox == (50, 40, 100, 70)


def test_a_blank_picture_is_refused(without_remover):
    with pytest.raises(InputError, match="nothing of the picture is left"):
        prepare_image(Picture(np.full((64, 64, 3), 255, np.uint8)), 64)


def test_removal_without_rembg_names_its_install_line(without_remover):
    with pytest.raises(InputError) as error:
        prepare_image(Picture(ring()[0]), 64, "remove")
    assert error.value.hint == 'pip install "sv3d_jax[rembg]"'


@pytest.mark.parametrize("background", ["auto", "remove"])
def test_rembg_gets_a_small_copy_and_its_alpha_is_used(monkeypatch, background):
    def remove(image):
        assert image.mode == "RGB" and image.size == (768, 384)
        image.putalpha(0)
        image.paste((9, 8, 7, 255), (100, 50, 300, 150))
        return np.asarray(image)

    monkeypatch.setattr(cutout, "has_rembg", lambda: True)
    photo = Picture(np.random.default_rng(0).integers(0, 256, (500, 1000, 3), np.uint8))
    prepared = prepare_image(photo, 768, background, remover=remove)
    assert prepared.bbox == (100, 50, 200, 100)
    np.testing.assert_array_equal(prepared.pixels[384, 384], [9, 8, 7])


def test_keep_changes_no_pixel_of_a_square_picture():
    rgb, _ = ring()
    np.testing.assert_array_equal(prepare_image(Picture(rgb), 200, "keep").pixels, rgb)


def test_keep_pads_with_white_and_does_not_centre_the_object():
    rgb = np.full((40, 80, 3), 100, np.uint8)
    rgb[:10, :10] = 0
    pixels = prepare_image(Picture(rgb), 80, "keep").pixels
    expected = np.full((80, 80, 3), 255, np.uint8)
    expected[20:60] = rgb
    np.testing.assert_array_equal(pixels, expected)


def test_keep_puts_alpha_over_white():
    picture = Picture(np.zeros((40, 40, 3), np.uint8), np.full((40, 40), 51, np.uint8))
    np.testing.assert_array_equal(prepare_image(picture, 40, "keep").pixels, 204)


def test_an_unknown_background_is_refused():
    with pytest.raises(InputError, match="auto, alpha, remove, keep"):
        prepare_image(Picture(ring()[0]), 64, "magic")
