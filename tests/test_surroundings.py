"""Clocks that jump back, and paths of any bytes: the verbs work all the same."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cli import main
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.io.outputs import OutputFolder
from sv3d_jax.weights.hub import write_shipped
from tests.infer.runs import files_with_times, orbit
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG, picture
from tests.train.tiny_run import train


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder whose name is no UTF-8, seen through a link with a space in its name; with weights and a picture."""
    outside = tmp_path_factory.mktemp("surroundings")
    real = outside / os.fsdecode(b"caf\xe9 of bytes")
    real.mkdir()
    (link := outside / "a link").symlink_to(real)
    write_shipped(reference_params(CONFIG), CONFIG, link / "tiny")
    Image.fromarray(picture()).save(link / os.fsdecode(b"box \xff.png"))
    return link


@pytest.fixture
def clock_that_jumps(monkeypatch):
    """A wall clock that is set back by a day at every look; the monotonic one goes on."""
    now = [time.time()]

    def back() -> float:
        now[0] -= 86_400
        return now[0]

    monkeypatch.setattr(time, "time", back)
    monkeypatch.setattr(time, "time_ns", lambda: int(back() * 1e9))


def test_an_orbit_is_sampled_and_resumed_while_the_clock_jumps_back(place, tmp_path, clock_that_jumps):
    image = place / os.fsdecode(b"box \xff.png")
    assert orbit(place, image, "-o", tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text(errors="surrogateescape"))
    seconds = [*record["timings_s"].values(), *record["stages"]["orbit"]["timings_s"].values()]
    assert all(0 <= each < 3600 for each in seconds)
    before = files_with_times(tmp_path / "out")
    assert orbit(place, image, "-o", tmp_path / "out") == 0
    assert files_with_times(tmp_path / "out") == before


def test_training_is_resumed_while_the_clock_jumps_back(tmp_path, clock_that_jumps):
    train(tmp_path, max_steps=4, save_every=2, log_every=1)
    log = tmp_path / "run" / "metrics.jsonl"
    before = [json.loads(line) for line in log.read_text().splitlines() if '"loss"' in line]
    train(tmp_path, max_steps=4, save_every=2, log_every=1, resume="2")
    after = [json.loads(line) for line in log.read_text().splitlines() if '"loss"' in line]
    assert len(before) == 4 and [line["loss"] for line in after] == [line["loss"] for line in before]
    assert before[:2] == after[:2] and before[2:] != after[2:]  # the last two steps were taken again
    assert all(line["step_s"] >= 0 for line in before + after)


def test_a_lock_is_held_and_left_while_the_clock_jumps_back(tmp_path, clock_that_jumps):
    for _ in range(2):
        with OutputFolder(tmp_path / "out", {}) as folder:
            folder.finish_stage("one", [])
        assert 0 <= folder._stages["one"]["seconds"] < 3600


def test_the_verbs_take_paths_of_any_bytes_spaces_and_links(place, capfdbinary):
    def sv3d(*words: str | Path) -> None:
        assert main([str(word) for word in words]) == 0, capfdbinary.readouterr().err

    meshes, renders = place / os.fsdecode(b"meshes \xe9"), place / os.fsdecode(b"renders \xe9")
    sv3d("data", "objects", "-o", meshes, "-q")
    sv3d("data", "render", meshes, "-o", renders, "--frames", "3", "--size", "32", "-q")
    sv3d("data", "check", renders, "-q")
    sv3d("reconstruct", renders / "0", "-o", place / "mesh", "--dry-run", "-q")
    sv3d("eval", "orbit", "--pred", renders / "0", "--target", renders / "0", "-q")
    sv3d(
        "cameras",
        "-o",
        place / os.fsdecode(b"path \xe9.json"),
        "--plot",
        place / os.fsdecode(b"\xe9.png"),
        "-q",
    )
    sv3d("convert", place / "tiny", place / os.fsdecode(b"tiny \xe9.safetensors"), "--verify", "-q")
    assert orbit(place, place / os.fsdecode(b"box \xff.png"), "-o", place / os.fsdecode(b"orbit \xe9")) == 0
    assert np.isfinite(read_orbit(place / os.fsdecode(b"orbit \xe9")).images).all()
