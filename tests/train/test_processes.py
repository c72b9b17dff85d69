"""Real command lines: runs that are killed, and runs of two processes."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sv3d_jax.train.checkpoints import checkpoint_steps, read_checkpoint
from tests.test_imports import ROOT
from tests.tiny_model import COMPILE_QUICKLY
from tests.train.tiny_run import write_tiny_recipe

STEPS = 24
KILLS = 20
DEADLINE_S = 300
HALF_WRITTEN = "*.orbax-checkpoint-tmp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Settings of a small run, its rendered orbits and its compiled programs, shared by all runs of this file."""
    folder = tmp_path_factory.mktemp("processes")
    write_tiny_recipe(folder, STEPS)
    return folder


def start(folder: Path, output: str, *flags: str, devices: int = 1, peers: tuple[str, ...] = ()):
    """Begin `sv3d train`; peers: where the processes meet, how many they are, and which this one is."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    environment = (
        os.environ
        | COMPILE_QUICKLY
        | dict(zip(names, peers, strict=False))
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
    )
    command = [sys.executable, "-m", "sv3d_jax", "train", "--config", str(folder / "train.toml")]
    return subprocess.Popen(
        [*command, "-o", str(folder / output), "--json", *flags],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_pair(folder: Path, output: str, *flags: str):
    """Two processes with two devices each."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    return [start(folder, output, *flags, devices=2, peers=(address, "2", str(index))) for index in range(2)]


def finish(*processes, code: int = 0) -> str:
    """Wait for the ends; what the first one printed."""
    outputs = [process.communicate(timeout=DEADLINE_S) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == code, errors[-3000:]
    return outputs[0][0]


def wait_for_step(folder: Path, output: str, step: int, process) -> None:
    """Return when a step has been logged."""
    log = folder / output / "metrics.jsonl"
    deadline = time.monotonic() + DEADLINE_S
    while not log.exists() or len(log.read_text().splitlines()) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop_in_save(checkpoints: Path, process) -> None:
    """Return when the process stands still with a save half written."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        if any(checkpoints.glob(HALF_WRITTEN)):
            process.send_signal(signal.SIGSTOP)
            if any(checkpoints.glob(HALF_WRITTEN)):
                return
            process.send_signal(signal.SIGCONT)


def forget_end(folder: Path, output: str) -> int:
    """Take a run's last checkpoints where it is almost done, and what it logged after those left; their last step."""
    checkpoints = folder / output / "checkpoints"
    steps = checkpoint_steps(checkpoints)
    if steps and steps[-1] > STEPS - 6:
        shutil.rmtree(checkpoints)
        steps = []
    begun = steps[-1] if steps else 0
    log = folder / output / "metrics.jsonl"
    if log.exists():
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:begun]))
    return begun


def losses(folder: Path, output: str) -> list[float]:
    lines = map(json.loads, (folder / output / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def arrays(folder: Path, output: str) -> dict[str, np.ndarray]:
    return read_checkpoint(folder / output / "checkpoints", STEPS)[0]


def assert_close(first: dict, second: dict, start: dict) -> None:
    """Parameters within 1 % of how far they moved."""
    for name in first:
        if name.startswith("params/"):
            before, one, other = (values[name] for values in (start, first, second))
            if name.endswith("in_proj/bias"):
                # A bias on all keys changes no attention weight: its gradient is rounding, which Adam scales up.
                before, one, other = (np.delete(leaf.reshape(3, -1), 1, 0) for leaf in (before, one, other))
            update = np.abs(one - before).max()
            assert np.abs(one - other).max() <= 0.01 * update + 1e-9, name


@pytest.mark.slow
def test_runs_killed_at_random_end_with_the_same_bits(folder):
    finish(start(folder, "unbroken", "--save-every", "1"))
    rng = random.Random(0)
    for moment in ("start", "step", "save", "step") * (KILLS // 4):
        begun = forget_end(folder, "killed")
        process = start(folder, "killed", "--save-every", "1")
        if moment == "start":
            time.sleep(rng.uniform(0, 4))
        else:
            wait_for_step(folder, "killed", begun + 1, process)
        if moment == "step":
            time.sleep(rng.uniform(0, 0.3))
        elif moment == "save":
            stop_in_save(folder / "killed" / "checkpoints", process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(folder, "killed", "--save-every", "1"))
    expected, resumed = arrays(folder, "unbroken"), arrays(folder, "killed")
    assert all(np.array_equal(expected[name], resumed[name]) for name in expected)
    assert losses(folder, "killed") == losses(folder, "unbroken")


@pytest.mark.slow
def test_two_processes_train_as_one_and_restore_each_others_checkpoints(folder):
    flags = ("--mesh", "data=2,fsdp=2", "--save-every", "12")
    printed = finish(*start_pair(folder, "pair", *flags))
    assert json.loads(printed[printed.index("{") :])["step"] == STEPS  # the runtime greets on stdout
    assert "train" in (folder / "pair" / "logs" / "proc1.log").read_text()
    finish(start(folder, "one", *flags, devices=4))
    begun = read_checkpoint(folder / "one" / "checkpoints", 12)[0]
    np.testing.assert_allclose(losses(folder, "pair"), losses(folder, "one"), rtol=1e-5)
    assert_close(arrays(folder, "one"), arrays(folder, "pair"), begun)

    for source, output, begin in (("one", "pair_on", start_pair), ("pair", "one_on", start)):
        shutil.copytree(folder / source / "checkpoints" / "12", folder / output / "checkpoints" / "12")
        processes = begin(folder, output, *(flags if begin is start_pair else ()))
        finish(*(processes if isinstance(processes, list) else [processes]))
        assert len(losses(folder, output)) == STEPS - 12
        assert_close(arrays(folder, source), arrays(folder, output), begun)


@pytest.mark.slow
def test_two_processes_end_at_one_step_when_one_is_asked_to(folder):
    pair = start_pair(folder, "asked", "--save-every", "1000", "--max-steps", "100000")
    wait_for_step(folder, "asked", 3, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    finish(*pair, code=75)
    steps = checkpoint_steps(folder / "asked" / "checkpoints")
    assert len(steps) == 1 and 3 <= steps[0] < 100000


@pytest.mark.slow
def test_a_process_whose_peer_is_killed_ends_and_the_same_commands_go_on(folder):
    output = "peer"
    pair = start_pair(folder, output, "--save-every", "2")
    wait_for_step(folder, output, 5, pair[0])
    pair[1].send_signal(signal.SIGKILL)
    for process in pair:
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode != 0
    assert checkpoint_steps(folder / output / "checkpoints")
    finish(*start_pair(folder, output))
    assert checkpoint_steps(folder / output / "checkpoints")[-1] == STEPS
