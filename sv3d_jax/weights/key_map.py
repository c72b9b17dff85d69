"""Published tensor names and shapes of a model, and the place of each tensor in the parameter tree.

A path mirrors the published name: dots become slashes, and a number is joined to the name before it.

    model.diffusion_model.input_blocks.1.0.in_layers.2.weight -> unet/input_blocks_1_0/in_layers_2/kernel
    conditioner.embedders.1.encoder.encoder.mid.attn_1.norm.weight -> vae_encoder/encoder/mid/attn_1/norm/scale

Names and shapes are listed from a `ModelConfig`. So a file can be judged by its header alone, and the name of a path is
looked up.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np

from sv3d_jax.models.config import ImageEncoderConfig, ModelConfig, UNetConfig, VAEConfig
from sv3d_jax.models.families import family_of_width
from sv3d_jax.models.unet_layout import LayerKind, input_blocks, layout_fields, middle_block, output_blocks

Shape = tuple[int, ...]

PREFIXES = {
    "unet": "model.diffusion_model.",
    "image_tower": "conditioner.embedders.0.open_clip.model.visual.",
    "vae_encoder": "conditioner.embedders.1.encoder.",
    "vae_decoder": "first_stage_model.decoder.",
}
POST_QUANT_CONV = "first_stage_model.post_quant_conv."  # before the decoder, where a model has it
_CLIP = "conditioner.embedders.0.open_clip.model."
# Published tensors that the model does not use: the rest of CLIP's text half, the decoder of the conditioning
# autoencoder, and the encoder of the first stage where a file has one.
_EXTRA_PREFIXES = (
    f"{_CLIP}ln_final.",
    f"{_CLIP}token_embedding.",
    f"{PREFIXES['vae_encoder']}decoder.",
    f"{PREFIXES['vae_encoder']}post_quant_conv.",
    "first_stage_model.encoder.",
)
_EXTRA_NAMES = (f"{_CLIP}positional_embedding", f"{_CLIP}text_projection", f"{_CLIP}logit_scale")


@dataclass(frozen=True)
class Parameter:
    """One tensor: its published name and shape, and its path in the parameter tree."""

    name: str
    shape: Shape
    path: tuple[str, ...]

    @property
    def tree_shape(self) -> Shape:
        """Shape in the parameter tree."""
        if len(self.shape) == 5:
            return (self.shape[2], self.shape[1], self.shape[0])
        return tuple(self.shape[axis] for axis in self._axes)

    def to_tree(self, tensor: np.ndarray) -> np.ndarray:
        """Published layout to that of the parameter tree: (in, out), HWIO or, over time, (3, in, out)."""
        if tensor.ndim == 5:
            tensor = tensor[..., 0, 0]
        return tensor.transpose(self._axes)

    def to_published(self, leaf: np.ndarray) -> np.ndarray:
        """Inverse of `to_tree`."""
        return leaf.transpose(np.argsort(self._axes)).reshape(self.shape)

    @property
    def _axes(self) -> Shape:
        if self.path[-1] != "kernel":
            return tuple(range(len(self.shape)))
        return {2: (1, 0), 4: (2, 3, 1, 0), 5: (2, 1, 0)}[len(self.shape)]


def model_parameters(config: ModelConfig, parts: Iterable[str] = tuple(PREFIXES)) -> list[Parameter]:
    """Every tensor of the given parts of the model, without those that it does not use."""
    enumerate_part = {
        "unet": lambda: _unet(config.unet),
        "image_tower": lambda: _image_encoder(config.image_encoder),
        "vae_encoder": lambda: _vae_encoder(config.vae),
        "vae_decoder": lambda: _vae_decoder(config.vae),
    }
    parts = tuple(parts)
    parameters = [
        Parameter(PREFIXES[part] + name, shape, (part, *_tree_path(name, len(shape))))
        for part in parts
        for name, shape in enumerate_part[part]()
    ]
    if config.vae.post_quant_conv and "vae_decoder" in parts:
        latent = config.vae.latent_channels
        parameters += [
            Parameter("first_stage_model." + name, shape, ("vae_decoder", *_tree_path(name, len(shape))))
            for name, shape in _layer("post_quant_conv", latent, latent, 1, 1)
        ]
    return parameters


def is_extra(name: str) -> bool:
    """Whether a published tensor is one that the model does not use."""
    return name.startswith(_EXTRA_PREFIXES) or name in _EXTRA_NAMES


def leaf_at(tree: Any, path: tuple[str, ...]) -> Any:
    """The leaf of a tree of dicts at a path."""
    return reduce(getitem, path, tree)


def tree_from_leaves(leaves: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """Nested dict of (path, leaf) pairs."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def infer_config(shapes: Mapping[str, Shape], variant: str | None = None) -> dict[str, Any]:
    """The fields of a `ModelConfig` that follow from the shapes of a checkpoint, as nested plain values.

    Head widths do not follow. Raises KeyError if a tensor is missing that every model of this kind has; ValueError,
    IndexError or ZeroDivisionError if shapes do not fit together.
    """
    return {
        "variant": variant or _variant(shapes[PREFIXES["unet"] + "label_emb.0.0.weight"][1]),
        "unet": _infer_unet(_part(shapes, "unet")),
        "vae": _infer_vae(_part(shapes, "vae_encoder"))
        | {"post_quant_conv": f"{POST_QUANT_CONV}weight" in shapes},
        "tower": _infer_image_encoder(_part(shapes, "image_tower")),
    }


