"""Whatever a parser raises becomes one error that names the file, what it should be, and what to do."""

import errno
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.errors import CameraError, CheckpointError, InputError, WeightsError
from sv3d_jax.io.documents import read_json
from sv3d_jax.io.environment import read_environment
from sv3d_jax.io.images import read_picture
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.io.reading import read_file, reading
from sv3d_jax.weights.source import open_weights

RAISED = [
    RecursionError("deep"),
    OverflowError("large"),
    StopIteration(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    RuntimeError("a codec"),
    TypeError("None"),
    AttributeError("x"),
    KeyError("x"),
    IndexError(3),
    ZeroDivisionError(),
    struct.error("short"),
    zlib.error("bad"),
    zipfile.BadZipFile("no"),
    SyntaxError("a chunk"),
    OSError("broken data stream"),  # as Pillow raises it, without a reason of the system
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", [InputError, WeightsError, CheckpointError])
def test_errors_of_parsers_become_ours(raised, kind):
    with pytest.raises(kind) as found, reading("a.x", "is no mesh", "export it again", kind):
        raise raised
    assert found.value.message == "a.x is no mesh"
    assert found.value.hint == "export it again"
    assert found.value.__cause__ is raised


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        KeyboardInterrupt(),
        SystemExit(3),
        CameraError("frames[2]"),
        RuntimeError("RESOURCE_EXHAUSTED: out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_say_more_pass(raised):
    with pytest.raises(type(raised)) as found, reading("a.x", "is no mesh"):
        raise raised
    assert found.value is raised


def test_errors_of_the_system_keep_their_reason(tmp_path):
    with (
        pytest.raises(InputError, match="a.x cannot be read: Input/output error"),
        reading("a.x", "is no mesh"),
    ):
        raise OSError(errno.EIO, "Input/output error")
    with (
        pytest.raises(InputError, match="absent.x does not exist"),
        reading(tmp_path / "absent.x", "is no mesh"),
    ):
        read_file(tmp_path / "absent.x", 10)
    with pytest.raises(InputError, match="is a folder, a file is needed"), reading(tmp_path, "is no mesh"):
        read_file(tmp_path, 10)


def test_files_are_read_up_to_a_size(tmp_path):
    (tmp_path / "a.x").write_bytes(b"0123456789")
    assert read_file(tmp_path / "a.x", 10) == b"0123456789"
    with pytest.raises(InputError, match="a.x has more than"):
        read_file(tmp_path / "a.x", 9)
    with pytest.raises(OSError, match="not a regular file"):  # endless, of size 0
        read_file("/dev/zero", 9)


@pytest.mark.parametrize(
    ("name", "read", "error"),
    [
        ("a.png", read_picture, InputError),
        ("a.glb", read_mesh, InputError),
        ("a.hdr", read_environment, InputError),
        ("a.json", read_json, InputError),
        ("a.safetensors", open_weights, WeightsError),
    ],
)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name, read, error):
    os.mkfifo(tmp_path / name)
    with pytest.raises(error, match=f"{name}.* not a regular file"):
        read(tmp_path / name)


def write_mesh(path):
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")


def write_grey(path):
    Image.fromarray(np.full((40, 40), 300, np.uint16)).save(path)


def write_sky(path):
    path.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n" + bytes([128, 64, 0, 129]))


@pytest.mark.parametrize(
    ("name", "write", "read", "computing"),
    [
        ("a.obj", write_mesh, read_mesh, "sv3d_jax.io.meshes.merge_parts"),
        ("a.png", write_grey, read_picture, "sv3d_jax.io.images._grey_8bit"),
        ("a.hdr", write_sky, read_environment, "sv3d_jax.io.hdr._radiance"),
    ],
)
def test_a_mistake_of_the_computing_is_not_told_as_a_damaged_file(
    name, write, read, computing, tmp_path, monkeypatch
):
    write(tmp_path / name)
    read(tmp_path / name)

    def mistaken(*_):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(computing, mistaken)
    with pytest.raises(ValueError, match="a mistake of ours"):
        read(tmp_path / name)
