"""Radiance .hdr pictures."""

import contextlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io.hdr import read_hdr

CASES = Path(__file__).parents[1] / "cases" / "faults"
HEADER = b"#?RADIANCE\n# made by hand\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n"
# Mantissa 128 with exponent 129 is 128 / 256 * 2 = 1.
RGBE = np.array([[128, 64, 0, 129], [128, 128, 128, 131], [0, 0, 0, 0]], np.uint8)
RADIANCE = [[1.0, 0.5, 0.0], [4.0, 4.0, 4.0], [0.0, 0.0, 0.0]]


def test_plain_pixels(tmp_path):
    path = tmp_path / "a.hdr"
    path.write_bytes(HEADER % (1, 3) + RGBE.tobytes())
    np.testing.assert_array_equal(read_hdr(path), [RADIANCE])


def encoded_row(width: int) -> bytes:
    """A row of `width` times the first pixel: a run of a channel's byte, but the last two bytes spelt out."""
    channels = [bytes([128 + width - 2, value, 2, value, value]) for value in RGBE[0]]
    return bytes([2, 2, 0, width]) + b"".join(channels)


def test_run_length_encoded_rows(tmp_path):
    path = tmp_path / "a.hdr"
    path.write_bytes(HEADER % (2, 10) + 2 * encoded_row(10))
    np.testing.assert_array_equal(read_hdr(path), np.tile(RADIANCE[0], (2, 10, 1)))


def run_length_encoded(rgbe):
    """A picture's bytes (h w 4) by rows: runs of three and more, the rest spelt out."""
    out = b""
    for row in rgbe:
        out += bytes([2, 2, len(row) >> 8, len(row) & 255])
        for channel in row.T.tolist():
            place, literal = 0, []
            while place < len(channel):
                end = place
                while end < min(len(channel), place + 127) and channel[end] == channel[place]:
                    end += 1
                if end - place >= 3:
                    out += bytes([len(literal), *literal]) if literal else b""
                    out, literal = out + bytes([128 + end - place, channel[place]]), []
                    place = end
                else:
                    literal.append(channel[place])
                    place += 1
                if len(literal) == 128:
                    out, literal = out + bytes([128, *literal]), []
            out += bytes([len(literal), *literal]) if literal else b""
    return out


def with_repeats(rgbe):
    """The older encoding: each pixel that repeats the one before it is counted in a pixel (1, 1, 1, n)."""
    out = b""
    for row in rgbe.tolist():
        place = 0
        while place < len(row):
            end = place + 1
            while end < len(row) and row[end] == row[place]:
                end += 1
            out, repeats = out + bytes(row[place]), end - place - 1
            while repeats:
                out, repeats = out + bytes([1, 1, 1, repeats & 255]), repeats >> 8
            place = end
    return out


def plain(rgbe):
    return rgbe.tobytes()


