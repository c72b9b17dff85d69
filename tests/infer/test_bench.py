"""The bench verb: its numbers are of this machine and agree with each other."""

import json

import numpy as np
import pytest

from sv3d_jax.cli import main
from sv3d_jax.infer.bench import random_params, step_flop
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.weights.hub import write_shipped
from sv3d_jax.weights.key_map import model_parameters
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG, SIZE


@pytest.mark.parametrize(
    "flags", [(), ("--low-memory", "--batch", "2", "--frames", "3", "--quantize", "fp8")]
)
def test_bench_times_every_stage(flags, tmp_path, capsys):
    write_shipped(reference_params(CONFIG), CONFIG, tmp_path / "tiny")
    words = ["bench", "--weights", str(tmp_path / "tiny"), "--rounds", "3", "--quiet", "--json", *flags]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "tiny" and report["size"] == SIZE and report["dtype"] == "float32"
    seconds = [report[name] for name in ("compile_s", "condition_s", "step_s", "decode_frame_s")]
    assert min(seconds) > 0
    steps = report["condition_s"] + report["num_steps"] * report["step_s"]
    decoding = report["batch"] * (report["frames"] - 1) * report["decode_frame_s"]
    assert report["orbit_s"] == pytest.approx(steps + decoding, abs=0.01)
    assert report["share_of_product"] <= 1 and report["peak_gib"] > 0


@pytest.mark.parametrize(("dtype", "weights"), [("float32", "weights 8.3"), ("bfloat16", "weights 4.2")])
def test_bench_plans_the_full_model_without_making_it(dtype, weights, capsys):
    words = ["bench", "--model", "sv3d_p", "--device", "cpu", "--dtype", dtype, "--dry-run", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "sv3d_p" and weights in report["plan"]


@pytest.mark.slow
def test_a_step_of_the_published_model_is_counted_as_published():
    assert step_flop(ModelConfig.published("p"), 1, 21, 576) == pytest.approx(69.16e12, rel=0.003)


def test_random_parameters_have_the_shapes_of_the_model():
    params = random_params(CONFIG)
    for parameter in model_parameters(CONFIG):
        leaf = params
        for name in parameter.path:
            leaf = leaf[name]
        assert leaf.shape == parameter.tree_shape and leaf.dtype == np.float32 and np.isfinite(leaf).all()
