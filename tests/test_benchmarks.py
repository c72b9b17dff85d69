"""The run for accelerators on a CPU, and the comparison of two checkouts."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import compare_builds
from tests.test_imports import ROOT

# `sv3d bench` and the rest have tests of their own.
PARTS = ("numerics", "peers", "distillation", "rasterizer", "attention")


@pytest.mark.slow
def test_the_accelerator_run_goes_through_its_parts(tmp_path):
    script, output = ROOT / "benchmarks" / "accelerator.py", tmp_path / "report.json"
    words = [sys.executable, str(script), "-o", str(output), "--only", *PARTS]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(output.read_text())
    assert report["model"] == "sv3d_mini" and set(PARTS) < set(report)
    assert report["numerics"]["ok"] and report["distillation"]["step_s"] > 0
    assert report["attention"]["plain, 64 tokens"]["ms"] > 0
    assert "numerics      relative_error" in done.stdout


@pytest.mark.slow
def test_the_table_of_ratios_is_filled_for_two_builds():
    """Both builds are this one, in small cases."""
    rows = ("preview", "step", "orbit", "rasterizer")
    words = [
        sys.executable,
        str(ROOT / "benchmarks" / "ratios.py"),
        str(ROOT),
        "--quick",
        "--json",
        "--rows",
        *rows,
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    assert [figure["name"] for figure in figures] == [
        *("preview blob, nothing kept", "preview blob, later start", "guided step"),
        *("orbit, nothing kept", "orbit, later start", "rasterizer, 2000 triangles, 64 px"),
    ]
    assert all(figure["ratio"] > 0 and min(figure["old"] + figure["new"]) > 0 for figure in figures)
    assert figures[1]["quality"]["old"] == figures[1]["quality"]["new"]


def test_two_builds_are_compared_file_by_file(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, loss, seconds in ((old, 0.5, 1.0), (new, 0.25, 2.0)):
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps({"loss": loss, "step_s": seconds}) + "\n")
        (folder / "run.json").write_text(json.dumps({"seed": 0, "timings_s": {"orbit": seconds}}))
        np.savez(folder / "fit.npz", weight=np.full(3, loss))
        (folder / "mesh.bin").write_bytes(b"same")
    assert compare_builds.compare_folders(old, old) == []
    lines = compare_builds.compare_folders(old, new)
    assert lines[0] == "fit.npz: weight by up to 0.25"
    assert [line.split(":")[0] for line in lines] == ["fit.npz", "metrics.jsonl"]
