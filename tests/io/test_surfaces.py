"""What all mesh formats share: files next to a mesh, axes, remarks."""

import os

import numpy as np
import pytest

from sv3d_jax.cameras.pose import look_at
from sv3d_jax.errors import InputError
from sv3d_jax.io.surfaces import FILE_FROM_WORLD, Source, world_from_file, y_up


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "meshes"
    (folder / "textures").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"beside")
    (folder / "textures" / "b.png").write_bytes(b"below")
    (tmp_path / "secret").write_bytes(b"secret")
    return Source(folder / "a.gltf")


@pytest.mark.parametrize("name", ["a.png", "./a.png", ".//a.png"])
def test_files_beside_are_read(source, name):
    assert source.beside(name) == b"beside"


@pytest.mark.parametrize(
    "name", ["textures/b.png", "textures\\b.png", "./textures/b.png", "textures/../textures/b.png"]
)
def test_files_below_are_read_with_either_slash(source, name):
    assert source.beside(name) == b"below"


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "textures/../../secret",
        "..\\secret",
        "file:///etc/hosts",
        "http://a.b/c",
        "C:\\a.png",
        "/a",
    ],
)
def test_other_places_are_refused_by_name(source, name):
    with pytest.raises(InputError, match="refers to another place") as error:
        source.beside(name)
    assert name in error.value.message


def test_an_absolute_path_into_the_folder_itself_is_refused(source):
    with pytest.raises(InputError, match="refers to another place"):
        source.beside(str(source.path.parent / "a.png"))


def test_links_out_of_the_folder_are_refused_and_links_within_are_followed(source):
    os.symlink("../secret", source.path.parent / "out.png")
    os.symlink("a.png", source.path.parent / "in.png")
    os.symlink("..", source.path.parent / "up")
    for name in ("out.png", "up/secret"):
        with pytest.raises(InputError, match="leads out"):
            source.beside(name)
    assert source.beside("in.png") == b"beside"


@pytest.mark.parametrize("name", ["absent.png", "textures", "a\0b", "x" * 5000, ""])
def test_what_is_no_file_is_refused(source, name):
    with pytest.raises(InputError, match="refers to"):
        source.beside(name)


def test_a_ring_of_links_is_refused(source):
    os.symlink("ring", source.path.parent / "ring")
    with pytest.raises(InputError, match="refers to ring"):
        source.beside("ring")


def test_a_remark_is_noted_once(source):
    source.remark("one")
    source.remark("two")
    source.remark("one")
    assert source.remarks == ["one", "two"]


def test_the_front_of_the_world_is_the_front_of_a_file():
    seen_first, upwards = look_at(0.0, 0.0, 1.0)[:3, 3], np.array([0.0, 0.0, 1.0])
    np.testing.assert_array_equal(y_up(np.stack([seen_first, upwards])), [[0, 0, 1], [0, 1, 0]])


def test_axes_of_files_turn_and_do_not_mirror():
    assert np.linalg.det(FILE_FROM_WORLD) == 1.0
    np.testing.assert_array_equal(world_from_file("y") @ FILE_FROM_WORLD, np.eye(4))
    np.testing.assert_array_equal(world_from_file("z"), np.eye(4))
