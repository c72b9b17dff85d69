"""Tensors of 8-bit floats are read with their scales; other quantizations are refused with the reason."""

import json

import ml_dtypes
import numpy as np
import pytest

from sv3d_jax.errors import WeightsError
from sv3d_jax.weights.source import open_weights
from tests.tiny_model import CONFIG
from tests.weights.files import raw_file
from tests.weights.foreign_files import (
    LAYER,
    SCALES,
    UNET,
    assert_reads,
    matrices,
    opened,
    refusal,
    scaled,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FLOAT8 = [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOAT8)
def test_8_bit_floats_are_read_without_rounding(tmp_path, tensors, dtype):
    narrow = {name: tensors[name].astype(dtype) for name in matrices(tensors)}
    exact = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in narrow.items()}
    for name, tensor in narrow.items():
        np.testing.assert_array_equal(tensor.astype(np.float32), exact[name].astype(np.float32))
    source = opened(tmp_path, tensors | narrow)
    assert_reads(source, tensors | exact)
    assert any("8-bit floats (fp8)" in remark for remark in source.remarks)


@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("scale", SCALES)
def test_scales_multiply_8_bit_floats(tmp_path, tensors, scale_name, scale):
    stored, expected = scaled(tensors, scale_name, lambda tensor: np.asarray(SCALES[scale](tensor)))
    stored[f"{UNET}scaled_fp8"] = np.zeros(0, ml_dtypes.float8_e4m3fn)
    stored[f"{LAYER}.{'scale_input' if scale_name == 'scale_weight' else 'input_scale'}"] = np.float32(1)
    source = opened(tmp_path, stored)
    assert_reads(source, expected)
    assert source.left_out == [
        f"{UNET}scaled_fp8",
        *[name for name in stored if name.endswith(("scale_input", "input_scale"))],
    ]
    close = expected[f"{LAYER}.weight"] - tensors[f"{LAYER}.weight"]
    assert 0 < np.abs(close).max() < 0.05 * np.abs(tensors[f"{LAYER}.weight"]).max()  # 3 bits after the first


def test_description_of_8_bit_floats_is_not_kept(tmp_path, tensors):
    stored, expected = scaled(tensors, "weight_scale", SCALES["a number"])
    layers = {LAYER: {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}}
    stored[f"{LAYER}.comfy_quant"] = np.frombuffer(json.dumps(layers[LAYER]).encode(), np.uint8)
    source = opened(tmp_path, stored, {"_quantization_metadata": json.dumps({"layers": layers}), "a": "b"})
    assert_reads(source, expected)
    assert source.metadata == {"a": "b"}


def with_marker(text):
    return {f"{LAYER}.comfy_quant": np.frombuffer(text, np.uint8)}


UNREADABLE = {
    "int8": {f"{LAYER}.weight": np.zeros((32, 32), np.int8), f"{LAYER}.weight_scale": np.float32(1)},
    "int8 without a scale": {f"{LAYER}.weight": np.zeros((32, 32), np.int8)},
    "blocks": {
        f"{LAYER}.weight": np.zeros((32, 32), ml_dtypes.float8_e4m3fn),
        f"{LAYER}.weight_scale": np.ones((2, 2), np.float32),
    },
    "a row of scales, of rows or columns": {
        f"{LAYER}.weight": np.zeros((32, 32), ml_dtypes.float8_e4m3fn),
        f"{LAYER}.weight_scale": np.ones(32, np.float32),
    },
    "powers of two": {f"{LAYER}.weight": np.ones((32, 32), np.float32).astype(ml_dtypes.float8_e8m0fnu)},
    "nvfp4": with_marker(b'{"format": "nvfp4"}'),
    "rotated": with_marker(b'{"format": "float8_e4m3fn", "convrot": true}'),
    "a list": with_marker(b"[1]"),
    "damaged": with_marker(b"{"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_other_quantizations_are_refused_with_the_file_to_take(tmp_path, tensors, kind):
    error = refusal(tmp_path, tensors | UNREADABLE[kind], CONFIG.to_metadata())
    assert "bfloat16" in error.hint
    assert "quantiz" in error.message or "fp8" in error.message


def test_metadata_of_another_quantization_are_refused(tmp_path, tensors):
    metadata = {"_quantization_metadata": json.dumps({"layers": {LAYER: {"format": "mxfp8"}}})}
    assert "mxfp8" in refusal(tmp_path, tensors, metadata).message


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F6_E3M2"])
def test_types_narrower_than_a_byte_are_refused(tmp_path, code):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_file({"a.weight": {"dtype": code, "shape": [4], "data_offsets": [0, 3]}}, bytes(3)))
    with pytest.raises(WeightsError, match=f"{path}.*quantized as {code}.*fp8") as caught:
        open_weights(path)
    assert "bfloat16" in caught.value.hint


def test_scale_without_a_layer_has_no_place(tmp_path, tensors):
    extra = {f"{UNET}nothing.scale_weight": np.float32(1)}
    assert "nothing.scale_weight" in refusal(tmp_path, tensors | extra).message


def test_two_scales_of_a_layer_are_refused(tmp_path, tensors):
    scales = {f"{LAYER}.{name}": np.float32(1) for name in ("scale_weight", "weight_scale")}
    assert "two scales" in refusal(tmp_path, tensors | scales).message


def test_8_bit_floats_that_are_not_finite_name_their_file(tmp_path, tensors):
    from sv3d_jax.weights.convert import convert

    wrong = {f"{LAYER}.weight": np.full((32, 32), np.nan, ml_dtypes.float8_e4m3fn)}
    with pytest.raises(WeightsError, match=f"{tmp_path}/model.safetensors: {LAYER}.weight holds values"):
        convert(opened(tmp_path, tensors | wrong), tmp_path / "out")
