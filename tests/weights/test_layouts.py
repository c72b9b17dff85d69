"""Files as other programs save them, each read to the published tensors or refused with the reason."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from sv3d_jax.errors import WeightsError
from sv3d_jax.models.config import METADATA_KEY
from sv3d_jax.weights.key_map import PREFIXES, model_parameters
from sv3d_jax.weights.source import open_weights
from tests.reference_weights import reference_tensor
from tests.tiny_model import CONFIG
from tests.weights.files import raw_file, write_tensors

UNET, IMAGE_ENCODER, ENCODER, DECODER = PREFIXES.values()
USED = [parameter.name for parameter in model_parameters(CONFIG)]
FLOAT8 = [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
LAYER = f"{UNET}middle_block.1.proj_in"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def opened(tmp_path, tensors, metadata=None, **options):
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
    return [name for name in tensors if name.startswith(UNET) and tensors[name].ndim == 2]


# 8-bit floats


@pytest.mark.parametrize("dtype", FLOAT8)
def test_8_bit_floats_are_read_without_rounding(tmp_path, tensors, dtype):
    narrow = {name: tensors[name].astype(dtype) for name in matrices(tensors)}
    exact = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in narrow.items()}
    for name, tensor in narrow.items():
        np.testing.assert_array_equal(tensor.astype(np.float32), exact[name].astype(np.float32))
    source = opened(tmp_path, tensors | narrow)
    assert_reads(source, tensors | exact)
    assert any("8-bit floats (fp8)" in remark for remark in source.remarks)


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


# names


def wrapped(name, wrapper):
    """A name as a trainer's wrapper makes it: around everything, around a root, within, and twice."""
    return {
        "around": f"{wrapper}.{name}",
        "twice": f"{wrapper}._orig_mod.{name}",
        "within": name.replace("diffusion_model.", f"diffusion_model.{wrapper}.").replace(
            "embedders.", f"{wrapper}.embedders."
        ),
        "deep": name.replace(".1.", f".1.{wrapper}.", 1),
    }


@pytest.mark.parametrize("where", ["around", "twice", "within", "deep"])
@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module"])
def test_wrappers_of_trainers_are_taken_off(tmp_path, tensors, wrapper, where):
    source = opened(tmp_path, {wrapped(name, wrapper)[where]: tensor for name, tensor in tensors.items()})
    assert_reads(source, tensors)
    assert source.tensors.keys() == tensors.keys()


@pytest.mark.parametrize("outer", ["state_dict.", "model.", "state_dict.module.model."])
def test_names_of_what_stands_around_a_model_are_taken_off(tmp_path, tensors, outer):
    assert_reads(opened(tmp_path, {outer + name: tensor for name, tensor in tensors.items()}), tensors)


def test_one_tensor_under_two_names_is_refused(tmp_path, tensors):
    twice = {f"module.{LAYER}.weight": tensors[f"{LAYER}.weight"]}
    error = refusal(tmp_path, tensors | twice)
    assert f"{LAYER}.weight" in error.message and f"'module.{LAYER}.weight'" in error.message


# averages


def dotless(name):
    """sgm's LitEma around the wrapper of the UNet: buffers cannot have dots in their names."""
    return f"model_ema.{name.removeprefix('model.').replace('.', '')}"


EMA_NAMES = {
    "sgm": dotless,
    "with dots": lambda name: f"model_ema.{name.removeprefix('model.')}",
    "whole": lambda name: f"ema.{name}",
    "of a bare UNet": lambda name: f"ema_model.module.{name.removeprefix(UNET)}",
}
COUNTERS = {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int32(7)}


def averages(naming):
    """Averages as a trainer stores them, and by published name."""
    values = {
        p.name: reference_tensor(p.name, p.shape, base_seed=5) for p in model_parameters(CONFIG, ["unet"])
    }
    return {EMA_NAMES[naming](name): tensor for name, tensor in values.items()}, values


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


# ComfyUI


