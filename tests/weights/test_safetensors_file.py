import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sv3d_jax.errors import WeightsError
from sv3d_jax.weights import safetensors_file as module
from sv3d_jax.weights.safetensors_file import SafetensorsFile, TensorInfo, refuse_pickle, write_safetensors
from tests.weights.files import raw_file, write_tensors

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = bytes(8)


def test_written_files_read_back_in_the_safetensors_library(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.float16([1.5, -2]),
        "c": np.int64(7),
    }
    loaded = safetensors.numpy.load_file(
        write_tensors(tmp_path / "x.safetensors", {name: np.asarray(t) for name, t in tensors.items()})
    )
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)


def test_files_of_the_safetensors_library_read_here(tmp_path):
    tensors = {
        "half": np.float16([[1, 2, 3]]),
        "brain": np.array([0.5, 3], ml_dtypes.bfloat16),
        "scalar": np.asarray(4, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
        "double": np.array([0.1, 2.0]),
        "long": np.array([1, 2**40]),
    }
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = file.read(name)
        assert (read.dtype, read.shape, read.tobytes()) == (tensor.dtype, tensor.shape, tensor.tobytes())


def test_file_is_not_mapped_into_memory(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {"a": np.ones(4, np.float32)})
    array = SafetensorsFile(path).read("a")
    path.write_bytes(bytes(path.stat().st_size))
    np.testing.assert_array_equal(array, 1)


def test_tensor_other_than_announced_is_not_written(tmp_path):
    infos = {"a": TensorInfo(np.dtype(np.float32), (2,))}
    with pytest.raises(ValueError, match="announced"):
        write_safetensors(tmp_path / "x.safetensors", infos, [np.zeros(3, np.float32)], {})


def overlapping() -> dict:
    return {"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}


BAD_FILES = {
    "empty": (b"", "not even a header"),
    "a few bytes": (b"\x10\0\0", "not even a header"),
    "header cut": (raw_file({"a": ONE}, DATA)[:20], "its header needs"),
    "data cut": (raw_file({"a": ONE}, DATA)[:-3], "is truncated: expected .* bytes, got"),
    "trailing bytes": (raw_file({"a": ONE}, DATA + b"xy"), "after its last tensor"),
    "overlap": (raw_file(overlapping(), bytes(12)), "'b' overlaps"),
    "same place": (raw_file({"a": ONE, "b": ONE}, DATA), "'b' overlaps"),
    "hole": (raw_file({"a": ONE, "b": {**ONE, "data_offsets": [16, 24]}}, bytes(24)), "'b' leaves a hole"),
    "late start": (raw_file({"a": {**ONE, "data_offsets": [4, 12]}}, bytes(12)), "'a' leaves a hole"),
    "backward offsets": (raw_file({"a": {**ONE, "data_offsets": [8, 0]}}, DATA), "its offsets give -8"),
    "negative offset": (raw_file({"a": {**ONE, "data_offsets": [-8, 0]}}, DATA), "not a count"),
    "fractional offset": (raw_file({"a": {**ONE, "data_offsets": [0, 8.0]}}, DATA), "not a count"),
    "boolean shape": (raw_file({"a": {**ONE, "shape": [True]}}, DATA), "not a count"),
    "one offset": (raw_file({"a": {**ONE, "data_offsets": [0]}}, DATA), "two offsets"),
    "no dtype": (raw_file({"a": {"shape": [2], "data_offsets": [0, 8]}}, DATA), "lacks a dtype"),
    "wrong size": (raw_file({"a": {**ONE, "shape": [3]}}, DATA), "needs 12 bytes"),
    "overflow": (
        raw_file({"a": {**ONE, "shape": [2**33, 2**33]}}, DATA),
        "needs 295147905179352825856 bytes",
    ),
    "unknown dtype": (raw_file({"a": {**ONE, "dtype": "F128"}}, DATA), "unknown dtype 'F128'"),
    "huge header": ((10**8 + 1).to_bytes(8, "little") + b"{", "the format allows 100000000"),
    "not JSON": (raw_file(b"{this is not JSON}"), "not JSON"),
    "not text": (raw_file(b"{\xff\xfe}"), "not JSON"),
    "deep JSON": (raw_file(b'{"a":' + b"[" * 100_000), "its header is not JSON that can be read"),
    "endless number": (raw_file(b'{"a":' + b"9" * 10_000 + b"}"), "its header is not JSON that can be read"),
    "a list": (raw_file([1, 2]), "not a table"),
    "entry is no table": (raw_file({"a": 3}), "lacks a dtype"),
    "metadata of numbers": (raw_file({"__metadata__": {"a": 1}}), "not a table of strings"),
    "double name": (
        raw_file(f'{{"a":{json.dumps(ONE)},"a":{json.dumps(ONE)}}}'.encode(), DATA),
        "names 'a' twice",
    ),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n",
        "Git LFS pointer",
    ),
    "login page": (b"\n<!DOCTYPE html>\n<html><head><title>Log in</title>", "web page"),
    "server's answer": (b'{"error": "Access to model is restricted"}', "JSON text"),
    "picture": (b"\xff\xd8\xff\xe0" + bytes(100), "is a JPEG picture, not a file of weights"),
    "archive": (b"\x1f\x8b\x08" + bytes(100), "is a gzip archive, not a file of weights"),
    "zip of torch": (b"PK\x03\x04" + bytes(100), "zip archive"),
    "pickle": (b"\x80\x02}q\x00(X\x05\x00\x00\x00state", "Python pickle"),
}


@pytest.mark.parametrize("content, says", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_refused_by_its_fault_and_name(tmp_path, content, says):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=says) as caught:
        SafetensorsFile(path)
    assert str(path) in caught.value.message


def test_a_header_whose_length_reads_as_the_mark_of_an_archive_is_read(tmp_path):
    header = b"{}".ljust(int.from_bytes(b"\x1f\x8b", "little"))
    (tmp_path / "x.safetensors").write_bytes(raw_file(header))
    assert SafetensorsFile(tmp_path / "x.safetensors").tensors == {}


@pytest.mark.parametrize("fault", ["data cut", "trailing bytes", "header cut", "overlap", "not JSON"])
def test_damage_in_transfer_is_answered_with_download_again(tmp_path, fault):
    path = tmp_path / "model.safetensors"
    path.write_bytes(BAD_FILES[fault][0])
    with pytest.raises(WeightsError) as caught:
        SafetensorsFile(path)
    assert "download it again" in caught.value.hint


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl", ".PTH"])
def test_pickle_is_refused_by_suffix_with_advice(tmp_path, suffix):
    with pytest.raises(WeightsError, match="pickle") as caught:
        refuse_pickle(tmp_path / f"model{suffix}")
    assert "safetensors" in caught.value.hint


def test_file_that_shrinks_while_read_is_noticed(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {"a": np.ones(400, np.float32)})
    file = SafetensorsFile(path)
    with open(path, "rb+") as open_file:
        open_file.truncate(500)
    with pytest.raises(WeightsError, match="ended while a was read"):
        file.read("a")


def test_a_header_of_too_many_tensors_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_TENSORS", 9)
    monkeypatch.setattr(SafetensorsFile, "_entry", lambda *_: pytest.fail("an entry is read"))
    safetensors.numpy.save_file(
        {f"t{n}": np.zeros(0, np.float32) for n in range(10)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(WeightsError, match="names 10 tensors, more than 9"):
        SafetensorsFile(tmp_path / "a.safetensors")


def test_a_header_of_too_many_bytes_is_refused_unread(tmp_path):
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write((module.MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(2 * module.MAX_HEADER_BYTES)
    with pytest.raises(WeightsError, match="header would be 25000001 bytes long"):
        SafetensorsFile(tmp_path / "a.safetensors")