def picture(width, height=3, seed=0):
    """Normalized pixels (h w 4), single ones and long runs."""
    rng = np.random.default_rng([width, seed])
    rgbe = rng.integers(0, 256, (height, width, 4), np.uint8)
    rgbe[..., 0] |= 128
    rgbe[:, width // 3 :] = np.where(rng.random((height, 1, 1)) < 0.7, rgbe[:, :1], rgbe[:, width // 3 :])
    return rgbe


def radiance_of(rgbe):
    mantissa, exponent = rgbe[..., :3].astype(np.float64), rgbe[..., 3:].astype(np.float64)
    return np.where(exponent > 0, mantissa * 2.0 ** (exponent - 136), 0.0).astype(np.float32)


WIDTHS = [8, 10, 127, 128, 255, 256, 300, 512, 2048, 32767]
ENCODINGS = [
    *[(encode, width) for width in WIDTHS for encode in (plain, with_repeats, run_length_encoded)],
    *[(encode, width) for width in (1, 2, 7, 32768) for encode in (plain, with_repeats)],
]


@pytest.mark.parametrize(("encode", "width"), ENCODINGS)
def test_rows_of_any_width_and_encoding_are_read(tmp_path, encode, width):
    rgbe = picture(width)
    (tmp_path / "a.hdr").write_bytes(HEADER % (3, width) + encode(rgbe))
    np.testing.assert_array_equal(read_hdr(tmp_path / "a.hdr"), radiance_of(rgbe))


def test_rows_of_different_encodings_are_read(tmp_path):
    rgbe = picture(300)
    rows = [
        encode(row[None]) for encode, row in zip((plain, run_length_encoded, with_repeats), rgbe, strict=True)
    ]
    (tmp_path / "a.hdr").write_bytes(HEADER % (3, 300) + b"".join(rows))
    np.testing.assert_array_equal(read_hdr(tmp_path / "a.hdr"), radiance_of(rgbe))


@pytest.mark.parametrize(
    ("encode", "width"),
    [(plain, 1), (plain, 7), (plain, 512), (run_length_encoded, 10), (run_length_encoded, 512)],
)
def test_opencv_reads_the_same(tmp_path, encode, width):
    (tmp_path / "a.hdr").write_bytes(HEADER % (3, width) + encode(picture(width)))
    expected = cv2.imread(str(tmp_path / "a.hdr"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    np.testing.assert_array_equal(read_hdr(tmp_path / "a.hdr"), expected)


ORDERS = {  # the picture (h w 4) as lines of the file
    "-Y 3 +X 9": lambda x: x,
    "+Y 3 +X 9": lambda x: x[::-1],
    "-Y 3 -X 9": lambda x: x[:, ::-1],
    "+Y 3 -X 9": lambda x: x[::-1, ::-1],
    "+X 9 -Y 3": lambda x: x.swapaxes(0, 1),
    "-X 9 -Y 3": lambda x: x[:, ::-1].swapaxes(0, 1),
    "+X 9 +Y 3": lambda x: x[::-1].swapaxes(0, 1),
    "-X 9 +Y 3": lambda x: x[::-1, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("order", ORDERS)
def test_lines_in_any_order_of_the_axes_are_read(tmp_path, order):
    rgbe = picture(9)
    lines = np.ascontiguousarray(ORDERS[order](rgbe))
    header = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n" + order.encode() + b"\n"
    (tmp_path / "a.hdr").write_bytes(header + with_repeats(lines))
    np.testing.assert_array_equal(read_hdr(tmp_path / "a.hdr"), radiance_of(rgbe))


@pytest.mark.parametrize(
    "header",
    [
        b"#?RGBE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 3\n",
        b"#?RADIANCE\n\n-Y 1 +X 3\n",
        b"#?RADIANCE\r\nFORMAT=32-bit_rle_rgbe\r\n\r\n-Y 1 +X 3\r\n",
        b"#?RADIANCE\nrpict\nEXPOSURE= 2.5\nFORMAT=32-bit_rle_rgbe\nCOLORCORR= 1.000000 1 1\n\n-Y 1 +X 3\n",
    ],
)
def test_headers_in_any_form_are_read(tmp_path, header):
    (tmp_path / "a.hdr").write_bytes(header + RGBE.tobytes())
    np.testing.assert_array_equal(read_hdr(tmp_path / "a.hdr"), [RADIANCE])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"rle_rgbe", b"rle_xyze", "in the format '32-bit_rle_xyze'"),
        (b"# made by hand", b"COLORCORR=1 0.5 1", "colour correction"),
        (b"-Y 1 +X 3", b"-Y 1 +Y 3", "must end in a line like"),
        (b"-Y 1 +X 3", b"-Y 1 +X " + 5000 * b"3", "must end in a line like"),
        (b"-Y 1 +X 3", b"-Y 0 +X 3", "has 0 lines of 3 pixels"),
        (b"-Y 1 +X 3", b"-Y 32769 +X 1", "has 32769 lines"),
        (b"-Y 1 +X 3", b"-Y 32768 +X 32768", "pixels in all"),
        (b"-Y 1 +X 3", b"-Y 1 +X 2", "damaged: 4 bytes follow"),
        (b"-Y 1 +X 3", b"-Y 1 +X 4", "damaged: its pixels are not all there"),
    ],
)
def test_headers_of_other_pictures_are_refused_by_name(tmp_path, old, new, message):
    content = HEADER % (1, 3) + RGBE.tobytes()
    (tmp_path / "a.hdr").write_bytes(content.replace(old, new))
    with pytest.raises(InputError) as error:
        read_hdr(tmp_path / "a.hdr")
    assert message in f"{error.value} {error.value.hint}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (bytes([1, 1, 1, 3]), "repeated outside"),  # nothing before it
        (bytes([9, 9, 200, 9, 1, 1, 1, 8]), "repeated outside"),
        (bytes([9, 9, 200, 9, 1, 1, 1, 0, 1, 1, 1, 1]), "repeated outside"),
        (bytes([2, 2, 0, 8, 0]), "no pixels|outside"),
        (bytes([2, 2, 0, 8, 0, 1]), "no pixels"),
        (bytes([2, 2, 0, 8, 137, 1]), "outside its line"),
        (bytes([2, 2, 0, 8, 9, *range(9)]), "outside its line"),
        (bytes([2, 2, 0, 9]) + bytes(32), "a line is of 9 pixels, not of 8"),
    ],
)
def test_damaged_lines_are_refused(tmp_path, line, message):
    (tmp_path / "a.hdr").write_bytes(HEADER % (1, 8) + line)
    with pytest.raises(InputError, match=f"a.hdr is damaged: .*({message})"):
        read_hdr(tmp_path / "a.hdr")


