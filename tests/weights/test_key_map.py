import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.vae import init_vae
from sv3d_jax.weights.key_map import (
    Parameter,
    infer_config,
    is_extra,
    model_parameters,
    tree_from_leaves,
)
from tests.tiny_model import CONFIG
from tests.weights.files import unused_shapes

REFERENCE = Path(__file__).parents[1] / "reference"


def stored_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    keys = json.loads((REFERENCE / f"sv3d_{variant}.keys.json").read_text())["keys"]
    return {name: tuple(shape) for name, shape in keys.items()}


def used_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {parameter.name: parameter.shape for parameter in model_parameters(config)}


@pytest.mark.parametrize("variant", ["u", "p"])
def test_enumeration_is_the_published_list_but_for_the_text_half(variant):
    config = ModelConfig.published(variant)
    published = stored_shapes(variant)
    text = {name: published[name] for name in published if is_extra(name) and ".open_clip." in name}
    assert len(text) == 6
    assert used_shapes(config) | unused_shapes(config) | text == published


@pytest.mark.parametrize("variant", ["u", "p"])
def test_tensors_that_the_model_uses_are_no_extras(variant):
    assert not any(is_extra(name) for name in used_shapes(ModelConfig.published(variant)))


@pytest.mark.parametrize("variant", ["u", "p"])
def test_published_shapes_tell_the_published_configuration(variant):
    inferred = ModelConfig.from_dict({"name": f"sv3d_{variant}", **infer_config(stored_shapes(variant))})
    assert inferred == ModelConfig.published(variant)


def test_shapes_of_another_model_tell_its_widths():
    inferred = ModelConfig.from_dict(infer_config(used_shapes(CONFIG)))
    assert used_shapes(inferred) == used_shapes(CONFIG)


@pytest.mark.parametrize("post_quant_conv", [False, True])
def test_shapes_tell_whether_a_convolution_stands_before_the_decoder(post_quant_conv):
    config = replace(CONFIG, vae=replace(CONFIG.vae, post_quant_conv=post_quant_conv))
    inferred = ModelConfig.from_dict(infer_config(used_shapes(config)))
    assert inferred.vae.post_quant_conv is post_quant_conv
    assert used_shapes(inferred) == used_shapes(config)


def test_the_convolution_before_the_decoder_is_a_part_of_it():
    config = replace(CONFIG, vae=replace(CONFIG.vae, post_quant_conv=True))
    tree = tree_from_leaves((p.path, p.tree_shape) for p in model_parameters(config, ["vae_decoder"]))
    params = jax.eval_shape(lambda: init_vae(config.vae, jax.random.key(0)))["vae_decoder"]
    assert tree["vae_decoder"] == jax.tree.map(lambda leaf: leaf.shape, dict(params))
    names = {p.name for p in model_parameters(config)} - {p.name for p in model_parameters(CONFIG)}
    assert names == {f"first_stage_model.post_quant_conv.{kind}" for kind in ("weight", "bias")}


def test_no_two_tensors_share_a_place():
    paths = [parameter.path for parameter in model_parameters(ModelConfig.published("p"))]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    "name, path",
    [
        (
            "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
            "unet/input_blocks_1_0/in_layers_2/kernel",
        ),
        ("model.diffusion_model.label_emb.0.0.bias", "unet/label_emb_0_0/bias"),
        (
            "model.diffusion_model.middle_block.1.time_stack.0.norm_in.weight",
            "unet/middle_block_1/time_stack_0/norm_in/scale",
        ),
        (
            "model.diffusion_model.input_blocks.4.1.time_mixer.mix_factor",
            "unet/input_blocks_4_1/time_mixer/mix_factor",
        ),
        (
            "conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.3.attn.in_proj_weight",
            "image_tower/transformer/resblocks_3/attn/in_proj/kernel",
        ),
        ("conditioner.embedders.0.open_clip.model.visual.proj", "image_tower/proj"),
        (
            "conditioner.embedders.1.encoder.encoder.mid.attn_1.norm.weight",
            "vae_encoder/encoder/mid/attn_1/norm/scale",
        ),
        ("conditioner.embedders.1.encoder.quant_conv.weight", "vae_encoder/quant_conv/kernel"),
        (
            "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight",
            "vae_decoder/up_1/block_0/nin_shortcut/kernel",
        ),
    ],
)
def test_path_mirrors_the_published_name(name, path):
    places = {p.name: "/".join(p.path) for p in model_parameters(ModelConfig.published("p"))}
    assert places[name] == path


@pytest.mark.parametrize(
    "shape, axes",
    [((6, 5), "oi->io"), ((6, 5, 3, 2), "oihw->hwio"), ((6, 5, 3, 1, 1), "oitab->tio")],
)
def test_kernel_axes_are_those_of_a_channels_last_layer(shape, axes):
    tensor = np.random.default_rng(0).normal(size=shape)
    parameter = Parameter("layer.weight", shape, ("layer", "kernel"))
    np.testing.assert_array_equal(parameter.to_tree(tensor), np.einsum(axes, tensor))


def test_way_back_restores_every_tensor():
    for parameter in model_parameters(CONFIG):
        tensor = np.arange(np.prod(parameter.shape)).reshape(parameter.shape)
        leaf = parameter.to_tree(tensor)
        assert leaf.shape == parameter.tree_shape
        np.testing.assert_array_equal(parameter.to_published(leaf), tensor)


def test_tree_nests_by_path():
    assert tree_from_leaves([(("a", "b"), 1), (("a", "c"), 2), (("d",), 3)]) == {
        "a": {"b": 1, "c": 2},
        "d": 3,
    }
