"""Radiance .hdr pictures."""

from pathlib import Path

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


@pytest.mark.parametrize("width", [8, 127, 255, 256, 300, 1024])
@pytest.mark.parametrize("noisy", [False, True])
def test_run_length_encoded_rows_of_any_width(tmp_path, width, noisy):
    rng = np.random.default_rng(width)
    rgbe = rng.integers(0, 256, (3, width, 4), np.uint8) if noisy else np.tile(RGBE[:1], (3, width, 1))
    rgbe[..., 3] = 120 + rgbe[..., 3] % 16
    (tmp_path / "plain.hdr").write_bytes(HEADER % (3, width) + rgbe.tobytes())
    (tmp_path / "runs.hdr").write_bytes(HEADER % (3, width) + run_length_encoded(rgbe))
    np.testing.assert_array_equal(read_hdr(tmp_path / "runs.hdr"), read_hdr(tmp_path / "plain.hdr"))


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
    with pytest.raises(InputError, match="not a Radiance"):
        read_hdr(path)
