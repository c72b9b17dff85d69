"""Errors of damaged textures give their names."""

import io
from pathlib import Path

import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from sv3d_jax.errors import InputError
from sv3d_jax.io import textures
from sv3d_jax.io.surfaces import Source
from sv3d_jax.io.textures import decode_picture


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path / "mesh.obj")


def encoded(form):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("form", ["AVIF", "TIFF"])
def test_a_picture_cut_anywhere_is_refused_by_its_name(source, form, share):
    data = encoded(form)
    with pytest.raises(InputError, match=r"a\.picture is"):
        decode_picture(data[: int(len(data) * share)], "a.picture", source)


@pytest.mark.parametrize(
    "error", [RuntimeError("no item"), TypeError("no item"), KeyError("no item")], ids=repr
)
@pytest.mark.parametrize(
    "stage, says", [("open", "is no picture that can be read"), ("load", "is a TIFF picture that is damaged")]
)
def test_no_error_of_a_decoder_escapes(source, monkeypatch, stage, says, error):
    data = encoded("TIFF")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image if stage == "open" else TiffImagePlugin.TiffImageFile, stage, fail)
    with pytest.raises(InputError) as raised:
        decode_picture(data, "a.tif", source)
    assert raised.value.message == f"a.tif {says}"


@pytest.mark.parametrize("stage", ["open", "load"])
def test_too_little_memory_is_no_fault_of_the_picture(source, monkeypatch, stage):
    data = encoded("TIFF")

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image if stage == "open" else TiffImagePlugin.TiffImageFile, stage, fail)
    with pytest.raises(MemoryError):
        decode_picture(data, "a.tif", source)


def test_the_texels_of_all_textures_are_counted_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(textures, "MAX_DECODED_IN_ALL", 100)
    source = Source(Path("a.glb"))
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    textures.decode_picture(buffer.getvalue(), "one", source)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("texels are decoded"))
    with pytest.raises(InputError, match="have 128 pixels up to two, more than 100"):
        textures.decode_picture(buffer.getvalue(), "two", source)
