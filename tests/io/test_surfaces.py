"""What all mesh formats share: files next to a mesh, axes, remarks, and what is not written."""

import os

import numpy as np
import pytest

from sv3d_jax.cameras.pose import look_at
from sv3d_jax.errors import InputError, SV3DError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.images import write_png
from sv3d_jax.io.meshes import write_glb, write_obj, write_ply, write_usdz
from sv3d_jax.io.surfaces import FILE_FROM_WORLD, Source, to_uint8, world_from_file, y_up
from sv3d_jax.io.video import write_video


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


def bad_mesh(what: str, value: float) -> Mesh:
    """A textured triangle, one number of which is bad."""
    parts = {
        "vertices": np.eye(3),
        "vertex colours": np.full((3, 3), 0.5, np.float32),
        "texture coordinates": np.eye(3, 2),
        "rows of the texture": np.full((4, 4, 3), 0.5, np.float32),
        "vertex normals": np.eye(3),
    }
    parts[what] = parts[what].astype(np.float64)
    parts[what][-1, -1] = value
    vertices, colors, uv, texture, normals = parts.values()
    return Mesh(vertices, np.array([[0, 1, 2]], np.int32), colors, uv, texture, normals)


PARTS = ["vertices", "vertex normals", "vertex colours", "texture coordinates", "rows of the texture"]


@pytest.mark.parametrize("what", PARTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e300])
@pytest.mark.parametrize(
    "write", [write_glb, write_obj, write_ply, write_usdz], ids=lambda write: write.__name__
)
def test_meshes_that_are_not_finite_are_not_written(tmp_path, write, what, value):
    mesh = bad_mesh(what, value)
    with pytest.raises(
        SV3DError, match=rf"mesh.x is not written: {what} are not finite numbers: 1 of \d, the first"
    ):
        write(tmp_path / "mesh.x", mesh, mesh.normals)
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_written_from_8_bits_alone(tmp_path):
    floats = np.full((2, 8, 8, 3), np.nan, np.float32)
    with pytest.raises(SV3DError, match="rows of a picture are not finite"):
        to_uint8(floats)
    for write, name, array in ((write_png, "a.png", floats[0]), (write_video, "a.gif", floats)):
        with pytest.raises(InputError, match=f"{name}: .* from uint8, got float32"):
            write(tmp_path / name, array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("up", ["q", "Y", None, True])
def test_another_axis_than_y_or_z_is_refused(up):
    with pytest.raises(InputError, match="up must be y or z, got"):
        world_from_file(up)
