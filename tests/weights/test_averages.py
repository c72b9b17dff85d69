"""Averages of weights (EMA) under the names of trainers: left out, or read where asked for."""

import numpy as np
import pytest

from sv3d_jax.errors import WeightsError
from sv3d_jax.weights.key_map import model_parameters
from sv3d_jax.weights.source import open_weights
from tests.tiny_model import CONFIG
from tests.weights.foreign_files import (
    EMA_NAMES,
    UNET,
    assert_reads,
    averages,
    dotless,
    opened,
    refusal,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

COUNTERS = {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int32(7)}


@pytest.mark.parametrize("naming", EMA_NAMES)
def test_averages_beside_the_weights_are_left_out_and_said(tmp_path, tensors, naming):
    stored, _ = averages(naming)
    source = opened(tmp_path, tensors | stored | COUNTERS)
    assert_reads(source, tensors)
    assert source.tensors.keys() == tensors.keys()
    assert set(source.left_out) == stored.keys() | COUNTERS.keys()
    assert any("averages (EMA) are left out" in remark and "--ema" in remark for remark in source.remarks)


@pytest.mark.parametrize("naming", EMA_NAMES)
def test_averages_are_taken_where_asked_for(tmp_path, tensors, naming):
    stored, values = averages(naming)
    source = opened(tmp_path, tensors | stored | COUNTERS, ema=True)
    assert_reads(source, tensors | values)
    assert set(source.left_out) == values.keys() | COUNTERS.keys()


def test_what_was_frozen_has_no_average_and_stays(tmp_path, tensors):
    stored, values = averages("sgm")
    frozen = [name for name in values if ".time_stack." not in name]
    for name in frozen:
        del stored[dotless(name)]
    source = opened(tmp_path, tensors | stored, ema=True)
    assert_reads(source, tensors | values | {name: tensors[name] for name in frozen})


@pytest.mark.parametrize("naming", EMA_NAMES)
def test_averages_alone_are_the_weights(tmp_path, tensors, naming):
    stored, values = averages(naming)
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNET)}
    source = opened(tmp_path, rest | stored | COUNTERS, CONFIG.to_metadata())
    assert_reads(source, tensors | values)
    assert any("averages (EMA) are read as the weights" in remark for remark in source.remarks)


def test_averages_without_dots_are_known_by_the_published_names():
    """Names depend on levels and blocks, not on widths: those of SV3D itself need no description."""
    from sv3d_jax.models.config import ModelConfig
    from sv3d_jax.weights.layouts import _dotless

    names = [parameter.name for parameter in model_parameters(ModelConfig.published("p"))]
    short = _dotless(names)
    assert all(short[dotless(name).removeprefix("model_ema.")] == name for name in names)


def test_averages_of_an_unknown_model_are_refused(tmp_path, tensors):
    stored = {"model_ema.diffusion_modelinput_blocks990weight": np.zeros(2, np.float32)}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNET)}
    error = refusal(tmp_path, rest | stored)
    assert "averages (EMA) fit no tensor" in error.message and "input_blocks990" in error.message


def test_averages_that_are_not_there_are_said(tmp_path, tensors):
    assert "no averages (EMA)" in refusal(tmp_path, tensors, ema=True).message


def test_a_folder_of_orbax_has_no_averages(folder):
    with pytest.raises(WeightsError, match=r"no averages \(EMA\)"):
        open_weights(folder, ema=True)
