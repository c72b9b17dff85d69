import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from filelock import FileLock

from sv3d_jax.cli import main
from sv3d_jax.errors import InputError, OutputError, WeightsError
from sv3d_jax.models.config import ImageEncoderConfig, ModelConfig
from sv3d_jax.progress import NullProgress
from sv3d_jax.weights import convert as convert_module
from sv3d_jax.weights.config import ConvertConfig
from sv3d_jax.weights.convert import convert, run_convert, verify
from sv3d_jax.weights.key_map import model_parameters
from sv3d_jax.weights.safetensors_file import SafetensorsFile
from sv3d_jax.weights.source import open_weights
from tests.tiny_model import CONFIG
from tests.weights.files import published_tensors, write_tensors

LAST_NAME = model_parameters(CONFIG)[-1].name


def run(source, output, **settings):
    return run_convert(ConvertConfig(input=source, output=output, **settings), NullProgress())


def assert_same_file(first, second):
    a, b = SafetensorsFile(first), SafetensorsFile(second)
    assert a.metadata == b.metadata
    assert a.tensors == b.tensors
    for name in a.tensors:
        assert a.read(name).tobytes() == b.read(name).tobytes(), name


def test_file_comes_back_from_a_folder_bit_for_bit(checkpoint, folder, tmp_path):
    convert(open_weights(folder), tmp_path / "back.safetensors")
    assert_same_file(checkpoint, tmp_path / "back.safetensors")


def test_file_without_description_comes_back_without(tensors, tmp_path):
    original = write_tensors(tmp_path / "a.safetensors", tensors)
    convert(open_weights(original), tmp_path / "folder")
    convert(open_weights(tmp_path / "folder"), tmp_path / "b.safetensors")
    assert_same_file(original, tmp_path / "b.safetensors")


def test_types_of_a_mixed_file_are_kept(tensors, tmp_path):
    types = (np.float32, np.float16, ml_dtypes.bfloat16)
    mixed = {name: tensor.astype(types[index % 3]) for index, (name, tensor) in enumerate(tensors.items())}
    original = write_tensors(tmp_path / "a.safetensors", mixed, CONFIG.to_metadata())
    convert(open_weights(original), tmp_path / "folder")
    convert(open_weights(tmp_path / "folder"), tmp_path / "b.safetensors")
    assert_same_file(original, tmp_path / "b.safetensors")


def test_folder_holds_the_description(folder):
    assert ModelConfig.from_toml((folder / "model.toml").read_text()) == CONFIG


