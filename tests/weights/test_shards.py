"""Folders of several files: read as one, or refused with what is wrong."""

import json
import shutil

import numpy as np
import pytest

from sv3d_jax.errors import WeightsError
from sv3d_jax.weights import shards as module
from sv3d_jax.weights.hub import load_weights
from sv3d_jax.weights.safetensors_file import SafetensorsFile
from sv3d_jax.weights.shards import open_files
from sv3d_jax.weights.source import open_weights
from sv3d_jax.weights.svd import is_svd
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG
from tests.weights.files import write_tensors

INDEX = "model.safetensors.index.json"
FIRST, SECOND, THIRD = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tensors):
    """A checkpoint in three shards with its index."""
    folder = tmp_path_factory.mktemp("shards") / "sharded"
    folder.mkdir()
    names = list(tensors)
    shard_of = {name: (FIRST, SECOND, THIRD)[index % 3] for index, name in enumerate(names)}
    for shard in (FIRST, SECOND, THIRD):
        part = {name: tensors[name] for name in names if shard_of[name] == shard}
        write_tensors(folder / shard, part, {"format": "pt"})
    write_index(folder, shard_of)
    return folder


@pytest.fixture
def sharded(made, tmp_path):
    return shutil.copytree(made, tmp_path / "sharded")


def write_index(folder, shard_of):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shard_of}))


def read_index(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def assert_holds(source, tensors):
    assert source.tensors.keys() == tensors.keys()
    for name, tensor in zip(tensors, source.stream(list(tensors)), strict=True):
        np.testing.assert_array_equal(tensor, tensors[name])


@pytest.mark.parametrize("given", ["folder", "index"])
def test_shards_are_read_as_one(sharded, tensors, given):
    source = open_weights(sharded if given == "folder" else sharded / INDEX)
    assert_holds(source, tensors)
    assert source.metadata == {"format": "pt"}


def test_shards_without_an_index_are_read_if_all_are_there(sharded, tensors):
    (sharded / INDEX).unlink()
    assert_holds(open_weights(sharded), tensors)


def test_model_file_describes_shards(sharded):
    (sharded / "model.toml").write_text(CONFIG.to_toml())
    assert open_weights(sharded).config == CONFIG


@pytest.mark.parametrize("given", ["folder", "index"])
def test_shards_load_as_the_parameter_tree(sharded, given):
    (sharded / "model.toml").write_text(CONFIG.to_toml())
    params, _, info = load_weights(sharded if given == "folder" else sharded / INDEX)
    np.testing.assert_array_equal(
        params["unet"]["out_2"]["kernel"], reference_params(CONFIG, parts=["unet"])["unet"]["out_2"]["kernel"]
    )
    assert info["sha256"] == open_weights(sharded).sha256()


def test_fingerprint_is_of_every_shard(sharded):
    before = open_weights(sharded).sha256()
    with open(sharded / THIRD, "rb+") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert open_weights(sharded).sha256() != before


def test_shards_are_no_svd_by_their_names(sharded):
    assert not is_svd(sharded)


def refused(path, says):
    with pytest.raises(WeightsError, match=says) as caught:
        open_weights(path)
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize("has_index", [True, False])
def test_missing_shard_is_named(sharded, has_index):
    (sharded / SECOND).unlink()
    if not has_index:
        (sharded / INDEX).unlink()
    assert str(sharded) in refused(sharded, f"1 of 3 shards are missing, first {SECOND}").hint


def test_tensor_that_its_shard_lacks_is_named(sharded):
    name, other = "model.diffusion_model.out.2.bias", {FIRST: SECOND, SECOND: THIRD, THIRD: FIRST}
    shard_of = read_index(sharded)
    shard_of[name] = other[shard_of[name]]
    write_index(sharded, shard_of)
    refused(sharded, f"{name}' is in {shard_of[name]}, which does not hold it")


def test_tensor_in_two_shards_is_named(sharded):
    for shard in (FIRST, SECOND):
        file = SafetensorsFile(sharded / shard)
        both = {name: file.read(name) for name in file.tensors} | {"a.weight": np.zeros(1, np.float32)}
        write_tensors(sharded / shard, both)
    refused(sharded, f"'a.weight' is in {FIRST} and in {SECOND}")


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00003.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "..",
        "",
        "x.bin",
    ],
)
def test_index_that_names_no_file_beside_it_is_refused(sharded, name):
    shutil.copy(sharded / FIRST, sharded.parent / FIRST)  # that it would be there is no excuse
    write_index(sharded, {"a": name})
    refused(sharded, "which is no .safetensors file beside it")


BAD_INDEXES = {
    "cut": ('{"weight_map": {', "is not JSON that can be read"),
    "a list": ("[]", "no weight_map"),
    "no map": ("{}", "no weight_map"),
    "an empty map": ('{"weight_map": {}}', "no weight_map"),
    "numbers": ('{"weight_map": {"a": 1}}', "no weight_map"),
    "double": (f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}', "'a' twice"),
    "not text": ("\udcff", "is not JSON that can be read"),
    "deep": ("[" * 100_000, "is not JSON that can be read"),
    "an endless number": ('{"a": ' + "9" * 10_000 + "}", "is not JSON that can be read"),
}


@pytest.mark.parametrize("kind", BAD_INDEXES)
def test_damaged_index_is_refused_by_its_name(sharded, kind):
    text, says = BAD_INDEXES[kind]
    (sharded / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(sharded / INDEX, says)


def test_two_indexes_are_named(sharded):
    shutil.copy(sharded / INDEX, sharded / "model.fp16.safetensors.index.json")
    refused(sharded, f"2 indexes: model.fp16.safetensors.index.json, {INDEX}")


def test_shards_of_two_weights_are_named(sharded, tensors):
    (sharded / INDEX).unlink()
    write_tensors(sharded / "other-00001-of-00002.safetensors", {"a": np.zeros(1, np.float32)})
    refused(sharded, "shards of several weights: model of 00003, other of 00002")


def test_one_shard_alone_is_answered_with_its_folder(sharded):
    assert str(sharded) in refused(sharded / SECOND, "is one of 3 shards").hint


def test_a_shard_of_one_is_a_file(tmp_path, tensors):
    path = write_tensors(tmp_path / "model-00001-of-00001.safetensors", tensors)
    assert_holds(open_weights(path), tensors)
    assert_holds(open_weights(tmp_path), tensors)


def test_number_of_shards_beyond_reason_is_refused(tmp_path):
    write_tensors(tmp_path / "model-1-of-999999999999.safetensors", {"a": np.zeros(1, np.float32)})
    refused(tmp_path, "one of 999999999999 shards")


def test_folder_of_a_single_file_is_answered_with_the_file(tmp_path, tensors):
    path = write_tensors(tmp_path / "sv3d.safetensors", tensors)
    assert str(path) in refused(tmp_path, "holds 'sv3d.safetensors' without model.toml or an index").hint


def test_diffusers_folder_is_called_one(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    refused(tmp_path, "is a diffusers folder")


def test_empty_folder_has_no_files(tmp_path):
    assert open_files(tmp_path) is None


def test_more_tensors_than_a_model_has_are_refused_over_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_TENSORS", 3)
    for number in (1, 2):
        tensors = {f"t{number}{n}": np.zeros(1, np.float32) for n in range(2)}
        write_tensors(tmp_path / f"model-0000{number}-of-00002.safetensors", tensors)
    with pytest.raises(WeightsError, match="more than 3 tensors"):
        module.open_files(tmp_path)
