"""Masks: grey pictures of any kind and the alpha of cut-outs."""

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.errors import InputError
from sv3d_jax.io.images import read_mask
from tests.io.picture_files import GRADIENT


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "1", "P"])
def test_a_mask_is_read_from_grey_of_any_kind(save, mode):
    half = np.zeros((40, 48), np.uint8)
    half[:20] = 255
    if mode == "I;16":
        image = Image.fromarray(half.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(half).convert(mode)
    path = save(image, "mask.png")
    mask = read_mask(path)
    np.testing.assert_array_equal(mask.coverage, half)
    assert mask.name == str(path)


def test_a_mask_of_0_and_1_is_black_and_white(save):
    mask = read_mask(save(Image.fromarray(np.eye(40, dtype=np.uint8)), "mask.png"))
    np.testing.assert_array_equal(mask.coverage, np.eye(40) * 255)


def test_a_cut_out_serves_as_its_own_mask(save):
    alpha = np.zeros((40, 48), np.uint8)
    alpha[5:9] = 77
    path = save(Image.fromarray(np.dstack([GRADIENT, alpha])), "cut.png")
    np.testing.assert_array_equal(read_mask(path).coverage, alpha)


def test_a_mask_is_turned_upright_as_its_picture_is(save):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(GRADIENT[..., 0])
    mask = read_mask(save(image, "mask.png", exif=exif))
    np.testing.assert_array_equal(mask.coverage, np.rot90(GRADIENT[..., 0], -1))


def test_a_mask_in_colour_is_refused(save):
    path = save(Image.fromarray(GRADIENT), "photo.png")
    with pytest.raises(InputError, match="is in colour and has no alpha") as error:
        read_mask(path)
    assert str(path) in error.value.message
