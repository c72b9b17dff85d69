"""Figures of the documentation that a plan gives are those of today's plan."""

import json
import math
import re
from pathlib import Path

import jax
import pytest

from sv3d_jax import plan as sampling_plan
from sv3d_jax.cli import main
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.train import plan as training_plan
from sv3d_jax.train.config import TrainableConfig
from sv3d_jax.train.objectives import init_params, read_model
from sv3d_jax.train.trainable import choose_trainable

DOCS = Path(__file__).parents[1] / "docs"
STATE = ("parameters", "optimizer", "ema", "gradients")


def page(name: str) -> str:
    """The text of a page, in one line."""
    return " ".join((DOCS / name).read_text().split())


@pytest.fixture
def traced_once(monkeypatch):
    """Activations and FLOP of a device do not depend on the mesh: they are traced for the first plan alone."""
    activation_bytes, counters, found = training_plan.activation_bytes, training_plan.step_flop_counter, {}

    def activations(config, *arguments):
        key = ("bytes", config.remat)
        return found[key] if key in found else found.setdefault(key, activation_bytes(config, *arguments))

    def flop(*arguments):
        return lambda batch: (
            found["flop"] if "flop" in found else found.setdefault("flop", counters(*arguments)(batch))
        )

    monkeypatch.setattr(training_plan, "activation_bytes", activations)
    monkeypatch.setattr(training_plan, "step_flop_counter", flop)


@pytest.mark.slow
def test_the_table_of_plans_is_what_train_plan_prints(traced_once, tmp_path, capsys):
    rows = re.findall(
        r"^\| (one device|`[\w=,]+`)[^|]*\| ([\d.]+) \| ([\d.]+), ([\d.]+) \| (.*) \|$",
        (DOCS / "training.md").read_text(),
        flags=re.M,
    )
    assert len(rows) == 3
    for place, state, remat, whole, fits in rows:
        mesh = "" if place == "one device" else place.strip("`")
        devices = math.prod(int(size) for size in re.findall(r"\d+", mesh))
        words = f"train --plan --json --device cpu -o {tmp_path / 'run'} --model sv3d_p --dtype bfloat16"
        assert main([*words.split(), "--mesh", mesh, "--batch-size", str(3 * devices)]) == 0
        report = json.loads(capsys.readouterr().out)
        parts = report["gb_per_device"]
        assert f"{sum(parts[name] for name in STATE):.1f}" == state
        assert (remat, whole) == (str(parts["activations, remat"]), str(parts["activations, no remat"]))
        assert fits.split(", ") == [name.removeprefix("TPU ") for name in report["fits"]["remat, EMA"]]
        forward = f"and {report['tflop_per_device'] / 3:.1f} as it is computed here"
        assert forward in page("training.md")
    assert f"{float(remat):.1f} GB in place of {whole} at the published size" in page("performance.md")
    assert f"[today](training.md#plan) {whole} and {remat}" in page("measurements.md")


def test_memory_and_flop_of_sampling_are_those_of_the_plan():
    model = ModelConfig.named("sv3d_p")
    whole = sampling_plan.plan_orbit(model, dtype_bytes=2)
    unet = sampling_plan.plan_orbit(model, dtype_bytes=2, low_memory=True)
    weights, part = whole.weights_bytes / 1e9, unet.weights_bytes / 1e9
    assert f"({weights:.1f} GB in bfloat16, {part:.1f} of them the UNet's)" in page("performance.md")
    assert f"The UNet's weights ({part:.1f} GB in bfloat16)" in page("measurements.md")
    for name in ("performance.md", "measurements.md"):
        assert f"{whole.step_flop / 1e12:.2f} TFLOP" in page(name)


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["all", "temporal", "lora"])
def test_the_numbers_of_trained_parameters_are_those_of_the_models(layers):
    [row] = re.findall(rf"\| `{layers}` \| ([\d.]+) M, ([\d.]+) M", (DOCS / "finetuning.md").read_text())
    for name, stated in zip(("mini", "sv3d_p"), row, strict=True):

        def trained(key, name=name):
            params = init_params("unet", read_model(name), key)
            return choose_trainable(params, TrainableConfig(layers=layers), key).initial

        leaves = jax.tree.leaves(jax.eval_shape(trained, jax.random.key(0)))
        millions = sum(math.prod(leaf.shape) for leaf in leaves) / 1e6
        digits = len(stated.partition(".")[2])
        assert f"{millions:.{digits}f}" == stated
