"""File names in files: which may be opened, and the paths they mean."""

from pathlib import Path

import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io.names import exists, named_file

FOLDER = Path("a/b")


@pytest.mark.parametrize(
    "name, path",
    [
        ("c.png", "a/b/c.png"),
        ("./c/d", "a/b/c/d"),
        ("c\\d.png", "a/b/c/d.png"),
        ("c/../d.png", "a/b/c/../d.png"),
        ("take 12:30.png", "a/b/take 12:30.png"),
    ],
)
def test_names_below_the_folder_are_followed(name, path):
    assert named_file(FOLDER, name, "name") == Path(path)


@pytest.mark.parametrize(
    "name, text",
    [
        ("/c.png", "name is absolute"),
        ("C:/c.png", "name is absolute"),
        ("\\\\host\\c.png", "name is absolute"),
        ("http://host/c.png", "name is an address"),
        ("FILE:c.png", "name is an address"),
        ("s3://bucket/c.png", "name is an address"),
        ("../c.png", "name lies outside"),
        ("c/../../d/e.png", "name lies outside"),
        ("..\\c.png", "name lies outside"),
        (".", "name names a folder"),
        (".\\", "name names a folder"),
        ("c/..", "name names a folder"),
    ],
)
def test_other_names_are_refused_with_the_name(name, text):
    with pytest.raises(InputError, match=text) as error:
        named_file(FOLDER, name, "name")
    assert name in error.value.message


def test_a_name_may_climb_as_far_as_is_allowed():
    assert named_file(FOLDER, "../c.png", "name", climb=1) == Path("a/b/../c.png")
    with pytest.raises(InputError, match="outside"):
        named_file(FOLDER, "../../c.png", "name", climb=1)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "absent"])
def test_asking_for_a_file_never_fails(tmp_path, name):
    assert not exists(tmp_path / name)
