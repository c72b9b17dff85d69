"""Tensors as other programs store them, and the checks of reading them to the published ones."""

import ml_dtypes
import numpy as np
import pytest

from sv3d_jax.errors import WeightsError
from sv3d_jax.weights.key_map import PREFIXES, model_parameters
from sv3d_jax.weights.source import open_weights
from tests.reference_weights import reference_tensor
from tests.tiny_model import CONFIG
from tests.weights.files import write_tensors

UNET, IMAGE_ENCODER, ENCODER, _ = PREFIXES.values()
USED = [parameter.name for parameter in model_parameters(CONFIG)]
LAYER = f"{UNET}middle_block.1.proj_in"


def opened(tmp_path, tensors, metadata=None, **options):
    """The source of a file that holds these tensors."""
    return open_weights(write_tensors(tmp_path / "model.safetensors", tensors, metadata), **options)


def refusal(tmp_path, tensors, metadata=None, **options):
    """The error of a file, which names the file and says what to do."""
    with pytest.raises(WeightsError) as caught:
        opened(tmp_path, tensors, metadata, **options)
    assert str(tmp_path / "model.safetensors") in caught.value.message
    assert caught.value.hint
    return caught.value


def assert_reads(source, expected):
    """Every tensor that the model uses is there, to the bit."""
    assert {name for name in USED if name in source.tensors} == set(USED)
    for name, tensor in zip(USED, source.stream(USED), strict=True):
        assert (tensor.dtype, tensor.shape) == (source.tensors[name].dtype, source.tensors[name].shape)
        assert tensor.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


def matrices(tensors):
    """Names of the matrices of the UNet."""
    return [name for name in tensors if name.startswith(UNET) and tensors[name].ndim == 2]


def scaled(tensors, scale_name, scale_of, dtype=ml_dtypes.float8_e4m3fn):
    """Tensors with matrices as 8-bit floats, and the values that these and their scales stand for."""
    stored, expected = dict(tensors), dict(tensors)
    for name in matrices(tensors):
        scale = scale_of(tensors[name])
        stored[name] = (tensors[name] / scale).astype(dtype)
        stored[name.removesuffix("weight") + scale_name] = scale
        rows = scale.reshape(scale.shape if scale.size > 1 else ())
        expected[name] = stored[name].astype(np.float32) * rows
    return stored, expected


SCALES = {
    "a number": lambda tensor: np.float32(np.abs(tensor).max() / 448),
    "one": lambda tensor: np.float32([np.abs(tensor).max() / 448]),
    "one a row": lambda tensor: np.abs(tensor).max(1, keepdims=True) / np.float32(448),
}


def dotless(name):
    """sgm's LitEma around the wrapper of the UNet: buffers cannot have dots in their names."""
    return f"model_ema.{name.removeprefix('model.').replace('.', '')}"


EMA_NAMES = {
    "sgm": dotless,
    "with dots": lambda name: f"model_ema.{name.removeprefix('model.')}",
    "whole": lambda name: f"ema.{name}",
    "of a bare UNet": lambda name: f"ema_model.module.{name.removeprefix(UNET)}",
}


def averages(naming):
    """Averages as a trainer stores them, and by published name."""
    values = {
        p.name: reference_tensor(p.name, p.shape, base_seed=5) for p in model_parameters(CONFIG, ["unet"])
    }
    return {EMA_NAMES[naming](name): tensor for name, tensor in values.items()}, values


def renamed(tensors, *pairs):
    """Tensors whose names begin otherwise, by pairs of an old and a new beginning."""

    def name_of(name):
        for old, new in pairs:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return {name_of(name): tensor for name, tensor in tensors.items()}


FIRST_HALF = [
    (f"{ENCODER}encoder.", "first_stage_model.encoder."),
    (f"{ENCODER}quant", "first_stage_model.quant"),
]


def transformers_image_encoder(tensors):
    """The image encoder under the names of the transformers library, as ComfyUI saves it."""
    stored = {}
    names = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    for name in [name for name in USED if name.startswith(IMAGE_ENCODER)]:
        tensor, short = tensors[name], name.removeprefix(IMAGE_ENCODER)
        if short == "proj":
            stored[f"{IMAGE_ENCODER}visual_projection.weight"] = np.ascontiguousarray(tensor.T)
        elif "in_proj" in short:
            layer = short.split(".")[2]
            for letter, third in zip("qkv", np.split(tensor, 3), strict=True):
                kind = short.rpartition("_")[2]
                stored[
                    f"{IMAGE_ENCODER}vision_model.encoder.layers.{layer}.self_attn.{letter}_proj.{kind}"
                ] = third
        else:
            new = names.get(short, short)
            for old, instead in (
                ("transformer.resblocks.", "encoder.layers."),
                ("ln_pre", "pre_layrnorm"),
                ("ln_post", "post_layernorm"),
                ("ln_", "layer_norm"),
                ("attn.out_proj", "self_attn.out_proj"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                new = new.replace(old, instead)
            stored[f"{IMAGE_ENCODER}vision_model.{new}"] = tensor
    return stored
