"""What a run takes is known before it starts, also for meshes that are not here."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from sv3d_jax.cli import main
from sv3d_jax.errors import InputError
from sv3d_jax.progress import NullProgress
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.loop import run_train
from sv3d_jax.train.plan import (
    ACCELERATORS,
    find_accelerator,
    fits,
    plan_run,
    require_training_accelerator,
    sharded_bytes,
)
from tests.train.tiny_run import tiny_config


def test_a_mesh_splits_what_its_rules_split():
    tree = {"to_q": {"kernel": jax.ShapeDtypeStruct((64, 128), np.float32)}}
    one = {"data": 1, "fsdp": 1, "tensor": 1}
    whole = sharded_bytes(tree, one)
    assert whole == 64 * 128 * 4
    assert sharded_bytes(tree, one | {"data": 8}) == whole  # copies
    assert sharded_bytes(tree, one | {"fsdp": 4}) == whole // 4
    assert sharded_bytes(tree, one | {"fsdp": 4, "tensor": 2}) == whole // 8


@pytest.fixture
def tiny_plan(tmp_path):
    return lambda **changes: plan_run(tiny_config(tmp_path, batch_size=24, **changes))


def test_a_plan_adds_up(tiny_plan):
    report = tiny_plan()
    parts = report["gb_per_device"]
    state = parts["parameters"] * 5  # two moments, average and gradients beside them
    assert report["total_gb"]["remat, EMA"] == pytest.approx(state + parts["activations, remat"], rel=0.02)
    without = state - parts["parameters"]
    assert report["total_gb"]["remat, no EMA"] == pytest.approx(
        without + parts["activations, remat"], rel=0.02
    )


def test_a_mesh_that_is_not_here_divides_the_batch_and_the_state(tiny_plan):
    one, many = tiny_plan(), tiny_plan(mesh="data=2,fsdp=4", accumulate=3)
    assert many["devices"] == 8 > jax.device_count()
    assert (one["batch_per_device"][0], many["batch_per_device"][0]) == (24, 1)
    assert many["tflop_per_device"] == pytest.approx(one["tflop_per_device"] / 8, rel=0.02)
    assert many["gb_per_device"]["optimizer"] < one["gb_per_device"]["optimizer"]


def test_a_batch_that_does_not_divide_is_whole_on_every_device(tiny_plan):
    assert tiny_plan(mesh="data=5")["batch_per_device"][0] == 24


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v5p", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
    ],
)
def test_devices_are_known_by_what_jax_calls_them(kind, name):
    found = find_accelerator(kind)
    assert found is not None and found.name == name


def test_an_unknown_device_has_no_entry():
    assert find_accelerator("cpu") is None
    assert find_accelerator("NVIDIA GH200 480GB") is None  # another memory and another peak than H200


def test_a_device_needs_room_beside_the_run():
    a100 = ACCELERATORS[0]
    assert fits(0.8 * a100.memory_bytes, a100) and not fits(0.95 * a100.memory_bytes, a100)


def test_the_plan_of_a_recipe_is_printed_and_nothing_is_written(tmp_path, capsys):
    output = tmp_path / "run"
    code = main(["train", "--plan", "--objective", "tower", "-o", str(output), "--device", "cpu", "--json"])
    assert code == 0 and not output.exists()
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] > 0 and "A100" in report["fits"]["no remat, EMA"]


@pytest.mark.slow
def test_the_published_model_fits_a_tpu_v5p_when_sharded(tmp_path):
    settings = {
        "objective": "unet",
        "model": "sv3d_p",
        "data": {"size": 576},
        "diffusion": {"frames_per_sample": 21},
        "mesh": "data=8,fsdp=4",
        "dtype": "bfloat16",
    }
    report = plan_run(tiny_config(tmp_path, batch_size=32, **settings))
    assert report["parameters"] == 1_525_278_442
    assert report["batch_per_device"] == [1, 21, 72, 72, 4]
    assert report["gb_per_device"]["optimizer"] == pytest.approx(2 * 4 * 1.525 / 4, rel=0.01)
    assert report["fits"]["no remat, EMA"] == ["A100", "H100", "H200", "TPU v5p"]
    assert "TPU v6e" in report["fits"]["remat, EMA"] and "TPU v5e" in report["fits"]["remat, no EMA"]


def test_training_at_full_size_on_a_cpu_wants_to_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    config = TrainConfig(output=tmp_path / "run", model="sv3d_p")
    with pytest.raises(
        InputError, match=r"training 2\.2 billion parameters on this CPU takes about \d+"
    ) as caught:
        run_train(config, NullProgress())
    assert "--device cpu" in caught.value.hint and not (tmp_path / "run").exists()
    require_training_accelerator(dataclasses.replace(config, device="cpu"))
    require_training_accelerator(dataclasses.replace(config, model="mini"))


def test_pictures_of_a_size_that_the_model_cannot_halve_are_refused_before_any_is_rendered(tmp_path):
    config = tiny_config(tmp_path, data={"objects": 4, "size": 33, "num_frames": 5})
    with pytest.raises(InputError, match="--data.size 33: .* needs a multiple of"):
        run_train(config, NullProgress())
    assert not list((tmp_path / "data").glob("*")) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("mesh", ["data=²", f"data={'9' * 5000}", "data=0", "data=-1"])
def test_a_mesh_whose_size_is_no_number_is_refused(tmp_path, mesh):
    with pytest.raises(InputError, match="is not an axis with its size"):
        plan_run(tiny_config(tmp_path, mesh=mesh))
