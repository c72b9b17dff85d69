"""Pictures as users have them: what is read and converted, and how other files are refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageCms, ImageFile, TiffImagePlugin

from sv3d_jax.errors import InputError
from sv3d_jax.io import images
from sv3d_jax.io.images import over_white, read_picture, write_png
from tests.io.picture_files import GRADIENT


def png_header(width, height):
    """A PNG file that claims a size and holds no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_colours_of_a_plain_png_are_untouched(save):
    picture = read_picture(save(Image.fromarray(GRADIENT), "plain.png"))
    np.testing.assert_array_equal(picture.rgb, GRADIENT)
    assert picture.alpha is None and picture.notes == []


@pytest.mark.parametrize("size", [(8001, 8000), (20000, 20000)])
def test_more_than_64_megapixels_are_refused_before_decoding(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    with pytest.raises(InputError, match="megapixels"):
        read_picture(path)


def test_more_than_200_megabytes_are_refused_before_reading(tmp_path):
    path = tmp_path / "large.png"
    with open(path, "wb") as file:
        file.truncate(201_000_000)  # a hole, which takes no room on the disk
    with pytest.raises(InputError, match="has more than 200 MB"):
        read_picture(path)


@pytest.mark.parametrize(
    "content,found",
    [
        (b"", "an empty file"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'<svg width="100"/>', "an SVG drawing"),
        (b"<!DOCTYPE html><html><body>Please log in</body></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"%PDF-1.7", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript document"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "a HEIC picture"),
        (b"just some words", "text that begins with 'just some words'"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07\x08", "9 bytes that begin with 00 01"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, content, found):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"found {found}") as error:
        read_picture(path)
    assert str(path) in error.value.message


def test_a_truncated_picture_is_refused(tmp_path, save):
    path = save(Image.effect_noise((64, 64), 90), "cut.png")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match="a PNG file that is damaged"):
        read_picture(path)


@pytest.mark.parametrize(
    "name, form, before",
    [("a.avif", "an AVIF", b"mdat"), ("a.png", "a PNG", b"IDAT"), ("a.tif", "a TIFF", None)],
)
def test_pixels_that_cannot_be_decoded_are_told_in_own_words(save, name, form, before):
    path = save(Image.effect_noise((64, 64), 90).convert("RGB"), name)
    data = path.read_bytes()
    if before is None:
        path.write_bytes(data[: len(data) // 2])
    else:
        begin = data.index(before) + 4
        path.write_bytes(data[:begin] + b"\xff" * 1000 + data[begin + 1000 :])
    with pytest.raises(InputError) as error:
        read_picture(path)
    assert error.value.message == f"{path} is {form} file that is damaged"


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["a.avif", "a.tif"])
def test_a_picture_cut_anywhere_is_refused_by_its_name(save, name, share):
    path = save(Image.effect_noise((64, 64), 90).convert("RGB"), name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match="is damaged|is not a picture that can be read") as error:
        read_picture(path)
    assert error.value.message.startswith(str(path))


DECODER_ERRORS = [
    RuntimeError("Failed to decode image"),
    TypeError("Missing dimensions"),
    KeyError(258),
    struct.error("unpack requires a buffer"),
    OverflowError("too large"),
]


@pytest.mark.parametrize("error", DECODER_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "stage, says", [("open", "is not a picture that can be read"), ("load", "is a TIFF file that is damaged")]
)
def test_no_error_of_a_decoder_escapes(save, monkeypatch, stage, says, error):
    path = save(Image.fromarray(GRADIENT), "a.tif")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image if stage == "open" else TiffImagePlugin.TiffImageFile, stage, fail)
    with pytest.raises(InputError, match=says) as raised:
        read_picture(path)
    assert str(path) in raised.value.message and str(error.args[0]) not in raised.value.message


@pytest.mark.parametrize("stage", ["open", "load"])
def test_too_little_memory_is_no_fault_of_the_picture(save, monkeypatch, stage):
    path = save(Image.fromarray(GRADIENT), "a.tif")

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image if stage == "open" else TiffImagePlugin.TiffImageFile, stage, fail)
    with pytest.raises(MemoryError):
        read_picture(path)


def test_an_absent_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_picture(tmp_path / "absent.png")
    with pytest.raises(InputError, match="is a folder"):
        read_picture(tmp_path)


def test_16_bit_grey_is_scaled_and_not_clipped(save):
    values = np.linspace(0, 65535, 40 * 48).reshape(40, 48).astype(np.uint16)
    picture = read_picture(save(Image.fromarray(values), "deep.png"))
    np.testing.assert_array_equal(picture.rgb[..., 0], np.rint(values / 257.0))
    assert len(np.unique(picture.rgb)) == 256


def test_a_palette_is_converted_and_its_transparency_kept(save):
    image = Image.new("P", (40, 40), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 40, 20))
    picture = read_picture(save(image, "palette.png", transparency=0))
    np.testing.assert_array_equal(picture.rgb[30, 30], [0, 0, 255])
    np.testing.assert_array_equal(np.asarray(picture.alpha)[[10, 30], 20], [0, 255])
    assert picture.notes == ["converted from P to 8-bit RGB"]


def test_cmyk_is_converted(save):
    picture = read_picture(save(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "print.tiff"))
    np.testing.assert_array_equal(picture.rgb[0, 0], [255, 0, 0])
    assert picture.notes == ["converted from CMYK to 8-bit RGB"]


def test_grey_with_alpha_is_converted(save):
    picture = read_picture(save(Image.new("LA", (40, 40), (90, 128)), "grey.png"))
    np.testing.assert_array_equal(picture.rgb[0, 0], [90, 90, 90])
    assert (picture.alpha == 128).all()


def test_one_bit_is_converted(save):
    image = Image.new("1", (40, 40), 1)
    image.paste(0, (0, 0, 40, 20))
    picture = read_picture(save(image, "fax.png"))
    np.testing.assert_array_equal(picture.rgb[[10, 30], 5, 0], [0, 255])


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png"])
def test_the_first_frame_of_an_animation_is_used_and_this_is_said(save, name):
    frames = [Image.new("RGB", (40, 40), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(frames[0], name, save_all=True, append_images=frames[1:], **options)
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.rgb[5, 5], [255, 0, 0])
    assert "animated: the first of 3 frames is used" in picture.notes


def test_colours_are_converted_to_srgb_by_the_icc_profile(save):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    lab_white = Image.new("LAB", (40, 40), (255, 128, 128))
    picture = read_picture(save(lab_white, "lab.tiff", icc_profile=profile))
    assert picture.rgb.min() >= 253  # L* = 100 is white
    assert "colours converted to sRGB by its ICC profile" in picture.notes


def test_an_srgb_profile_changes_nothing(save):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = read_picture(save(Image.fromarray(GRADIENT), "srgb.png", icc_profile=profile))
    assert np.abs(picture.rgb.astype(int) - GRADIENT).max() <= 1


def test_a_broken_icc_profile_is_ignored_and_this_is_said(save):
    picture = read_picture(save(Image.fromarray(GRADIENT), "broken.png", icc_profile=b"nonsense" * 40))
    np.testing.assert_array_equal(picture.rgb, GRADIENT)
    assert picture.notes == ["its ICC profile cannot be applied and is ignored"]


@pytest.mark.parametrize("orientation,turn", [(3, 2), (6, -1), (8, 1)])
def test_the_exif_rotation_is_applied(save, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(save(Image.fromarray(GRADIENT), "phone.png", exif=exif))
    np.testing.assert_array_equal(picture.rgb, np.rot90(GRADIENT, turn))
    assert picture.notes == ["turned upright as its EXIF orientation says"]


@pytest.mark.parametrize("size", [(1, 1), (31, 200), (200, 31)])
def test_less_than_32_pixels_are_refused(save, size):
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]} pixels, at least 32x32"):
        read_picture(save(Image.new("RGB", size), "tiny.png"))


def test_alpha_that_is_opaque_everywhere_counts_as_none(save):
    picture = read_picture(save(Image.new("RGBA", (40, 40), (9, 9, 9, 255)), "opaque.png"))
    assert picture.alpha is None
    assert picture.notes == ["an alpha channel that is opaque everywhere is ignored"]


@pytest.mark.parametrize(
    "name", ["two words.png", "ünïcode.png", b"not-utf8-\xff.png".decode(errors="surrogateescape")]
)
def test_any_file_name_works(save, name):
    assert read_picture(save(Image.fromarray(GRADIENT), name)).rgb.shape == (40, 48, 3)


def test_a_link_to_a_picture_works(tmp_path, save):
    (tmp_path / "link").symlink_to(save(Image.fromarray(GRADIENT), "real.png"))
    np.testing.assert_array_equal(read_picture(tmp_path / "link").rgb, GRADIENT)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (6, 5, 4)])
