"""Files as other programs save them, each read to the published tensors or refused with the reason."""

import numpy as np
import pytest

from sv3d_jax.errors import WeightsError
from sv3d_jax.models.config import METADATA_KEY
from tests.tiny_model import CONFIG
from tests.weights.foreign_files import (
    ENCODER,
    FIRST_HALF,
    IMAGE_ENCODER,
    LAYER,
    SCALES,
    UNET,
    USED,
    assert_reads,
    averages,
    opened,
    refusal,
    renamed,
    scaled,
    transformers_image_encoder,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


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


# absent parts


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
