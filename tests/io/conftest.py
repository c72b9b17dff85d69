"""Pictures on disk, for all tests of this folder."""

import pytest

from tests.io.picture_files import save_picture


@pytest.fixture
def save(tmp_path):
    """Saves a Pillow image under a name in `tmp_path`, and returns the path."""

    def save(image, name, **options):
        path = tmp_path / name
        image.save(path, **options)
        return path

    return save


@pytest.fixture
def folder(tmp_path):
    """A folder with a texture of 2x1 texels, red and green, and two of alphas."""
    save_picture(tmp_path / "red green.png", [[[255, 0, 0], [0, 255, 0]]])
    save_picture(tmp_path / "clear.png", [[[9, 9, 9, 0], [9, 9, 9, 255]]])
    save_picture(tmp_path / "grey.png", [[0, 100]])
    return tmp_path
