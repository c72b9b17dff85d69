"""Runs are functions of their settings: cut short anywhere, they end with the same bits."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from filelock import FileLock

from sv3d_jax.errors import CheckpointError, InputError, OutputError, Preempted, SV3DError
from sv3d_jax.train import checkpoints, loop
from sv3d_jax.train.checkpoints import Checkpoints, checkpoint_steps, read_checkpoint
from tests.train.tiny_run import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, save_every=3)
    return folder


def final_arrays(folder, output="run", step=6):
    return read_checkpoint(folder / output / "checkpoints", step)[0]


def metrics(folder, output="run"):
    return [json.loads(line) for line in (folder / output / "metrics.jsonl").read_text().splitlines()]


def stop_after(monkeypatch, step, number=signal.SIGTERM):
    """Make the process send itself a signal at the end of a step's data."""
    original = loop.make_objective

    def stopping(config, progress):
        objective = original(config, progress)

        def batches(first, rows):
            for index, batch in enumerate(objective.batches(first, rows), first):
                if index == step - 1:
                    os.kill(os.getpid(), number)
                yield batch

        return objective._replace(batches=batches)

    monkeypatch.setattr(loop, "make_objective", stopping)


def test_same_settings_give_the_same_bits(whole):
    train(whole, "again", save_every=3)
    first, second = final_arrays(whole), final_arrays(whole, "again")
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_sigterm_saves_and_the_resumed_run_ends_with_the_same_bits(whole, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Preempted) as stopped:
            train(whole, "cut")
    assert stopped.value.exit_code == 75
    assert checkpoint_steps(whole / "cut" / "checkpoints") == [2]
    train(whole, "cut")
    expected, resumed = final_arrays(whole), final_arrays(whole, "cut")
    assert all(np.array_equal(expected[name], resumed[name]) for name in expected)
    assert [m["step"] for m in metrics(whole, "cut")] == [m["step"] for m in metrics(whole)]


def flip_bit(path):
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(whole, damage):
    output = damage.__name__
    train(whole, output, save_every=3)
    newest = whole / output / "checkpoints" / "6" / "state"
    damage(max(newest.rglob("*"), key=lambda path: path.stat().st_size))
    train(whole, output, save_every=3)
    expected, resumed = final_arrays(whole), final_arrays(whole, output)
    assert all(np.array_equal(expected[name], resumed[name]) for name in expected)


def test_a_checkpoint_of_another_precision_is_refused_unless_cast(whole):
    with Checkpoints(whole / "run" / "checkpoints", read_only=True) as checkpoints:
        arrays, settings = checkpoints.read(6)
        shapes = {
            name: jax.ShapeDtypeStruct(
                leaf.shape,
                "bfloat16" if leaf.dtype == np.float32 else leaf.dtype,
                sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
            )
            for name, leaf in arrays.items()
        }
        with pytest.raises(CheckpointError, match="as float32, this run has bfloat16"):
            checkpoints.restore(6, shapes, settings)
        cast = checkpoints.restore(6, shapes, settings, cast=True)
    name = "params/image_tower/conv1/kernel"
    np.testing.assert_allclose(np.asarray(cast[name], np.float32), arrays[name], rtol=2**-8)


def test_a_second_run_on_a_folder_ends_and_names_the_first(whole):
    with FileLock(whole / "run" / ".lock"), pytest.raises(OutputError, match="in use by process") as ended:
        train(whole, save_every=3)
    assert ended.value.exit_code == 5


def test_two_checkpoints_are_kept(whole):
    train(whole, "many", save_every=1)
    assert checkpoint_steps(whole / "many" / "checkpoints") == [5, 6]


def test_the_first_steps_are_logged_one_by_one(whole):
    assert [m["step"] for m in metrics(whole) if "loss" in m] == [1, 2, 3, 4, 5, 6]


def test_other_settings_in_the_same_folder_are_refused(whole):
    with pytest.raises((InputError, CheckpointError), match="other settings"):
        train(whole, batch_size=3)


def test_orbits_of_other_settings_are_refused(whole):
    with pytest.raises(InputError, match="size"):
        train(whole, "other", data={"objects": 4, "size": 64, "num_frames": 5})


def test_a_save_that_fails_is_tried_again(whole, monkeypatch):
    free = iter([0, 0])
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: next(free, 2**40))
    train(whole, "full", save_every=2)
    assert checkpoint_steps(whole / "full" / "checkpoints") == [6]


def test_a_run_that_cannot_save_ends_with_the_error(whole, monkeypatch):
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: 0)
    with pytest.raises(OutputError) as failed:
        train(whole, "never", save_every=1)
    assert failed.value.exit_code == 5
    assert metrics(whole, "never")[-1]["step"] == 3


def test_dry_run_counts_parameters_and_writes_nothing(tmp_path):
    report = train(tmp_path, dry_run=True)
    assert report["parameters"] > 0 and report["steps"] == 6
    assert not (tmp_path / "run").exists()


def test_five_steps_in_a_row_that_are_not_finite_end_the_run(whole, monkeypatch):
    original = loop.make_objective

    def broken(config, progress):
        objective = original(config, progress)
        return objective._replace(loss=lambda *args: objective.loss(*args) * np.nan)

    monkeypatch.setattr(loop, "make_objective", broken)
    with pytest.raises(SV3DError, match="5 steps in a row, up to step 5"):
        train(whole, "nan")
    report = json.loads((whole / "nan" / "not_finite.json").read_text())
    assert (report["step"], report["batch_index"]) == (5, 4) and report["norms"]["gradient"]
    assert not checkpoint_steps(whole / "nan" / "checkpoints")