def _variant(vector_width: int) -> str:
    variant = family_of_width(vector_width)
    if variant is None:
        raise KeyError(f"label_emb.0.0.weight of width {vector_width}")
    return variant


def _tree_path(name: str, rank: int) -> tuple[str, ...]:
    path: list[str] = []
    for segment in name.split("."):
        if segment.isdecimal():
            path[-1] += f"_{segment}"
        else:
            path.append(segment)
    if path[-1].startswith("in_proj_"):  # a plain parameter of torch's packed attention
        path[-1:] = ["in_proj", path[-1].removeprefix("in_proj_")]
    if path[-1] == "weight":
        path[-1] = "scale" if rank == 1 else "kernel"
    return tuple(path)


Named = Iterator[tuple[str, Shape]]


def _layer(name: str, inputs: int, outputs: int, *kernel: int, bias: bool = True) -> Named:
    """A linear layer, or a convolution when kernel sizes are given."""
    yield f"{name}.weight", (outputs, inputs, *kernel)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, channels: int) -> Named:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _unet(config: UNetConfig) -> Named:
    base, emb = config.model_channels, config.embedding_width
    yield from _layer("time_embed.0", base, emb)
    yield from _layer("time_embed.2", emb, emb)
    yield from _layer("label_emb.0.0", config.vector_width, emb)
    yield from _layer("label_emb.0.2", emb, emb)

    blocks = [*input_blocks(config), middle_block(config), *output_blocks(config)]
    for block in blocks:
        channels = block.inputs
        for place, kind in enumerate(block.layers):
            yield from _unet_layer(kind, f"{block.name}.{place}", channels, block.outputs, config)
            channels = block.outputs
    channels = blocks[-1].outputs
    yield from _norm("out.0", channels)
    yield from _layer("out.2", channels, config.out_channels, 3, 3)


def _unet_layer(kind: LayerKind, name: str, inputs: int, outputs: int, config: UNetConfig) -> Named:
    match kind:
        case "conv":
            yield from _layer(name, inputs, outputs, 3, 3)
        case "downsample":
            yield from _layer(f"{name}.op", inputs, outputs, 3, 3)
        case "upsample":
            yield from _layer(f"{name}.conv", inputs, outputs, 3, 3)
        case "res_block":
            yield from _video_res_block(name, inputs, outputs, config.embedding_width)
        case "transformer":
            yield from _transformer(name, outputs, config)


# The tensor by which a layer of an input block is recognised. Its first axis is the output channels.
_KNOWN_BY: dict[LayerKind, str] = {
    "conv": "weight",
    "downsample": "op.weight",
    "res_block": "out_layers.3.weight",
    "transformer": "norm.weight",
}


