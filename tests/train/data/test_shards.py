"""Batches of packed orbits: the same for any process, worker and start, and what damaged data do."""

import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io import documents
from sv3d_jax.progress import NullProgress
from sv3d_jax.train.data import records
from sv3d_jax.train.data import shards as module
from sv3d_jax.train.data.records import read_index, write_shard
from sv3d_jax.train.data.shards import OrbitShards, ShardBatches, ShardSampler, check_encoder, epoch_order
from tests.soak import ROOT, running_in_session
from tests.train.data.packed import flip_byte_of_record, numbered_record, write_shards

VIEWS, NUM_FRAMES, BATCH, FRAMES = 20, 5, 4, 3


def every_row(count: int) -> slice:
    """Every row of a global batch."""
    return slice(count)


def first_half(count: int) -> slice:
    return slice(count // 2)


def last_half(count: int) -> slice:
    return slice(count // 2, count)


def shape(step: int) -> tuple[int, int]:
    return BATCH, FRAMES


def source(folder, workers=0, progress=None, **options) -> ShardBatches:
    values = {"num_frames": NUM_FRAMES, "batch_size": BATCH, "seed": 0, **options}
    return ShardBatches(ShardSampler(OrbitShards(folder), shape, **values), workers, progress)


def take(batches, count):
    taken = [next(batches)[1] for _ in range(count)]
    batches.close()
    return taken


def equal(first, second) -> bool:
    return all(
        np.array_equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Ten records in three shards, the last two for validation."""
    folder = tmp_path_factory.mktemp("packed")
    write_shards(folder, [numbered_record(n, VIEWS) for n in range(10)], held_out=2)
    return folder


@pytest.fixture
def own(tmp_path):
    """The same to be damaged; none is held out."""
    write_shards(tmp_path, [numbered_record(n, VIEWS) for n in range(10)])
    return tmp_path


def test_a_batch_depends_on_its_step_alone(packed):
    whole = take(source(packed).batches(0, every_row), 6)
    assert equal(take(source(packed).batches(4, every_row), 2), whole[4:])
    assert not equal(whole[:1], whole[1:2])
    assert not equal(take(source(packed, seed=1).batches(0, every_row), 1), whole[:1])


def test_rows_of_two_processes_are_those_of_one(packed):
    whole = take(source(packed).batches(3, every_row), 3)
    halves = [take(source(packed).batches(3, rows), 3) for rows in (first_half, last_half)]
    joined = [
        jax.tree.map(lambda *leaves: np.concatenate(leaves), one, other)
        for one, other in zip(*halves, strict=True)
    ]
    assert equal(joined, whole)


def test_worker_processes_give_the_same_batches(packed):
    threads = take(source(packed).batches(2, every_row), 3)
    workers = [
        jax.tree.map(np.array, batch)  # the next one may lie in the same memory
        for batch in take(source(packed, workers=2).batches(2, every_row), 3)
    ]
    assert equal(workers, threads)


READ_ON = """
import sys
from pathlib import Path
from tests.train.data.test_shards import every_row, source
if __name__ == "__main__":
    batches = source(Path(sys.argv[1]), workers=2).batches(0, every_row)
    next(batches)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_worker_processes_end_when_their_parent_is_killed(packed, tmp_path):
    (tmp_path / "read_on.py").write_text(READ_ON)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "read_on.py", packed],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    assert sum("spawn_main" in words for words in running_in_session(process.pid)) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while running_in_session(process.pid):
        assert time.monotonic() < deadline, "worker processes are left"
        time.sleep(0.05)


def test_samples_are_every_fourth_view_from_any_start_and_hold_their_input_last(packed):
    views = set()
    for batch in take(source(packed).batches(0, every_row), 30):
        names = batch.latents[..., 0, 0, 0]
        number, view = np.divmod(np.round(names * 100).astype(int), 100)
        assert np.all(number == number[:, :1])
        assert np.all((view - view[:, -1:]) % (VIEWS // NUM_FRAMES) == 0)
        np.testing.assert_allclose(
            (view - view[:, -1:]) % VIEWS * 360 / VIEWS, np.rad2deg(batch.azimuth_rad), atol=1e-3
        )
        np.testing.assert_array_equal(batch.latents[:, -1], batch.input_latents)
        np.testing.assert_array_equal(batch.tokens[:, 0], names[:, -1])
        assert np.all(batch.frame_index[:, -1] == NUM_FRAMES - 1)
        views |= set(view[:, -1])
    assert views == set(range(VIEWS))


def test_every_epoch_sees_each_record_once_and_none_that_validates(packed):
    batches = take(source(packed).batches(0, every_row), 4)  # two epochs of eight
    seen = np.concatenate([batch.latents[:, 0, 0, 0, 0] for batch in batches]).astype(int)
    assert sorted(seen[:8]) == sorted(seen[8:]) == list(range(8))
    assert not np.array_equal(epoch_order(8, 0, 0), epoch_order(8, 0, 1))


def test_validation_takes_whole_orbits_of_the_records_held_out(packed):
    batch = source(packed).validation()
    assert batch.latents.shape[:2] == (2, NUM_FRAMES)
    np.testing.assert_allclose(
        batch.latents[:, :, 0, 0, 0], [[n + v / 100 for v in (0, 4, 8, 12, 16)] for n in (8, 9)], rtol=1e-6
    )
    np.testing.assert_allclose(batch.azimuth_rad[0, -1], 0.0)


def test_a_damaged_record_is_named_counted_and_replaced_the_same_way_by_all(own):
    expected = take(source(own).batches(0, every_row), 5)
    flip_byte_of_record(own, 6, VIEWS)
    said = []
    progress = NullProgress()
    progress.note = said.append
    damaged = source(own, progress=progress)
    batches = take(damaged.batches(0, every_row), 5)
    report = damaged.report()
    assert report["damaged_records"] == ["object6 white"] and report["records_skipped"] == 2
    assert len(said) == 1 and "orbits-00001.arrayrecord record 2 (object6 white)" in said[0]
    for before, after in zip(expected, batches, strict=True):
        was_damaged = before.latents[:, 0, 0, 0, 0].astype(int) == 6
        assert not np.any(after.latents[:, 0, 0, 0, 0].astype(int) == 6)
        assert np.array_equal(before.latents[~was_damaged], after.latents[~was_damaged])
    halves = [take(source(own).batches(0, rows), 5) for rows in (first_half, last_half)]
    joined = [np.concatenate([one.latents, other.latents]) for one, other in zip(*halves, strict=True)]
    assert all(np.array_equal(a, b.latents) for a, b in zip(joined, batches, strict=True))


def test_more_than_one_percent_of_damaged_records_end_the_run(own):
    flip_byte_of_record(own, 6, VIEWS)
    with pytest.raises(InputError, match=r"[67] of \d+ records .* damaged, more than 1%.*object6 white"):
        take(source(own).batches(0, every_row), 100)


def test_fewer_than_one_percent_do_not(own, monkeypatch):
    flip_byte_of_record(own, 6, VIEWS)
    monkeypatch.setattr(module, "MAX_DAMAGED_SHARE", 0.2)
    assert len(take(source(own).batches(0, every_row), 40)) == 40


def test_a_run_of_damaged_records_only_ends_with_the_error(own, monkeypatch):
    for number in range(10):
        flip_byte_of_record(own, number, VIEWS)
    with pytest.raises(InputError, match="damaged"):
        take(source(own).batches(0, every_row), 1)


def test_a_truncated_shard_is_refused_by_name(own):
    file = own / "orbits-00001.arrayrecord"
    file.write_bytes(file.read_bytes()[:70_000])
    with pytest.raises(InputError, match=r"orbits-00001\.arrayrecord has 70000 bytes"):
        OrbitShards(own)


def test_a_missing_shard_is_refused_by_name(own):
    (own / "orbits-00002.arrayrecord").unlink()
    with pytest.raises(InputError, match=r"orbits-00002\.arrayrecord is missing"):
        OrbitShards(own)


def test_records_exchanged_for_others_are_damaged(own, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_shards(other, [numbered_record(n + 1, VIEWS) for n in range(10)])
    for file in other.glob("*.arrayrecord"):
        (own / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="checksum differs|damaged"):
        take(source(own).batches(0, every_row), 3)


def test_other_records_have_another_fingerprint(packed, own, tmp_path_factory):
    again = tmp_path_factory.mktemp("again")
    write_shards(again, [numbered_record(n, VIEWS) for n in range(10)])
    assert source(again).fingerprint == source(own).fingerprint
    assert source(packed).fingerprint != source(own).fingerprint  # two of them validate


def test_an_index_that_was_edited_is_refused(own):
    path = own / "index.json"
    path.write_text(path.read_text().replace("object3 white", "object4 white", 1))
    with pytest.raises(InputError, match="fingerprint differs"):
        read_index(own)


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "9" * 10_000], ids=["empty", "deep", "an endless number"]
)
def test_an_index_that_is_no_json_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError) as error:
        read_index(tmp_path)
    assert error.value.message.startswith(f"{tmp_path / 'index.json'} is not JSON that can be read")


def edited(folder, change):
    """Change the content of an index that its fingerprint does not cover."""
    document = json.loads((folder / "index.json").read_text())
    change(document)
    (folder / "index.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["shards"][0].update(file="../orbits-00000.arrayrecord"),
        lambda document: document["shards"][0].update(file=3),
        lambda document: document["shards"][0].update(records=-4),
        lambda document: document["shards"][0].update(bytes="many"),
        lambda document: document["shards"][0].pop("sha256"),
        lambda document: document["shards"].append([1]),
        lambda document: document.update(shards=None),
        lambda document: document.update(latent_shape=[2, "2", 4]),
        lambda document: document.pop("fingerprint"),
        lambda document: document["records"].append({"name": "x"}),
    ],
)
def test_an_index_of_another_shape_is_refused_by_its_name(own, change):
    edited(own, change)
    with pytest.raises(InputError, match=r"index\.json is damaged"):
        read_index(own)


def test_views_that_do_not_divide_are_refused(packed):
    with pytest.raises(InputError, match="20 views, which is not a multiple of data.num_frames 7"):
        source(packed, num_frames=7)


def test_shards_of_other_weights_are_refused(packed):
    with pytest.raises(InputError, match="encoded with other weights"):
        check_encoder(OrbitShards(packed), "another")


def test_a_missing_extra_names_its_install_line(packed, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "grain", None)
    with pytest.raises(InputError) as error:
        OrbitShards(packed)
    assert error.value.hint == 'pip install "sv3d_jax[data]"'


def test_a_link_that_stands_where_a_shard_is_written_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "a.arrayrecord.tmp").symlink_to("elsewhere")
    write_shard(tmp_path / "a.arrayrecord", [b"record"])
    assert (tmp_path / "elsewhere").read_text() == "kept" and (
        tmp_path / "a.arrayrecord"
    ).stat().st_size > 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.arrayrecord", "elsewhere"]


def test_an_index_may_be_larger_than_other_files(tmp_path, monkeypatch):
    """Ten million records are more than a hundred megabytes."""
    write_shards(tmp_path, [numbered_record(number, 5) for number in range(3)], per_shard=2)
    per_record = (tmp_path / "index.json").stat().st_size / 3
    assert documents.MAX_JSON_BYTES < 10_000_000 * per_record < records.MAX_INDEX_BYTES
    monkeypatch.setattr(records, "MAX_INDEX_BYTES", 20)
    with pytest.raises(InputError, match=r"index\.json has more than"):
        read_index(tmp_path)
