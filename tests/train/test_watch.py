"""What a run shows of itself, checked on a loop that computes nothing."""

import json
import sys
import types

import jax
import numpy as np
import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.train import watch
from sv3d_jax.train.plan import Accelerator
from sv3d_jax.train.watch import Watch, check_recorders, peak_bytes
from tests.train.tiny_run import tiny_config

IMAGES, SAMPLES, FLOP = 14, 2, 3e9


def run(config, first=0, last=4, lead=True, **numbers):
    """A loop of empty steps, logged one by one; returns the lines of metrics.jsonl."""
    with Watch(config, first, lead) as seen:
        for index in range(first, last):
            seen.begin(index)
            seen.loaded()
            seen.end(IMAGES, SAMPLES, FLOP)
            seen.log(index + 1, **numbers)
    path = config.output / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_line_has_speed_memory_and_the_numbers_given(tmp_path):
    line = run(tiny_config(tmp_path), last=1, loss=0.5, skipped_records=3)[0]
    assert (line["step"], line["loss"], line["skipped_records"]) == (1, 0.5, 3)
    assert line["images_per_s"] / line["samples_per_s"] == pytest.approx(IMAGES / SAMPLES, rel=0.01)
    assert line["step_s"] >= line["data_s"] >= 0.0
    assert line["peak_memory_bytes"] > 1e6


def test_rates_are_over_the_time_of_the_steps_since_the_last_line(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 10.0, 12.0, 18.0])  # begun, loaded, ended, twice; six seconds lie between
    monkeypatch.setattr(watch.time, "perf_counter", lambda: next(clock))
    config = tiny_config(tmp_path)
    with Watch(config, 0) as seen:
        for index in range(2):
            seen.begin(index)
            seen.loaded()
            seen.end(IMAGES, SAMPLES, FLOP)
        seen.log(2)
    line = json.loads((config.output / "metrics.jsonl").read_text())
    assert line["step_s"] == 6.0 and line["data_s"] == 1.5
    assert line["images_per_s"] == pytest.approx(2 * IMAGES / 12, abs=0.01)
    assert line["tflop_per_s"] == pytest.approx(2 * FLOP / 12 / 1e12, rel=1e-3)


def test_utilisation_is_of_the_peak_of_all_devices(tmp_path, monkeypatch):
    device = Accelerator("some", "some", 2e9, 1e9)
    clock = iter([0.0, 0.0, 3.0])
    monkeypatch.setattr(watch, "find_accelerator", lambda kind: device)
    monkeypatch.setattr(watch.time, "perf_counter", lambda: next(clock))
    line = run(tiny_config(tmp_path), last=1)[0]
    assert line["utilisation"] == pytest.approx(FLOP / 3.0 / (2e9 * jax.device_count()), abs=1e-4)


def test_utilisation_of_a_device_that_is_not_in_the_table_is_null(tmp_path):
    assert run(tiny_config(tmp_path), last=1)[0]["utilisation"] is None


def test_a_number_that_is_not_finite_is_null(tmp_path):
    assert run(tiny_config(tmp_path), last=1, loss=float("nan"))[0]["loss"] is None


def test_a_run_that_goes_on_drops_lines_beyond_its_step(tmp_path):
    config = tiny_config(tmp_path)
    run(config, last=4, loss=1.0)
    lines = run(config, first=2, last=4, loss=2.0)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    config = tiny_config(tmp_path)
    run(config, last=2)
    with open(config.output / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in run(config, first=2, last=3)] == [1, 2, 3]


def test_only_the_lead_writes(tmp_path):
    config = tiny_config(tmp_path, watch={"tensorboard": True, "profile": "0:2"})
    assert run(config, lead=False) == [] and not config.output.exists()


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    devices = [types.SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in (5, 9, 7)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert peak_bytes() == 9


@pytest.mark.parametrize(("step", "due"), [(3, False), (4, True), (6, True)])
def test_sheets_are_due_at_their_interval_and_at_the_end(tmp_path, step, due):
    config = tiny_config(tmp_path, max_steps=6, watch={"samples_every": 4})
    assert Watch(config, 0).samples_due(step) is due


def test_a_sheet_is_a_picture_named_after_its_step(tmp_path):
    from PIL import Image

    config = tiny_config(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    with Watch(config, 0) as seen:
        seen.sheet(200, pixels)
    assert np.array_equal(Image.open(config.output / "samples" / "step-200.png"), pixels)


def test_a_trace_covers_the_steps_asked_for(tmp_path, monkeypatch):
    events, config = [], tiny_config(tmp_path, watch={"profile": "1:3"})
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append(("stop", at[0])))
    at = [None]
    original = Watch.begin

    def begin(self, index):
        at[0] = index
        original(self, index)

    monkeypatch.setattr(Watch, "begin", begin)
    run(config, last=5)
    assert events == [("start", str(config.output / "profile")), ("stop", 3)]


def test_a_trace_is_a_file_that_the_profiler_wrote(tmp_path):
    config = tiny_config(tmp_path, watch={"profile": "1:2"})
    run(config, last=2)  # the run ends inside of it
    assert list((config.output / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["5", "5:5", "7:5", "a:b"])
def test_a_profile_that_is_no_range_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="START:STOP"):
        tiny_config(tmp_path, watch={"profile": text})


def test_tensorboard_has_scalars_and_sheets(tmp_path):
    config = tiny_config(tmp_path, watch={"tensorboard": True})
    with Watch(config, 0) as seen:
        seen.write(1, loss=0.25, utilisation=None)
        seen.sheet(1, np.zeros((4, 6, 3), np.uint8))
    [file] = (config.output / "tensorboard").iterdir()
    events = file.read_bytes()
    assert b"loss" in events and b"sample" in events and b"utilisation" not in events


@pytest.mark.parametrize(
    ("settings", "package"), [({"tensorboard": True}, "tensorboardX"), ({"wandb": "p"}, "wandb")]
)
def test_a_missing_extra_is_said_before_the_run_starts(tmp_path, monkeypatch, settings, package):
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=package) as refused:
        check_recorders(tiny_config(tmp_path, watch=settings).watch)
    assert "sv3d_jax[log]" in refused.value.hint


def test_nothing_is_asked_of_packages_that_no_flag_names(tmp_path, monkeypatch):
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
    check_recorders(tiny_config(tmp_path).watch)


def test_wandb_goes_on_with_the_run_that_it_began(tmp_path, monkeypatch):
    begun, logged = [], []

    def init(**options):
        begun.append(options)
        return types.SimpleNamespace(
            id="abc", log=lambda numbers, step: logged.append((step, numbers)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Image=lambda pixels: pixels))
    config = tiny_config(tmp_path, watch={"wandb": "orbits"})
    run(config, last=1, loss=0.5)
    run(config, first=1, last=2, loss=0.25)
    assert [(options["project"], options["id"]) for options in begun] == [("orbits", None), ("orbits", "abc")]
    assert [(step, numbers["loss"]) for step, numbers in logged] == [(1, 0.5), (2, 0.25)]
    assert "utilisation" not in logged[0][1]  # unknown here