def _video_res_block(name: str, inputs: int, outputs: int, emb: int) -> Named:
    yield from _res_block(name, inputs, outputs, emb, (3, 3))
    yield from _res_block(f"{name}.time_stack", outputs, outputs, emb, (3, 1, 1))
    yield f"{name}.time_mixer.mix_factor", (1,)


def _res_block(name: str, inputs: int, outputs: int, emb: int, kernel: Shape) -> Named:
    yield from _norm(f"{name}.in_layers.0", inputs)
    yield from _layer(f"{name}.in_layers.2", inputs, outputs, *kernel)
    yield from _layer(f"{name}.emb_layers.1", emb, outputs)
    yield from _norm(f"{name}.out_layers.0", outputs)
    yield from _layer(f"{name}.out_layers.3", outputs, outputs, *kernel)
    if inputs != outputs:
        yield from _layer(f"{name}.skip_connection", inputs, outputs, 1, 1)


def _transformer(name: str, channels: int, config: UNetConfig) -> Named:
    yield from _norm(f"{name}.norm", channels)
    yield from _layer(f"{name}.proj_in", channels, channels)
    yield from _transformer_block(f"{name}.transformer_blocks.0", channels, config)
    yield from _layer(f"{name}.proj_out", channels, channels)
    yield from _norm(f"{name}.time_stack.0.norm_in", channels)
    yield from _feed_forward(f"{name}.time_stack.0.ff_in", channels, config.ff_mult)
    yield from _transformer_block(f"{name}.time_stack.0", channels, config)
    yield from _layer(f"{name}.time_pos_embed.0", channels, 4 * channels)
    yield from _layer(f"{name}.time_pos_embed.2", 4 * channels, channels)
    yield f"{name}.time_mixer.mix_factor", (1,)


def _transformer_block(name: str, channels: int, config: UNetConfig) -> Named:
    for attention, context in (("attn1", channels), ("attn2", config.context_width)):
        yield from _layer(f"{name}.{attention}.to_q", channels, channels, bias=False)
        yield from _layer(f"{name}.{attention}.to_k", context, channels, bias=False)
        yield from _layer(f"{name}.{attention}.to_v", context, channels, bias=False)
        yield from _layer(f"{name}.{attention}.to_out.0", channels, channels)
    yield from _feed_forward(f"{name}.ff", channels, config.ff_mult)
    for norm in ("norm1", "norm2", "norm3"):
        yield from _norm(f"{name}.{norm}", channels)


def _feed_forward(name: str, channels: int, mult: int) -> Named:
    yield from _layer(f"{name}.net.0.proj", channels, 2 * mult * channels)  # value, then gate
    yield from _layer(f"{name}.net.2", mult * channels, channels)


def _image_encoder(config: ImageEncoderConfig) -> Named:
    width = config.width
    yield "class_embedding", (width,)
    yield "positional_embedding", (config.num_tokens, width)
    yield "proj", (width, config.output_width)
    yield from _layer("conv1", 3, width, config.patch, config.patch, bias=False)
    yield from _norm("ln_pre", width)
    for index in range(config.layers):
        block = f"transformer.resblocks.{index}"
        yield from _norm(f"{block}.ln_1", width)
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _layer(f"{block}.attn.out_proj", width, width)
        yield from _norm(f"{block}.ln_2", width)
        yield from _layer(f"{block}.mlp.c_fc", width, config.mlp_ratio * width)
        yield from _layer(f"{block}.mlp.c_proj", config.mlp_ratio * width, width)
    yield from _norm("ln_post", width)


def _vae_encoder(config: VAEConfig) -> Named:
    moments = 2 * config.latent_channels
    yield from _layer("encoder.conv_in", 3, config.channels, 3, 3)
    channels, last = config.channels, len(config.channel_mult) - 1
    for level, mult in enumerate(config.channel_mult):
        for index in range(config.num_res_blocks):
            yield from _vae_block(f"encoder.down.{level}.block.{index}", channels, config.channels * mult)
            channels = config.channels * mult
        if level < last:
            yield from _layer(f"encoder.down.{level}.downsample.conv", channels, channels, 3, 3)
    yield from _vae_middle("encoder.mid", channels)
    yield from _norm("encoder.norm_out", channels)
    yield from _layer("encoder.conv_out", channels, moments, 3, 3)
    yield from _layer("quant_conv", moments, moments, 1, 1)


