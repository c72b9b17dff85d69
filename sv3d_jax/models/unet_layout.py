"""Which blocks the UNet has, in which order and of which widths: the one description of it.

The network (`video_unet.py`) is built from it, the published names and shapes (`weights/key_map.py`) are listed from
it, and `layout_fields` reads it back from the blocks of a file. Values only, importable without JAX.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from sv3d_jax.models.config import UNetConfig

LayerKind = Literal["conv", "res_block", "transformer", "downsample", "upsample"]


@dataclass(frozen=True)
class UNetBlock:
    """One entry of the published `input_blocks`, `middle_block` or `output_blocks`: layers one after the other.

    The first layer takes `inputs` channels, all others and the result have `outputs`. In output blocks, `inputs`
    counts the channels of the block before and those of the skip that is joined to them.
    """

    name: str  # as published: "input_blocks.1"; its layers are "input_blocks.1.0", "input_blocks.1.1", ...
    level: int  # 0 is the finest; a block that ends in a downsampling is of the level it leads to
    layers: tuple[LayerKind, ...]
    inputs: int
    outputs: int


def input_blocks(config: UNetConfig) -> list[UNetBlock]:
    """From the latents down to the coarsest level; what each block gives is kept as a skip."""
    blocks: list[UNetBlock] = []

    def add(level: int, layers: tuple[LayerKind, ...], inputs: int, outputs: int) -> int:
        blocks.append(UNetBlock(f"input_blocks.{len(blocks)}", level, layers, inputs, outputs))
        return outputs

    channels = add(0, ("conv",), config.in_channels, config.model_channels)
    for level, mult in enumerate(config.channel_mult):
        if level > 0:
            channels = add(level, ("downsample",), channels, channels)
        for _ in range(config.num_res_blocks):
            channels = add(level, _residual(config, level), channels, config.model_channels * mult)
    return blocks


def middle_block(config: UNetConfig) -> UNetBlock:
    """At the coarsest level, with a transformer whatever `attention_levels` says."""
    level = len(config.channel_mult) - 1
    channels = input_blocks(config)[-1].outputs
    return UNetBlock("middle_block", level, ("res_block", "transformer", "res_block"), channels, channels)


def output_blocks(config: UNetConfig) -> list[UNetBlock]:
    """From the coarsest level up; each takes the last skip that is left, joined to what comes from below."""
    skips = [block.outputs for block in input_blocks(config)]
    blocks: list[UNetBlock] = []
    channels = skips[-1]
    for level in reversed(range(len(config.channel_mult))):
        for index in range(config.num_res_blocks + 1):
            layers = _residual(config, level)
            if level > 0 and index == config.num_res_blocks:
                layers = (*layers, "upsample")
            outputs = config.model_channels * config.channel_mult[level]
            name = f"output_blocks.{len(blocks)}"
            blocks.append(UNetBlock(name, level, layers, channels + skips.pop(), outputs))
            channels = outputs
    return blocks


def _residual(config: UNetConfig, level: int) -> tuple[LayerKind, ...]:
    return ("res_block", "transformer") if level in config.attention_levels else ("res_block",)


def layout_fields(blocks: Sequence[tuple[Sequence[LayerKind], int]]) -> dict[str, Any]:
    """The fields of a `UNetConfig` that layers and output channels of its input blocks tell: the way back.

    Raises IndexError if there are none.
    """
    base = blocks[0][1]
    levels = list(accumulate(int("downsample" in layers) for layers, _ in blocks))
    residual = [
        (level, layers, outputs)
        for level, (layers, outputs) in zip(levels, blocks, strict=True)
        if "res_block" in layers
    ]
    widths = {level: outputs for level, _, outputs in residual}
    return {
        "model_channels": base,
        "channel_mult": [widths.get(level, 0) // base for level in range(levels[-1] + 1)],
        "num_res_blocks": sum(level == 0 for level, _, _ in residual),
        "attention_levels": sorted({level for level, layers, _ in residual if "transformer" in layers}),
    }