def renamed(tensors, *pairs):
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


def test_encoder_of_the_first_stage_is_read(tmp_path, tensors):
    used = {name: tensors[name] for name in USED}
    source = opened(tmp_path, renamed(used, *FIRST_HALF))
    assert_reads(source, tensors)
    assert any("first_stage_model.encoder" in remark for remark in source.remarks)


def test_encoder_of_the_first_stage_is_no_other_one_s_place(tmp_path, tensors):
    """Where both are, the conditioning encoder is the one that SV3D uses."""
    other = {
        "first_stage_model.encoder.conv_in.weight": np.zeros_like(tensors[f"{ENCODER}encoder.conv_in.weight"])
    }
    assert_reads(opened(tmp_path, tensors | other), tensors)


def test_encoder_without_its_last_convolution_is_not_whole(tmp_path, tensors):
    used = {name: tensors[name] for name in USED if ".quant_conv." not in name}
    assert "quant_conv" in refusal(tmp_path, renamed(used, *FIRST_HALF)).message


@pytest.mark.parametrize("place", ["first_stage_model.", ENCODER])
def test_one_autoencoder_for_both_halves_is_read(tmp_path, tensors, place):
    """As ComfyUI saves it: the decoder is the conditioning one's, with its own first convolution."""
    one = {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage_model.")}
    source = opened(tmp_path, renamed(one, (ENCODER, place)))
    assert source.config.vae == replace(CONFIG.vae, post_quant_conv=True, norm_groups=32)
    decoder = [p for p in model_parameters(source.config, ["vae_decoder"])]
    names = {p.name: p.name.replace("first_stage_model.", ENCODER) for p in decoder}
    for name, tensor in zip(names, source.stream(list(names)), strict=True):
        np.testing.assert_array_equal(tensor, tensors[names[name]])
    encoder = [name for name in USED if name.startswith(ENCODER)]
    for name, tensor in zip(encoder, source.stream(encoder), strict=True):
        np.testing.assert_array_equal(tensor, tensors[name])


@pytest.mark.parametrize("part", ["q", "k", "v", "proj_out"])
@pytest.mark.parametrize(
    "half", [f"{ENCODER}encoder", "first_stage_model.decoder", "first_stage_model.encoder"]
)
def test_attention_of_an_autoencoder_as_linear_layers_is_read(tmp_path, tensors, half, part):
    name = f"{half}.mid.attn_1.{part}.weight"
    given = tensors
    if half == "first_stage_model.encoder":
        given = renamed({name: tensors[name] for name in USED}, *FIRST_HALF)
    assert given[name].shape == (16, 16, 1, 1)
    assert_reads(opened(tmp_path, {**given, name: given[name][:, :, 0, 0]}), tensors)


def test_linear_attention_of_8_bit_floats_is_read(tmp_path, tensors):
    names = [name for name in USED if ".attn_1." in name and tensors[name].ndim == 4]
    narrow = {name: tensors[name].astype(ml_dtypes.float8_e5m2) for name in names}
    linear = {name: tensor[:, :, 0, 0] for name, tensor in narrow.items()}
    exact = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in narrow.items()}
    assert_reads(opened(tmp_path, tensors | linear), tensors | exact)


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


def test_image_encoder_of_the_transformers_library_is_read(tmp_path, tensors):
    rest = {name: tensors[name] for name in USED if not name.startswith(IMAGE_ENCODER)}
    extra = {
        "edm_vpred.sigma_max": np.float32(700),
        "edm_vpred.sigma_min": np.float32(0.002),
        f"{IMAGE_ENCODER}vision_model.embeddings.position_ids": np.arange(5)[None],
    }
    source = opened(tmp_path, rest | transformers_image_encoder(tensors) | extra)
    assert_reads(source, tensors)
    assert set(source.left_out) == extra.keys()