def _vae_decoder(config: VAEConfig) -> Named:
    channels = config.channels * config.channel_mult[-1]
    yield from _layer("conv_in", config.latent_channels, channels, 3, 3)
    yield from _vae_middle("mid", channels)
    for level in range(len(config.channel_mult) - 1, -1, -1):
        outputs = config.channels * config.channel_mult[level]
        for index in range(config.num_res_blocks + 1):
            yield from _vae_block(f"up.{level}.block.{index}", channels, outputs)
            channels = outputs
        if level > 0:
            yield from _layer(f"up.{level}.upsample.conv", channels, channels, 3, 3)
    yield from _norm("norm_out", channels)
    yield from _layer("conv_out", channels, 3, 3, 3)


def _vae_block(name: str, inputs: int, outputs: int) -> Named:
    yield from _norm(f"{name}.norm1", inputs)
    yield from _layer(f"{name}.conv1", inputs, outputs, 3, 3)
    yield from _norm(f"{name}.norm2", outputs)
    yield from _layer(f"{name}.conv2", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from _layer(f"{name}.nin_shortcut", inputs, outputs, 1, 1)


def _vae_middle(name: str, channels: int) -> Named:
    yield from _vae_block(f"{name}.block_1", channels, channels)
    yield from _norm(f"{name}.attn_1.norm", channels)
    for layer in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{name}.attn_1.{layer}", channels, channels, 1, 1)
    yield from _vae_block(f"{name}.block_2", channels, channels)


def _part(shapes: Mapping[str, Shape], part: str) -> dict[str, Shape]:
    prefix = PREFIXES[part]
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _infer_unet(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    inputs = shapes["input_blocks.0.0.weight"][1]
    blocks = []
    while found := _layers_of_block(shapes, f"input_blocks.{len(blocks)}"):
        blocks.append(found)
    middle = "middle_block.1.transformer_blocks.0"
    return {
        **layout_fields(blocks),
        "in_channels": inputs,
        "context_width": shapes[f"{middle}.attn2.to_k.weight"][1],
        "ff_mult": shapes[f"{middle}.ff.net.2.weight"][1] // shapes[f"{middle}.ff.net.2.weight"][0],
        "vector_width": shapes["label_emb.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
    }


def _layers_of_block(shapes: Mapping[str, Shape], name: str) -> tuple[list[LayerKind], int] | None:
    """Kinds of the layers of an input block, and its output channels; None if there is no such block."""
    kinds: list[LayerKind] = []
    widths: list[int] = []
    for place in range(2):
        for kind, tensor in _KNOWN_BY.items():
            if f"{name}.{place}.{tensor}" in shapes and len(kinds) == place:
                kinds.append(kind)
                widths.append(shapes[f"{name}.{place}.{tensor}"][0])
    return (kinds, widths[0]) if kinds else None


def _infer_vae(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    channels = shapes["encoder.conv_in.weight"][0]
    levels = _count(shapes, "encoder.down.{}.block.0.conv2.weight")
    widths = [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)]
    return {
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "num_res_blocks": _count(shapes, "encoder.down.0.block.{}.conv2.weight"),
        "latent_channels": shapes["encoder.conv_out.weight"][0] // 2,
    }


def _infer_image_encoder(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    width, _, patch = shapes["conv1.weight"][:3]
    return {
        "image_size": math.isqrt(shapes["positional_embedding"][0] - 1) * patch,
        "patch": patch,
        "width": width,
        "layers": _count(shapes, "transformer.resblocks.{}.ln_1.weight"),
        "output_width": shapes["proj"][1],
        "mlp_ratio": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0] // width,
    }


def _count(shapes: Mapping[str, Shape], pattern: str) -> int:
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count
