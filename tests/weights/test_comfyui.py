"""Models as ComfyUI saves them: one autoencoder, linear attention, transformers' image encoder."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from sv3d_jax.weights.key_map import model_parameters
from tests.tiny_model import CONFIG
from tests.weights.foreign_files import (
    ENCODER,
    FIRST_HALF,
    IMAGE_ENCODER,
    USED,
    assert_reads,
    opened,
    refusal,
    renamed,
    transformers_image_encoder,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


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
