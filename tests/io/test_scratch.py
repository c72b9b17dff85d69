"""Arrays kept for a later start: whole, or thrown away."""

import builtins
import errno
import io
import os

import numpy as np
import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io.scratch import read_arrays, write_arrays

ARRAYS = {"x": np.arange(60.0).reshape(3, 20), "text": np.asarray("a text")}


def test_arrays_come_back_by_name(tmp_path):
    write_arrays(tmp_path / "a.npz", ARRAYS)
    back = read_arrays(tmp_path / "a.npz")
    assert list(back) == ["x", "text"] and str(back["text"]) == "a text"
    np.testing.assert_array_equal(back["x"], ARRAYS["x"])


def test_an_absent_file_holds_nothing(tmp_path):
    assert read_arrays(tmp_path / "a.npz") is None


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:100],
        lambda data: b"",
        lambda data: flipped(data, 300),  # among the numbers
        lambda data: flipped(data, 100),  # in the header that says their shape
        lambda data: data.replace(b"(3, 20)", b"(3, 99)"),
        lambda data: data.replace(b"(3, 20)", b"(9**9)*"),
        lambda data: b"\x93NUMPY" + data,
    ],
)
def test_a_damaged_file_is_thrown_away(tmp_path, damage):
    write_arrays(tmp_path / "a.npz", ARRAYS)
    data = damage((tmp_path / "a.npz").read_bytes())
    (tmp_path / "a.npz").write_bytes(data)
    assert read_arrays(tmp_path / "a.npz") is None
    assert not (tmp_path / "a.npz").exists()


def test_a_file_of_compressed_parts_is_thrown_away(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10_000))  # such a file could expand to any size
    assert read_arrays(tmp_path / "a.npz") is None
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_file_that_the_system_does_not_give_out_now_is_kept(number, tmp_path, monkeypatch):
    write_arrays(tmp_path / "a.npz", ARRAYS)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        for module in (builtins, io):
            patch.setattr(module, "open", refuse)
        with pytest.raises(InputError, match=rf"a\.npz cannot be read: .*{os.strerror(number)}"):
            read_arrays(tmp_path / "a.npz")
    assert list(read_arrays(tmp_path / "a.npz")) == ["x", "text"]
