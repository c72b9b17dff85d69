"""What the verb `convert` takes as its input besides files and folders."""

import json

import pytest

from sv3d_jax.cli import main
from sv3d_jax.train.convert import open_run_or_weights
from sv3d_jax.weights import hub
from sv3d_jax.weights import source as weights_source
from sv3d_jax.weights.safetensors_file import SafetensorsFile
from sv3d_jax.weights.source import open_weights
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_source, "MINI", tmp_path / "shipped")
    hub.write_shipped(reference_params(CONFIG), CONFIG, tmp_path / "shipped")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "shipped"


def test_mini_converts_to_a_file(shipped, capsys):
    assert main(["convert", "mini", "out.safetensors", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["input"] == "mini"
    written, original = SafetensorsFile("out.safetensors"), open_weights(shipped)
    assert written.tensors == original.tensors
    for name, tensor in zip(original.tensors, original.stream(list(original.tensors)), strict=True):
        assert written.read(name).tobytes() == tensor.tobytes()


def test_a_folder_called_mini_goes_before_the_shipped_one(shipped, tmp_path):
    (tmp_path / "here" / "mini").mkdir()
    (tmp_path / "here" / "mini" / "model.toml").write_text("")
    with pytest.raises(Exception, match="mini holds no weights"):
        open_run_or_weights("mini")


def test_no_other_name_is_looked_up(shipped, capsys):
    assert main(["convert", "minni", "out.safetensors"]) == 3
    assert "there are no weights minni; searched: " in capsys.readouterr().err
