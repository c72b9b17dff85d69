"""Where a run starts."""

from dataclasses import replace

import numpy as np
import pytest

from sv3d_jax.errors import WeightsError
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.train.initial import first_params, first_trainable
from sv3d_jax.weights.hub import write_shipped
from sv3d_jax.weights.key_map import model_parameters
from tests.reference_weights import reference_params, reference_tensor
from tests.tiny_model import CONFIG
from tests.train.tiny_run import tiny_config
from tests.weights.files import write_tensors

TINY_U = replace(CONFIG, variant="u", unet=replace(CONFIG.unet, vector_width=256))


def first(folder, initial, model=CONFIG, **changes):
    return first_params(tiny_config(folder, objective="unet", initial=str(initial), **changes), model)


def test_a_model_of_ours_is_taken_as_it_is(tmp_path):
    params = reference_params(CONFIG)
    write_shipped(params, CONFIG, tmp_path / "model")
    unet = first(tmp_path, tmp_path / "model")["unet"]
    expected = params["unet"]["label_emb_0_0"]["kernel"]
    np.testing.assert_allclose(unet["label_emb_0_0"]["kernel"], expected, rtol=2**-8)  # bfloat16


def test_a_model_without_cameras_gets_rows_of_zeros_for_them(tmp_path):
    write_shipped(reference_params(TINY_U), TINY_U, tmp_path / "u")
    kernel = first(tmp_path, tmp_path / "u")["unet"]["label_emb_0_0"]["kernel"]
    assert kernel.shape[0] == 1280 and np.any(kernel[:256]) and not np.any(kernel[256:])


def test_svd_gives_its_unet(tmp_path):
    svd = replace(CONFIG, unet=replace(CONFIG.unet, vector_width=768))
    tensors = {p.name: reference_tensor(p.name, p.shape) for p in model_parameters(svd, ["unet"])}
    params = first(tmp_path, write_tensors(tmp_path / "svd.safetensors", tensors), TINY_U)
    expected = reference_params(svd, parts=["unet"])["unet"]["label_emb_0_0"]["kernel"][512:]
    np.testing.assert_array_equal(params["unet"]["label_emb_0_0"]["kernel"], expected)
    assert set(params) == {"unet"}


def test_a_model_of_other_widths_is_refused(tmp_path):
    write_shipped(reference_params(CONFIG), CONFIG, tmp_path / "model")
    wide = ModelConfig.from_dict({**CONFIG.to_dict(), "unet": {**CONFIG.to_dict()["unet"], "ff_mult": 2}})
    with pytest.raises(WeightsError, match="has another UNet than the model"):
        first(tmp_path, tmp_path / "model", wide)


def test_low_rank_changes_start_from_the_seed(tmp_path):
    write_shipped(reference_params(CONFIG), CONFIG, tmp_path / "model")
    options = {"objective": "unet", "initial": str(tmp_path / "model"), "trainable": {"layers": "lora"}}

    def down(seed):
        trainable = first_trainable(tiny_config(tmp_path, seed=seed, **options), CONFIG)
        return trainable.initial["unet"]["middle_block_1"]["time_stack_0"]["ff"]["net_2"]["lora_down"]

    np.testing.assert_array_equal(down(1), down(1))
    assert np.any(down(1) != down(2))
