"""Errors of damaged textures give their names."""

import io

import pytest
from PIL import Image, TiffImagePlugin

from sv3d_jax.errors import InputError
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