@pytest.mark.parametrize("trials", [40, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("encode", [plain, with_repeats, run_length_encoded])
def test_damaged_files_are_refused_or_have_finite_values_of_the_named_size(tmp_path, encode, trials):
    rng, content = np.random.default_rng(trials), HEADER % (3, 40) + encode(picture(40))
    for _ in range(trials):
        damaged = bytearray(content)
        for place in rng.integers(len(damaged), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        (tmp_path / "a.hdr").write_bytes(damaged[: rng.integers(1, 2 * len(damaged))])
        with contextlib.suppress(InputError):
            radiance = read_hdr(tmp_path / "a.hdr")
            assert np.isfinite(radiance).all() and radiance.min() >= 0 and radiance.size == 3 * 40 * 3


@pytest.mark.parametrize("width", [255, 256])
def test_a_given_map_is_the_same_at_255_and_at_256_pixels(width):
    radiance = read_hdr(CASES / f"hdr_rle_{width}x128.hdr")
    assert radiance.shape == (128, width, 3)
    np.testing.assert_allclose(radiance.mean((0, 1)), [0.78125, 0.703125, 0.625])


def test_runs_for_another_width_are_refused_and_not_taken_for_pixels(tmp_path):
    rgbe = np.random.default_rng(0).integers(0, 256, (4, 64, 4), np.uint8)
    (tmp_path / "a.hdr").write_bytes(HEADER % (4, 60) + run_length_encoded(rgbe))
    with pytest.raises(InputError, match=r"a\.hdr is damaged"):
        read_hdr(tmp_path / "a.hdr")


@pytest.mark.parametrize("cut", [1, 12, 30])
def test_truncated_file_is_refused(tmp_path, cut):
    path = tmp_path / "a.hdr"
    path.write_bytes((HEADER % (2, 10) + 2 * encoded_row(10))[:-cut])
    with pytest.raises(InputError, match=r"a\.hdr is damaged"):
        read_hdr(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.hdr"
    path.write_bytes(b"\x76\x2f\x31\x01")  # OpenEXR
    with pytest.raises(InputError, match="neither a Radiance"):
        read_hdr(path)