def test_a_written_png_reads_back_bit_for_bit(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_png(tmp_path / "a.png", array)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), array)


def test_a_written_png_is_the_same_file_each_time(tmp_path):
    write_png(tmp_path / "a.png", GRADIENT)
    write_png(tmp_path / "b.png", GRADIENT)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_over_white_truncates_to_8_bits():
    rgb, alpha = np.array([[[200, 100, 0]]], np.uint8), np.array([[102]], np.uint8)
    np.testing.assert_array_equal(over_white(rgb, alpha), [[[233, 193, 153]]])  # 233.0, 193.0, 153.0 exactly


def test_the_main_picture_of_a_phone_file_is_read_without_a_word(save):
    path = save(
        Image.new("RGB", (40, 40), "#ff0000"),
        "phone.mpo",
        save_all=True,
        append_images=[Image.new("RGB", (8, 8))],
    )
    picture = read_picture(path.rename(path.with_suffix(".jpg")))
    assert picture.rgb[20, 20, 0] > 250 and picture.notes == []


def test_a_picture_knows_its_file(save):
    path = save(Image.fromarray(GRADIENT), "plain.png")
    assert read_picture(path).name == str(path)


def test_the_pixels_of_many_pictures_are_counted_by_their_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_TOTAL_PIXELS", 5000)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("pixels are decoded"))
    for suffix in ("png", "webp", "tif"):
        Image.new("L", (40, 40)).save(tmp_path / f"a.{suffix}")
    (tmp_path / "a.txt").write_text("no picture")
    paths = sorted(tmp_path.iterdir())
    images.check_total_pixels(paths, tmp_path)
    with pytest.raises(InputError, match=r"more than 0 megapixels in all, up to a\.png"):
        images.check_total_pixels([*paths, paths[0]], tmp_path)


def test_frames_of_large_animations_are_not_counted(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(images, "MAX_COUNTED_BYTES", 10)
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "n_frames", property(lambda _: pytest.fail("counted")))
    assert "animated: the first frame is used" in read_picture(tmp_path / "a.gif").notes
