import re
import time

import numpy as np
import pytest

from sv3d_jax.errors import WeightsError
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.families import FAMILIES
from sv3d_jax.weights.source import cast, inferred_config, open_weights
from tests.tiny_model import CONFIG
from tests.weights.files import raw_file, write_shapes, write_tensors

UNET = "model.diffusion_model."
IMAGE_MODEL = {
    f"{UNET}time_embed.0.weight": (8, 2),
    f"{UNET}input_blocks.1.0.in_layers.2.weight": (2, 2, 3, 3),
    "first_stage_model.decoder.conv_in.weight": (2, 4, 3, 3),
}
OTHER_MODELS = {
    "Stable Video Diffusion": {f"{UNET}label_emb.0.0.weight": (8, 768), **IMAGE_MODEL},
    "SVD": {"first_stage_model.decoder.conv_out.time_mix_conv.weight": (3, 3, 3, 1, 1), **IMAGE_MODEL},
    "condition vector": {f"{UNET}label_emb.0.0.weight": (8, 2816), **IMAGE_MODEL},
    "the condition vector": {f"{UNET}label_emb.0.0.weight": (8,), **IMAGE_MODEL},
    "a LoRA": {"lora_unet_input_blocks_1_1_proj_in.lora_up.weight": (8, 4)},
    "a bare VAE": {"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)},
    "a bare UNet": {"input_blocks.0.0.weight": (8, 8, 3, 3), "out.2.weight": (4, 8, 3, 3)},
    "a CLIP model": {"visual.conv1.weight": (8, 3, 14, 14), "logit_scale": ()},
    "without a time axis": IMAGE_MODEL,
    "something else": {"layers.0.weight": (3, 3), "layers.1.weight": (3, 3)},
    "empty": {},
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_other_model_is_called_by_its_name(tmp_path, kind):
    path = write_shapes(tmp_path / "model.safetensors", OTHER_MODELS[kind])
    with pytest.raises(WeightsError, match=f"not an SV3D model.*{kind}") as caught:
        open_weights(path)
    assert str(path) in caught.value.message


def test_file_without_description_takes_published_values_for_what_shapes_hide(tmp_path, tensors):
    config = open_weights(write_tensors(tmp_path / "x.safetensors", tensors)).config
    published = ModelConfig.published("p")
    assert (config.unet.model_channels, config.unet.channel_mult) == (16, (1, 2))
    assert (config.sigma_max, config.unet.head_width) == (published.sigma_max, published.unet.head_width)


def test_published_values_are_those_of_the_family(tensors):
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = inferred_config(shapes, {"variant": "v3d"})
    family = FAMILIES["v3d"]
    assert (config.name, config.native_size, config.num_frames) == ("v3d", 512, 18)
    assert (config.cfg_min, config.cfg_max, config.cond_aug) == (
        family.cfg_min,
        family.cfg_max,
        family.cond_aug,
    )


def test_stored_fields_fill_in_what_shapes_hide(tmp_path, tensors):
    path = write_tensors(tmp_path / "x.safetensors", tensors)
    config = open_weights(path, {"unet": {"head_width": 8}, "sigma_max": 20.0}).config
    assert (config.unet.head_width, config.sigma_max, config.unet.model_channels) == (8, 20.0, 16)


def test_description_in_the_metadata_is_taken_whole(checkpoint):
    assert open_weights(checkpoint).config == CONFIG


def test_model_file_describes_a_folder(folder):
    assert open_weights(folder).config == CONFIG


def test_absent_tensor_is_named(tmp_path, tensors):
    rest = dict(tensors)
    name = f"{UNET}middle_block.0.in_layers.2.weight"
    del rest[name]
    path = write_tensors(tmp_path / "x.safetensors", rest, CONFIG.to_metadata())
    with pytest.raises(WeightsError, match=f"1 tensors of tiny are missing.*{re.escape(name)}"):
        open_weights(path)


@pytest.mark.parametrize("name", ["model.diffusion_model.foo.weight", "../../etc/passwd", "lora\x1b[31m", ""])
def test_unknown_tensor_is_named(tmp_path, tensors, name):
    extra = {**tensors, name: np.zeros(2, np.float32)}
    path = write_tensors(tmp_path / "x.safetensors", extra, CONFIG.to_metadata())
    with pytest.raises(WeightsError, match="1 tensors of .* have no place in tiny") as caught:
        open_weights(path)
    assert repr(name) in caught.value.message and "\x1b" not in caught.value.message


def test_wrong_shape_is_named(tmp_path, tensors):
    name = f"{UNET}out.2.bias"
    path = write_tensors(
        tmp_path / "x.safetensors", {**tensors, name: np.zeros(5, np.float32)}, CONFIG.to_metadata()
    )
    with pytest.raises(WeightsError, match=rf"{re.escape(name)} should have the shape \(4,\), it has \(5,\)"):
        open_weights(path)


def test_integer_weights_are_refused(tmp_path, tensors):
    name = f"{UNET}out.2.bias"
    path = write_tensors(
        tmp_path / "x.safetensors", {**tensors, name: np.zeros(4, np.int32)}, CONFIG.to_metadata()
    )
    with pytest.raises(WeightsError, match=f"{re.escape(name)} is int32"):
        open_weights(path)


def test_text_half_may_be_absent(tmp_path, tensors):
    used = {
        name: tensor
        for name, tensor in tensors.items()
        if ".open_clip.model.visual." in name or "open_clip" not in name
    }
    assert len(used) < len(tensors)
    path = write_tensors(tmp_path / "x.safetensors", used, CONFIG.to_metadata())
    assert open_weights(path).tensors.keys() == used.keys()


def test_first_stage_encoder_is_tolerated(tmp_path, tensors):
    name = "first_stage_model.encoder.conv_in.weight"
    path = write_tensors(
        tmp_path / "x.safetensors", {**tensors, name: np.zeros(2, np.float32)}, CONFIG.to_metadata()
    )
    assert name in open_weights(path).tensors


def test_crowd_of_empty_tensors_is_refused_at_once(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file({f"tensor.{index}": entry for index in range(200_000)}))
    start = time.process_time()
    with pytest.raises(WeightsError, match="its header names 200000 tensors, more than"):
        open_weights(path)
    assert time.process_time() - start < 20


def test_description_of_an_unknown_field_is_refused(tmp_path, tensors):
    metadata = {key: text.replace('"rho"', '"rhoo"') for key, text in CONFIG.to_metadata().items()}
    with pytest.raises(WeightsError, match="unknown key rhoo"):
        open_weights(write_tensors(tmp_path / "x.safetensors", tensors, metadata))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = '\xff'", "model.toml is not TOML that can be read"),
        (b"name = 3 = 4", "model.toml is not TOML that can be read: .*line 1"),
    ],
)
def test_model_file_that_cannot_be_read_is_refused_by_its_name(tmp_path, content, says):
    (tmp_path / "params").mkdir()
    (tmp_path / "model.toml").write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        open_weights(tmp_path)


def test_absent_path_is_a_weights_error(tmp_path):
    with pytest.raises(WeightsError, match="no weights .*nothing; searched: /"):
        open_weights(tmp_path / "nothing")


def test_folder_without_weights_says_what_it_lacks(tmp_path):
    with pytest.raises(WeightsError, match="holds no weights: neither params/ nor model.toml"):
        open_weights(tmp_path)


def test_folder_of_pickles_is_refused_with_advice(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsError, match="pytorch_model.bin is a pickle"):
        open_weights(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_value_that_is_not_finite_is_refused(value, dtype):
    with pytest.raises(WeightsError, match="layer.weight holds values that are not finite"):
        cast(np.float32([1, value]).astype(dtype), "layer.weight", None)


def test_value_beyond_the_range_of_float16_is_refused():
    with pytest.raises(WeightsError, match="layer.weight holds values beyond the range of float16"):
        cast(np.float32([1e5]), "layer.weight", np.dtype(np.float16))


def test_tensor_keeps_its_type_unless_asked():
    tensor = np.float16([1, 2])
    assert cast(tensor, "layer.weight", None) is tensor
