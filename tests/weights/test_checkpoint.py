import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from sv3d_jax.errors import WeightsError
from sv3d_jax.weights import checkpoint
from sv3d_jax.weights.checkpoint import SavedTree, save_leaves

LEAVES = [
    (("a", "kernel"), np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)),
    (("a", "bias"), np.arange(50, dtype=np.float16)),
    (("b", "layer_0", "kernel"), np.random.default_rng(1).normal(size=(3, 7)).astype(ml_dtypes.bfloat16)),
    (("b", "mix_factor"), np.float32([-0.5])),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint") / "saved"
    save_leaves(directory, iter(LEAVES))
    return directory


def assert_same(read, leaves):
    for found, (_, leaf) in zip(read, leaves, strict=True):
        assert (found.dtype, found.shape, found.tobytes()) == (leaf.dtype, leaf.shape, leaf.tobytes())


def test_leaves_come_back_bit_for_bit_in_the_order_asked(saved):
    backwards = LEAVES[::-1]
    assert_same(SavedTree(saved).read(path for path, _ in backwards), backwards)


def test_relative_path_is_read(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert_same(SavedTree(Path(saved.name)).read(path for path, _ in LEAVES), LEAVES)


def test_types_and_shapes_are_known_without_reading(saved):
    found = {path: (info.dtype, info.shape) for path, info in SavedTree(saved).leaves.items()}
    assert found == {path: (leaf.dtype, leaf.shape) for path, leaf in LEAVES}


def test_many_small_batches_hold_the_same_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_BATCH_BYTES", 100)
    save_leaves(tmp_path / "saved", iter(LEAVES))
    assert_same(SavedTree(tmp_path / "saved").read(path for path, _ in LEAVES), LEAVES)


def test_plain_orbax_reads_the_checkpoint(saved):
    tree = ocp.load(saved)
    np.testing.assert_array_equal(tree["b"]["layer_0"]["kernel"], LEAVES[2][1])


def test_transposed_leaf_keeps_its_values(tmp_path):
    leaf = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save_leaves(tmp_path / "saved", [(("a",), leaf)])
    np.testing.assert_array_equal(next(SavedTree(tmp_path / "saved").read([("a",)])), leaf)


@pytest.mark.parametrize("place", np.linspace(0.02, 0.98, 7))
def test_changed_byte_never_passes_for_a_weight(saved, tmp_path, place):
    copy = shutil.copytree(saved, tmp_path / "copy")
    file = max((path for path in copy.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)
    try:
        assert_same(SavedTree(copy).read(path for path, _ in LEAVES), LEAVES)
    except WeightsError as error:
        assert str(copy) in error.message


def test_leaf_that_differs_from_its_checksum_is_named(saved):
    tree = SavedTree(saved)
    tree.checksums["a/bias"] ^= 1
    with pytest.raises(WeightsError, match="a/bias has changed"):
        next(tree.read([("a", "bias")]))


@pytest.mark.parametrize("spoil", ["empty", "no data", "no metadata"])
def test_folder_that_is_no_whole_checkpoint_is_refused(saved, tmp_path, spoil):
    copy = shutil.copytree(saved, tmp_path / "copy")
    for file in [file for file in copy.rglob("*") if file.is_file()]:
        if spoil == "empty" or (spoil == "no data") == (file.parent.name == "d"):
            file.unlink()
    with pytest.raises(WeightsError, match="cannot be read as an Orbax checkpoint"):
        list(SavedTree(copy).read(path for path, _ in LEAVES))


def test_too_little_memory_is_no_fault_of_the_checkpoint(saved, monkeypatch):
    def load(*_):
        raise MemoryError

    tree = SavedTree(saved)
    monkeypatch.setattr(ocp, "load", load)
    with pytest.raises(MemoryError):
        next(tree.read([("a", "bias")]))
    monkeypatch.setattr(ocp, "metadata", load)
    with pytest.raises(MemoryError):
        _ = SavedTree(saved).leaves


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state/_METADATA"])
def test_lists_of_leaves_that_are_too_long_are_refused_unread(saved, tmp_path, monkeypatch, name):
    copied = shutil.copytree(saved, tmp_path / "saved")
    size = (copied / name).stat().st_size
    monkeypatch.setattr(checkpoint, "MAX_HEADER_BYTES", size - 1)
    (copied / ("state/_METADATA" if name[0] == "_" else "_CHECKPOINT_METADATA")).write_text("{}")
    monkeypatch.setattr(ocp, "metadata", lambda *_: pytest.fail("the lists are read"))
    with pytest.raises(WeightsError, match=f"{name} has {size} bytes, up to {size - 1} are read"):
        SavedTree(copied)
