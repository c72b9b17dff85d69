"""TIFF files: which value of 16 and 32-bit and float pixels is white, and which kinds are refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.errors import InputError
from sv3d_jax.io.images import read_picture

CASES = Path(__file__).parents[1] / "cases" / "reports"


def tiff(values, kind, orientation=1):
    """The bytes of an uncompressed TIFF of values (h, w) or (h, w, c), whose sample format is `kind`."""
    height, width, channels = (*values.shape, 1)[:3]
    short, long = 3, 4
    entries = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [values.itemsize * 8] * channels),
        (259, short, [1]),
        (262, short, [2 if channels == 3 else 1]),
        (273, long, [0]),
        (274, short, [orientation]),
        (277, short, [channels]),
        (278, long, [height]),
        (279, long, [values.nbytes]),
        (339, short, [kind] * channels),
    ]
    start, more = 8 + 2 + 12 * len(entries) + 4, b""
    table = struct.pack("<H", len(entries))
    for tag, size, numbers in entries:
        data = struct.pack(f"<{len(numbers)}{'H' if size == short else 'I'}", *numbers)
        if len(data) > 4:
            data, more = struct.pack("<I", start + len(more)), more + data
        table += struct.pack("<HHI", tag, size, len(numbers)) + data.ljust(4, b"\0")
    place = struct.pack("<HHII", 273, long, 1, start + len(more))
    table = table.replace(struct.pack("<HHII", 273, long, 1, 0), place)
    return b"II*\0" + struct.pack("<I", 8) + table + bytes(4) + more + values.tobytes()


UNSIGNED, SIGNED, FLOAT = 1, 2, 3


@pytest.mark.parametrize(
    "values,kind,white",
    [
        (np.array([0, 100, 255], np.int32), SIGNED, 255),
        (np.array([0, 100, 255], np.uint32), UNSIGNED, 255),
        (np.array([0, 3, 200], np.uint32), UNSIGNED, 255),
        (np.array([0, 25700, 65535], np.int32), SIGNED, 65535),
        (np.array([0, 25700, 40000], np.uint32), UNSIGNED, 65535),
        (np.array([0, 5_000_000, 2**24 - 1], np.uint32), UNSIGNED, 2**24 - 1),
        (np.array([-5, 10**9, 2**31 - 1], np.int32), SIGNED, 2**31 - 1),
        (np.array([0, 3 * 10**9, 2**32 - 1], np.uint32), UNSIGNED, 2**32 - 1),
        (np.array([-5, 100, 255], np.int16), SIGNED, 255),
        (np.array([-5, 9000, 32767], np.int16), SIGNED, 32767),
        (np.array([0, 0.25, 1], np.float32), FLOAT, 1),
        (np.array([0, 0.25, 1.3], np.float32), FLOAT, 1),
        (np.array([0, 100, 255], np.float32), FLOAT, 255),
        (np.array([-1, 25700, 65535], np.float32), FLOAT, 65535),
        (np.array([np.nan, 0.5, np.inf], np.float32), FLOAT, 1),
        (np.array([0, 4e9, 1e10], np.float32), FLOAT, 1e10),
    ],
)
def test_white_of_32_bit_and_float_grey_is_the_smallest_usual_one_that_reaches(tmp_path, values, kind, white):
    (tmp_path / "deep.tif").write_bytes(tiff(np.tile(values, (40, 16)), kind))
    picture = read_picture(tmp_path / "deep.tif")
    expected = np.rint(np.clip(np.nan_to_num(values.astype(float)) / white, 0, 1) * 255)
    np.testing.assert_array_equal(picture.rgb[0, :3, 0], expected)
    assert f"0 is taken as black, {white:.10g} as white" in picture.notes[0]


def test_an_object_of_grey_100_in_a_32_bit_tiff_stays_at_100():
    picture = read_picture(CASES / "int32_tiff" / "int32.tif")
    assert np.unique(picture.rgb).tolist() == [100, 255]


def test_a_dark_16_bit_picture_stays_dark(tmp_path):
    values = np.full((40, 40), 200, ">u2")  # of 65535
    (tmp_path / "dark.pgm").write_bytes(b"P5 40 40 65535\n" + values.tobytes())
    (tmp_path / "dark.tif").write_bytes(tiff(values.astype("<u2"), UNSIGNED))
    for name in ("dark.pgm", "dark.tif"):
        assert (read_picture(tmp_path / name).rgb == 1).all()


def test_a_turned_32_bit_tiff_keeps_its_white(tmp_path):
    values = np.full((40, 48), 3_000_000_000, np.uint32)
    (tmp_path / "turned.tif").write_bytes(tiff(values, UNSIGNED, orientation=6))
    picture = read_picture(tmp_path / "turned.tif")
    assert picture.rgb.shape == (48, 40, 3) and (picture.rgb == round(3e9 / (2**32 - 1) * 255)).all()


def test_colours_of_16_bits_are_read(tmp_path):
    values = np.broadcast_to(np.array([65535, 25700, 0], np.uint16), (40, 40, 3))
    (tmp_path / "deep.tif").write_bytes(tiff(np.ascontiguousarray(values), UNSIGNED))
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.tif").rgb[0, 0], [255, 100, 0])


@pytest.mark.parametrize("dtype,kind", [(np.float32, FLOAT), (np.uint32, UNSIGNED)])
def test_a_tiff_of_a_kind_that_is_not_read_is_called_so(tmp_path, dtype, kind):
    (tmp_path / "colour.tif").write_bytes(tiff(np.ones((40, 40, 3), dtype), kind))
    with pytest.raises(InputError, match="a TIFF that is damaged or of a kind that is not read"):
        read_picture(tmp_path / "colour.tif")


def test_float_grey_of_0_to_1_spans_black_to_white(save):
    values = np.linspace(0, 1, 40 * 48, dtype=np.float32).reshape(40, 48)
    picture = read_picture(save(Image.fromarray(values), "float.tiff"))
    np.testing.assert_array_equal(picture.rgb[..., 1], np.rint(values * 255.0))
