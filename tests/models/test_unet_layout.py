"""The description of the UNet's blocks, and the way back from it."""

import pytest

from sv3d_jax.models.config import UNetConfig
from sv3d_jax.models.unet_layout import input_blocks, layout_fields, middle_block, output_blocks
from tests.tiny_model import CONFIG

CONFIGS = {
    "published": UNetConfig(),
    "tiny": CONFIG.unet,
    "one level": UNetConfig(channel_mult=(1,), attention_levels=()),
    "attention below": UNetConfig(channel_mult=(2, 1, 3), num_res_blocks=1, attention_levels=(2,)),
}


def test_published_blocks():
    """Twelve blocks on each side; every third leads to another level."""
    config = UNetConfig()
    down, up = input_blocks(config), output_blocks(config)
    assert [block.level for block in down] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [block.level for block in up] == [3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert [block.layers for block in down[:4]] == [
        ("conv",),
        ("res_block", "transformer"),
        ("res_block", "transformer"),
        ("downsample",),
    ]
    assert up[2].layers == ("res_block", "upsample")
    assert up[5].layers == ("res_block", "transformer", "upsample")
    assert (up[0].inputs, up[0].outputs) == (2560, 1280)
    assert (up[-1].name, up[-1].inputs, up[-1].outputs) == ("output_blocks.11", 640, 320)
    assert middle_block(config).outputs == 1280


@pytest.mark.parametrize("name", CONFIGS)
def test_every_skip_is_joined_once(name):
    down, up = input_blocks(CONFIGS[name]), output_blocks(CONFIGS[name])
    channels = middle_block(CONFIGS[name]).outputs
    for skip, block in zip(reversed(down), up, strict=True):
        assert block.inputs == channels + skip.outputs
        channels = block.outputs


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_are_read_back_from_blocks(name):
    config = CONFIGS[name]
    fields = layout_fields([(block.layers, block.outputs) for block in input_blocks(config)])
    assert fields == {
        "model_channels": config.model_channels,
        "channel_mult": list(config.channel_mult),
        "num_res_blocks": config.num_res_blocks,
        "attention_levels": list(config.attention_levels),
    }
