"""Environment maps of either format."""

import sys

import numpy as np
import OpenEXR
import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io.environment import read_environment

RADIANCE = np.exp(np.random.default_rng(0).normal(0, 2, (5, 9, 3))).astype(np.float32)


def write_exr(path, channels=None, **header):
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage} | header
    OpenEXR.File(header, {"RGB": RADIANCE} if channels is None else channels).write(str(path))
    return path


def test_a_radiance_file_is_read(tmp_path):
    content = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n" + bytes([128, 64, 0, 129])
    (tmp_path / "a.hdr").write_bytes(content)
    np.testing.assert_array_equal(read_environment(tmp_path / "a.hdr"), [[[1.0, 0.5, 0.0]]])


@pytest.mark.parametrize("compression", ["NO", "RLE", "ZIPS", "ZIP", "PIZ"])
def test_an_openexr_file_is_read(tmp_path, compression):
    path = write_exr(tmp_path / "a.exr", compression=getattr(OpenEXR, f"{compression}_COMPRESSION"))
    np.testing.assert_array_equal(read_environment(path), RADIANCE)


@pytest.mark.parametrize("name", ["a.exr", "named as another.hdr"])
def test_halves_with_alpha_are_read_whatever_the_name(tmp_path, name):
    rgba = np.concatenate([RADIANCE, np.ones_like(RADIANCE[..., :1])], axis=-1).astype(np.float16)
    path = write_exr(tmp_path / name, {"RGBA": rgba})
    np.testing.assert_array_equal(read_environment(path), rgba[..., :3].astype(np.float32))


WINDOW = (np.array([0, 0], np.int32), np.array([20, 20], np.int32))
ACES = (0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32, 0.34)


@pytest.mark.parametrize(
    ("message", "channels", "header"),
    [
        ("the channels Y; R, G and B are needed", {"Y": RADIANCE[..., 0]}, {}),
        ("channels of integers", {"RGB": RADIANCE.astype(np.uint32)}, {}),
        ("not finite", {"RGB": RADIANCE * np.float32(np.inf)}, {}),
        ("not finite", {"RGB": RADIANCE * np.float32(np.nan)}, {}),
        ("a crop", None, {"displayWindow": WINDOW}),
        ("other primaries", None, {"chromaticities": ACES}),
    ],
)
def test_what_would_be_read_wrongly_is_refused_by_name(tmp_path, message, channels, header):
    path = write_exr(tmp_path / "a.exr", channels, **header)
    with pytest.raises(InputError, match=rf"a\.exr has .*{message}|a\.exr .*{message}"):
        read_environment(path)


def test_several_parts_are_refused(tmp_path):
    parts = [OpenEXR.Part({}, {"RGB": RADIANCE}, name) for name in ("left", "right")]
    OpenEXR.File(parts).write(str(tmp_path / "a.exr"))
    with pytest.raises(InputError, match="several parts"):
        read_environment(tmp_path / "a.exr")


@pytest.mark.parametrize("keep", [4, 100, 0.5, -1])
def test_a_truncated_file_is_damaged(tmp_path, keep):
    content = write_exr(tmp_path / "a.exr").read_bytes()
    (tmp_path / "a.exr").write_bytes(content[: int(len(content) * keep) if keep == 0.5 else keep])
    with pytest.raises(InputError, match=r"a\.exr is damaged"):
        read_environment(tmp_path / "a.exr")


def test_without_the_package_the_message_says_what_to_do(tmp_path, monkeypatch):
    path = write_exr(tmp_path / "a.exr")
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(InputError, match="needs the package OpenEXR") as error:
        read_environment(path)
    assert 'pip install "sv3d_jax[exr]"' in error.value.hint


@pytest.mark.parametrize("make", ["missing", "folder", "text"])
def test_other_paths_are_refused(tmp_path, make):
    if make == "folder":
        (tmp_path / "a.exr").mkdir()
    elif make == "text":
        (tmp_path / "a.exr").write_text("words")
    with pytest.raises(InputError, match=r"a\.exr (does not exist|is a folder|is neither)"):
        read_environment(tmp_path / "a.exr")