def test_record_of_training_travels_both_ways(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "folder")
    with open(copy / "model.toml", "a") as file:
        file.write("\n[training]\nseed = 7\nlog = [{step = 1, loss = 0.5}]\n")
    convert(open_weights(copy), tmp_path / "x.safetensors")
    convert(open_weights(tmp_path / "x.safetensors"), tmp_path / "again")
    again = ModelConfig.from_toml((tmp_path / "again" / "model.toml").read_text())
    assert again.training == {"seed": 7, "log": [{"step": 1, "loss": 0.5}]}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_rounds_every_tensor(checkpoint, tensors, tmp_path, dtype):
    run(checkpoint, tmp_path / "half.safetensors", dtype=dtype)
    file = SafetensorsFile(tmp_path / "half.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.read(name), tensor.astype(file.tensors[name].dtype))
        assert file.tensors[name].dtype.name == dtype


@pytest.mark.parametrize("output", ["folder", "copy.safetensors"])
def test_verify_reads_the_result_back(checkpoint, tmp_path, output):
    assert run(checkpoint, tmp_path / output, verify=True, dtype="bfloat16")["verified"]


def test_verify_notices_a_changed_value(checkpoint, tensors, tmp_path):
    changed = {**tensors, LAST_NAME: np.nextafter(tensors[LAST_NAME], np.float32(np.inf))}
    other = write_tensors(tmp_path / "x.safetensors", changed, CONFIG.to_metadata())
    with pytest.raises(WeightsError, match=f"{re.escape(LAST_NAME)} differs"):
        verify(open_weights(checkpoint), open_weights(other), None, NullProgress())


def test_every_tensor_is_in_the_account(checkpoint, tensors, tmp_path):
    account = run(checkpoint, tmp_path / "folder", json=True, dry_run=True)
    assert sorted(account["used"] + account["unused"]) == sorted(tensors)
    assert set(account["used"]) == {parameter.name for parameter in model_parameters(CONFIG)}
    assert account["missing"] == []


@pytest.fixture
def trainers_file(tensors, tmp_path):
    """A file with a wrapper's prefix, averages beside the weights and a counter."""
    names = [parameter.name for parameter in model_parameters(CONFIG, ["unet"])]
    averages = {f"ema.{name}": tensors[name] * np.float32(2) for name in names}
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    counter = {"ema.num_updates": np.int64(3)}
    path = tmp_path / "trainer.safetensors"
    return write_tensors(path, wrapped | averages | counter, CONFIG.to_metadata())


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("output", ["folder", "copy.safetensors"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_trainers_file_becomes_a_published_one(trainers_file, tensors, tmp_path, output, ema):
    account = run(trainers_file, tmp_path / output, ema=ema, verify=True, json=True)
    written = open_weights(tmp_path / output)
    assert written.tensors.keys() == tensors.keys() and not written.remarks
    name = model_parameters(CONFIG, ["unet"])[0].name
    np.testing.assert_array_equal(next(written.stream([name])), tensors[name] * (2 if ema else 1))
    assert "ema.num_updates" in account["left_out"]
    assert (f"ema.{name}" in account["left_out"]) is not ema
    assert (f"module.{name}" in account["left_out"]) is ema


def test_command_says_what_was_not_as_published(trainers_file, tmp_path, capsys):
    assert main(["convert", str(trainers_file), str(tmp_path / "out"), "--dry-run"]) == 0
    assert capsys.readouterr().err.count("averages (EMA) are left out") == 1


def test_weights_of_8_bits_become_wider_without_rounding(tensors, tmp_path):
    name = model_parameters(CONFIG)[0].name
    narrow = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    path = write_tensors(tmp_path / "fp8.safetensors", {**tensors, name: narrow}, CONFIG.to_metadata())
    with pytest.warns(UserWarning, match=r"fp8.safetensors: 1 tensors are 8-bit floats"):
        run(path, tmp_path / "out.safetensors", verify=True)
    written = SafetensorsFile(tmp_path / "out.safetensors")
    assert written.tensors[name].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(written.read(name).astype(np.float32), narrow.astype(np.float32))


def test_dry_run_writes_nothing(checkpoint, tmp_path):
    run(checkpoint, tmp_path / "folder", dry_run=True)
    assert not any(tmp_path.iterdir())


def test_existing_output_is_kept(checkpoint, tmp_path):
    output = tmp_path / "folder"
    output.mkdir()
    with pytest.raises(InputError, match="exists") as caught:
        run(checkpoint, output)
    assert "--overwrite" in caught.value.hint
    assert not any(output.iterdir())


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_overwrite_replaces_the_output(checkpoint, tmp_path, name):
    output = tmp_path / name
    run(checkpoint, output, dtype="float16")
    run(checkpoint, output, overwrite=True)
    assert open_weights(output).tensors == open_weights(checkpoint).tensors
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_conversion_that_fails_half_way_leaves_nothing(tensors, tmp_path, name):
    broken = {**tensors, LAST_NAME: np.full_like(tensors[LAST_NAME], np.nan)}
    source = write_tensors(tmp_path / "a.safetensors", broken, CONFIG.to_metadata())
    with pytest.raises(WeightsError, match=f"{re.escape(LAST_NAME)} holds values that are not finite"):
        run(source, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_conversion_that_fails_keeps_what_was_there(tensors, checkpoint, tmp_path):
    output = tmp_path / "x.safetensors"
    shutil.copy(checkpoint, output)
    broken = {**tensors, LAST_NAME: np.full_like(tensors[LAST_NAME], np.inf)}
    source = write_tensors(tmp_path / "a.safetensors", broken, CONFIG.to_metadata())
    with pytest.raises(WeightsError):
        run(source, output, overwrite=True)
    assert_same_file(checkpoint, output)


def test_leavings_of_a_killed_run_are_removed(checkpoint, tmp_path):
    left = tmp_path / ".out.tmp" / "out" / "params.partial_save"
    left.mkdir(parents=True)
    (left / "piece").write_bytes(bytes(100))
    run(checkpoint, tmp_path / "out", verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_second_run_on_one_output_is_refused(checkpoint, tmp_path):
    (tmp_path / ".out.tmp").mkdir()
    with FileLock(tmp_path / ".out.tmp" / "lock"), pytest.raises(OutputError, match="another run is writing"):
        run(checkpoint, tmp_path / "out")


def test_too_little_space_is_said_before_work(checkpoint, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="the converted model takes at least .* 0.001 MB are free"):
        run(checkpoint, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_absent_parent_of_the_output_is_said_before_work(checkpoint, tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        run(checkpoint, tmp_path / "no" / "out")


def test_variant_that_is_not_the_file_s_is_refused(checkpoint, tmp_path):
    with pytest.raises(WeightsError, match="holds tiny, of variant p, not u"):
        run(checkpoint, tmp_path / "out", variant="u")


def test_pickle_is_never_opened(tmp_path, capsys):
    trap = tmp_path / "model.ckpt"
    trap.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    assert main(["convert", str(trap), str(tmp_path / "out")]) == 3
    assert "pickle" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_output_named_as_a_pickle_is_refused(checkpoint, tmp_path):
    with pytest.raises(WeightsError, match="pickle"):
        run(checkpoint, tmp_path / "out.ckpt")


def test_command_prints_the_account_as_json(checkpoint, tmp_path, capsys):
    assert main(["convert", str(checkpoint), str(tmp_path / "out.safetensors"), "--json", "-q"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["model"], account["missing"]) == ("tiny", [])


@pytest.mark.parametrize("code, name", [(3, "absent.safetensors"), (3, "empty.safetensors")])
def test_command_ends_with_the_code_of_the_fault(tmp_path, capsys, code, name):
    (tmp_path / "empty.safetensors").touch()
    assert main(["convert", str(tmp_path / name), str(tmp_path / "out")]) == code
    assert str(tmp_path / name) in capsys.readouterr().err


PEAK = """
import resource, sys
from pathlib import Path
from sv3d_jax.weights import checkpoint
from sv3d_jax.weights.convert import convert
from sv3d_jax.weights.source import open_weights
checkpoint._BATCH_BYTES = 32 << 20
source, output = map(Path, sys.argv[1:])
convert(open_weights(source), output)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(checkpoint, tmp_path):
    def peak_mib(source, output):
        command = [sys.executable, "-c", PEAK, str(source), str(output)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    config = dataclasses.replace(CONFIG, image_encoder=ImageEncoderConfig(layers=24))
    tensors = published_tensors(CONFIG, "float16")
    shapes = {parameter.name: parameter.shape for parameter in model_parameters(config)}
    large = write_tensors(
        tmp_path / "large.safetensors",
        tensors | {name: np.zeros(shape, np.float16) for name, shape in shapes.items()},
        config.to_metadata(),
    )
    allowed = peak_mib(checkpoint, tmp_path / "small") + 300  # a batch of 32 MiB in a few copies
    assert large.stat().st_size >> 20 > 3 * 300
    assert peak_mib(large, tmp_path / "large") < allowed
    assert peak_mib(tmp_path / "large", tmp_path / "back.safetensors") < allowed


@pytest.mark.parametrize("place", ["", "lock", "model"])
def test_links_in_the_way_of_a_conversion_are_not_followed(checkpoint, tmp_path, place):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    staging = tmp_path / ".model.tmp" / place
    staging.parent.mkdir(exist_ok=True)
    staging.symlink_to(elsewhere / "kept" if place == "lock" else elsewhere)
    convert(open_weights(checkpoint), tmp_path / "model")
    assert [*elsewhere.iterdir()] == [elsewhere / "kept"] and (elsewhere / "kept").read_text() == "kept"
    assert open_weights(tmp_path / "model").config == CONFIG and not os.path.lexists(tmp_path / ".model.tmp")
