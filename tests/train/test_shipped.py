"""The weights that ship are what the shipped commands make."""

import json

import pytest

from sv3d_jax.config import load_config
from sv3d_jax.progress import NullProgress
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.loop import run_train
from sv3d_jax.train.objectives import read_model
from sv3d_jax.weights.hub import load_weights
from sv3d_jax.weights.source import MINI
from tests.test_imports import ROOT

TOLERANCE = 0.02
REPEATED_STEPS = 20  # within the warm-up, where the rate does not depend on the length of the run


def losses(lines: list[str]) -> dict[int, float]:
    records = map(json.loads, lines)
    return {record["step"]: record["loss"] for record in records if record.get("loss") is not None}


def test_shipped_files_are_small():
    sizes = [file.stat().st_size for file in MINI.iterdir()]
    assert sum(sizes) <= 24e6 and max(sizes) < 16 << 20


def test_shipped_networks_are_those_of_the_configuration():
    _, shipped, _ = load_weights("mini")
    ours = read_model("mini")
    assert (shipped.vae, shipped.image_encoder, shipped.unet) == (ours.vae, ours.image_encoder, ours.unet)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Rendered orbits, shared by the runs of this file."""
    return tmp_path_factory.mktemp("data")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["autoencoder", "tower"])
def test_first_losses_of_the_shipped_log_come_again(objective, data_dir, tmp_path):
    settings = {
        "output": tmp_path / objective,
        "data_dir": data_dir,
        "max_steps": REPEATED_STEPS,
        "validate_every": 10**6,
        "save_every": 10**6,
    }
    file = ROOT / "configs" / "train" / f"mini_{objective}.toml"
    run_train(load_config(TrainConfig, file, settings), NullProgress())
    shipped = losses((MINI / f"{objective}_log.jsonl").read_text().splitlines())
    again = losses((tmp_path / objective / "metrics.jsonl").read_text().splitlines())
    common = [step for step in shipped if step in again]
    assert len(common) >= 2
    assert [again[step] for step in common] == pytest.approx(
        [shipped[step] for step in common], rel=TOLERANCE
    )