def test_image_encoder_with_a_missing_third_is_not_whole(tmp_path, tensors):
    rest = {name: tensors[name] for name in USED if not name.startswith(IMAGE_ENCODER)}
    encoder = transformers_image_encoder(tensors)
    del encoder[f"{IMAGE_ENCODER}vision_model.encoder.layers.0.self_attn.k_proj.weight"]
    assert "in_proj_weight" in refusal(tmp_path, rest | encoder).message


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize(
    "parts, lacks",
    [
        ([UNET], ["image encoder", "autoencoder's encoder", "autoencoder's decoder"]),
        ([UNET, IMAGE_ENCODER], ["autoencoder's encoder"]),
        ([UNET, ENCODER], ["image encoder"]),
    ],
)
def test_absent_parts_are_named(tmp_path, tensors, parts, lacks, described):
    some = {name: tensors[name] for name in USED if name.startswith(tuple(parts))}
    error = refusal(tmp_path, some, CONFIG.to_metadata() if described else None)
    assert all(part in f"{error.message} {error.hint}" for part in lacks)
    assert "UNet (" not in f"{error.message} {error.hint}"


def test_model_whose_widths_cannot_be_known_is_not_whole(tmp_path, tensors):
    some = {name: tensors[name] for name in USED if not name.startswith(f"{UNET}middle_block.")}
    assert "not a whole SV3D model: tensors are missing" in refusal(tmp_path, some).message


# LoRA

LORAS = {
    "kohya": ["lora_unet_input_blocks_1_1_proj_in.lora_down.weight", "lora_unet_x.alpha"],
    "diffusers processors": [
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight"
    ],
    "diffusers": ["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"],
    "diffusers, older": ["unet.down_blocks.0.attentions.0.proj_in.lora.up.weight"],
    "diffusers, linear": ["unet.mid_block.attentions.0.to_k.lora_linear_layer.down.weight"],
    "peft": ["base_model.model.input_blocks.1.1.proj_in.lora_A.default.weight"],
    "compiled": [f"module.{LAYER}.lora_B.weight"],
    "LoHa": ["lora_unet_input_blocks_1_1_proj_in.hada_w1_a"],
    "LoKr": ["diffusion_model.input_blocks.1.1.proj_in.lokr_w1"],
}


@pytest.mark.parametrize("kind", LORAS)
def test_lora_is_called_one_and_the_hint_is_to_merge_it(tmp_path, kind):
    error = refusal(tmp_path, {name: np.zeros((4, 4), np.float32) for name in LORAS[kind]})
    assert "LoRA" in error.message and "merge" in error.hint


@pytest.mark.parametrize("described", [False, True])
def test_model_with_layers_that_are_not_merged_is_answered_with_merge(tmp_path, tensors, described):
    name = f"{LAYER}.weight"
    layers = {f"{LAYER}.base_layer.weight": tensors[name], f"{LAYER}.lora_A.weight": np.zeros((4, 32), "f4")}
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    error = refusal(tmp_path, rest | layers, CONFIG.to_metadata() if described else None)
    assert "LoRA" in error.message and "merge" in error.hint


# all of it together


def test_kinds_may_come_together(tmp_path, tensors):
    used = {name: tensors[name] for name in USED}
    stored, expected = scaled(used, "scale_weight", lambda t: np.asarray(SCALES["a number"](t)))
    rest = {name: tensor for name, tensor in stored.items() if not name.startswith(IMAGE_ENCODER)}
    together = renamed(rest | transformers_image_encoder(tensors), *FIRST_HALF)
    name = "first_stage_model.encoder.mid.attn_1.q.weight"
    together[name] = together[name][:, :, 0, 0]
    source = opened(
        tmp_path, {f"module.{key}": tensor for key, tensor in together.items()} | averages("whole")[0]
    )
    assert_reads(source, expected)


def test_damaged_description_of_the_model_names_the_file(tmp_path, tensors):
    with pytest.raises(WeightsError, match=f"{tmp_path}/model.safetensors: the model description"):
        opened(tmp_path, tensors, {METADATA_KEY: "{"})
