"""The run for accelerators, on a CPU."""

import json
import subprocess
import sys

import pytest

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
