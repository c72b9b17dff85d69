"""HEIC pictures of phones: what is read, what is refused, and the extra that reads them."""

import sys

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.errors import InputError
from sv3d_jax.io import images
from sv3d_jax.io.images import read_picture
from tests.io.picture_files import GRADIENT

HEIC = b"\x00\x00\x00\x18ftypheic" + bytes(300)


def test_heic_without_its_reader_names_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    (tmp_path / "phone.heic").write_bytes(HEIC)
    with pytest.raises(InputError, match="phone.heic .* found a HEIC picture") as error:
        read_picture(tmp_path / "phone.heic")
    assert 'pip install "sv3d_jax[photos]"' in error.value.hint


def test_the_size_of_a_heic_picture_is_checked_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "pi_heif.py").write_text(
        "from PIL import Image\n"
        "class HeifImageFile(Image.Image):\n"
        "    format = 'HEIF'\n"
        "    def __init__(self, file):\n"
        "        super().__init__()\n"
        "        self._size, self._mode = (9000, 9000), 'RGB'\n"
        "    def load(self):\n"
        "        raise AssertionError('decoded')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pi_heif", raising=False)
    (tmp_path / "phone.heic").write_bytes(HEIC)
    with pytest.raises(InputError, match="9000x9000 = 81 megapixels"):
        read_picture(tmp_path / "phone.heic")
    sys.modules.pop("pi_heif")


def test_heic_is_read_upright_and_not_opened_to_others(tmp_path):
    import pillow_heif as heif

    exif = Image.Exif()
    exif[0x0112] = 6
    file = heif.from_pillow(Image.fromarray(GRADIENT))
    file.info["exif"] = exif.tobytes()
    file.save(tmp_path / "phone.heic", quality=95)
    picture = read_picture(tmp_path / "phone.heic")
    assert np.abs(picture.rgb.astype(int) - np.rot90(GRADIENT, -1)).mean() < 3
    with pytest.raises(OSError):
        Image.open(tmp_path / "phone.heic")


def test_a_damaged_heic_picture_is_refused(tmp_path):
    import pillow_heif as heif

    path = tmp_path / "phone.heic"
    heif.from_pillow(Image.fromarray(GRADIENT)).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="phone.heic"):
        read_picture(path)


def test_the_main_one_of_several_heic_pictures_is_read(tmp_path):
    import pillow_heif as heif

    file = heif.from_pillow(Image.new("RGB", (48, 40), "#ff0000"))
    file.add_from_pillow(Image.new("RGB", (48, 40), "#0000ff"))
    file.save(tmp_path / "burst.heic", primary_index=1)
    picture = read_picture(tmp_path / "burst.heic")
    assert picture.rgb[20, 20, 2] > 240 and picture.notes == ["the main one of its 2 pictures is used"]
