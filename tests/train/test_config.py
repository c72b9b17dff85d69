"""The settings of training runs, and the files that ship with them."""

from pathlib import Path

import pytest

from sv3d_jax.cli import parse
from sv3d_jax.config import load_config
from sv3d_jax.errors import InputError, WeightsError
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.objectives import read_model
from tests.test_imports import ROOT

FILES = sorted((ROOT / "configs" / "train").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_shipped_settings_name_a_model_and_the_command_that_takes_them(file):
    config = load_config(TrainConfig, file, {"output": "run"})
    assert read_model(config.model).unet.model_channels > 0
    comment = "".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    assert f"configs/train/{file.name}" in comment or "benchmarks/finetune.py" in comment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion": {"token_dropout": 1.5}}, "token-dropout 1.5: must lie between 0 and 1"),
        ({"diffusion": {"near_power": -1}}, "near-power -1.0: must lie between"),
        ({"trainable": {"rank": 0}}, "rank 0: must lie between 1 and"),
        ({"data": {"orbits_per_object": 0}}, "orbits-per-object 0: must lie between 1 and"),
        ({"objective": "tower", "trainable": {"layers": "lora"}}, "only the UNet is trained in part"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        load_config(TrainConfig, None, {"output": "run", **changes})


def test_a_model_file_that_is_not_toml_is_named_in_the_error(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("name =\n")
    with pytest.raises(WeightsError, match=f"{path} is not TOML .* line 1"):
        read_model(str(path))


def test_a_recipe_that_ships_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = parse("train", ["--config", "sv3d_p", "-o", "x"])
    by_file = parse("train", ["--config", str(ROOT / "configs" / "train" / "sv3d_p.toml"), "-o", "x"])
    assert by_name.settings() == by_file.settings()
    Path("sv3d_p").write_text("")  # a file of that name goes before it
    with pytest.raises(InputError, match="sv3d_p is not a TOML file"):
        parse("train", ["--config", "sv3d_p", "-o", "x"])
