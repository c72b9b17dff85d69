"""Radiance .hdr pictures."""

import numpy as np
import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io.hdr import read_hdr

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


@pytest.mark.parametrize("cut", [1, 12, 30])
def test_truncated_file_is_refused(tmp_path, cut):
    path = tmp_path / "a.hdr"
    path.write_bytes((HEADER % (2, 10) + 2 * encoded_row(10))[:-cut])
    with pytest.raises(InputError, match=r"a\.hdr is damaged"):
        read_hdr(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.hdr"
    path.write_bytes(b"\x76\x2f\x31\x01")  # OpenEXR
    with pytest.raises(InputError, match="not a Radiance"):
        read_hdr(path)
