"""The spatio-temporal UNet of SV3D (VideoUNet of Stable Video Diffusion), channels last, published names."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.models.attention import SpatioTemporalTransformer
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import UNetConfig
from sv3d_jax.models.embeddings import sinusoidal
from sv3d_jax.models.initializers import fresh
from sv3d_jax.models.layers import Conv2d, Dense, GroupNorm, UpsampleConv2d, silu
from sv3d_jax.models.resnet import VideoResBlock
from sv3d_jax.models.unet_layout import LayerKind, UNetBlock, input_blocks, middle_block, output_blocks

CACHE = "cache"
"""Collection in which a call stores the features of the levels below the first, as "features"."""


class BlockInputs(NamedTuple):
    """What every block is given beside the features that it changes."""

    embedding: Float[Array, "b f e"]  # of noise level, conditioning noise and cameras
    context: Float[Array, "b f l d"]
    frame_index: Float[Array, "b f"]
    image_only: Float[Array, "b f"] | None


class VideoUNet(nn.Module):
    """Predicts the network output F of the preconditioned denoiser for all frames of each video.

    F is that of Karras et al., arXiv 2206.00364, equation 7. Which blocks there are says `unet_layout.py`.
    """

    config: UNetConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        c_noise: Float[Array, "b"] | Float[Array, "b f"],
        context: Float[Array, "b l d"] | Float[Array, "b f l d"],
        vector: Float[Array, "b f v"],
        image_only: Float[Array, "b f"] | None = None,
        frame_index: Float[Array, "b f"] | None = None,
        cached: Float[Array, "b f h w d"] | None = None,
    ) -> Float[Array, "b f h w o"]:
        """Network output in float32.

        Args:
            x: noisy latents times c_in, then conditioning latents, along channels. Sides must be divisible by
                2^(levels - 1), so that skips fit what they are joined to; ValueError otherwise.
            c_noise: the noise level as the network is told it, per video or per frame.
            context: image tokens, per video or per frame.
            vector: embedding of conditioning noise and cameras.
            image_only: nonzero for frames that are still images, whose temporal branches are off.
            frame_index: the place of each frame in its orbit, 0 .. f-1 by default; to be given where the frames are
                some of a longer orbit.
            cached: features of the levels below the first, from another call with `mutable=CACHE`, which returns
                them as [CACHE]["features"][0]. Only the first level is computed then.
        """
        config = self.config
        _check_sides(x, config)
        inputs = self._block_inputs(x, c_noise, context, vector, image_only, frame_index)
        skips = []

        def up(x: Array, blocks: Iterable[UNetBlock]) -> Array:
            for block in blocks:
                x = self._run(block, jnp.concatenate([x, skips.pop()], axis=-1), inputs)
            return x

        x = x.astype(self.compute.dtype)
        for block in input_blocks(config):
            if cached is None or block.level == 0:
                x = self._run(block, x, inputs)
                skips.append(x)
        if cached is None:
            x = self._run(middle_block(config), x, inputs)
            x = up(x, (block for block in output_blocks(config) if block.level > 0))
            self.sow(CACHE, "features", x)
        else:
            x = cached
        x = up(x, (block for block in output_blocks(config) if block.level == 0))
        x = _on_frames(GroupNorm(1e-5, config.norm_groups, self.compute, name="out_0"), x)
        out = Conv2d(config.out_channels, zero_init=True, compute=self.compute, name="out_2")
        return _on_frames(out, silu(x)).astype(jnp.float32)

    def _block_inputs(self, x, c_noise, context, vector, image_only, frame_index) -> BlockInputs:
        """The arguments of the call per frame, in the type of computation, noise and vector embedded."""
        b, f = x.shape[:2]
        width, compute = self.config.embedding_width, self.compute
        c_noise = jnp.broadcast_to(c_noise if c_noise.ndim == 2 else c_noise[:, None], (b, f))
        if context.ndim == 3:
            context = jnp.broadcast_to(context[:, None], (b, f, *context.shape[1:]))
        if frame_index is None:
            frame_index = jnp.broadcast_to(jnp.arange(f, dtype=jnp.float32), (b, f))
        time = sinusoidal(c_noise, self.config.model_channels).astype(compute.dtype)
        time = Dense(width, compute=compute, name="time_embed_0")(time)
        time = Dense(width, compute=compute, name="time_embed_2")(silu(time))
        label = Dense(width, compute=compute, name="label_emb_0_0")(vector.astype(compute.dtype))
        label = Dense(width, compute=compute, name="label_emb_0_2")(silu(label))
        return BlockInputs(time + label, context.astype(compute.dtype), frame_index, image_only)

    def _run(self, block: UNetBlock, x: Array, inputs: BlockInputs) -> Array:
        """The layers of a block, one after the other."""
        for place, kind in enumerate(block.layers):
            name = f"{block.name}.{place}".replace(".", "_")
            x = self._layer(kind, block.outputs, name)(x, inputs)
        return x

    def _layer(
        self, kind: LayerKind, features: int, name: str
    ) -> Callable[[Array, BlockInputs], Float[Array, "b f h2 w2 d"]]:
        """The layer of a kind as a function of x and what every block is given."""
        config, compute = self.config, self.compute
        checkpointed = nn.remat if compute.remat else lambda block: block
        match kind:
            case "conv":
                conv = Conv2d(features, compute=compute, name=name)
                return lambda x, _: _on_frames(conv, x)
            case "downsample":
                return lambda x, _: UNetDownsample(compute, name=name)(x)
            case "upsample":
                return lambda x, _: UNetUpsample(compute, name=name)(x)
            case "res_block":
                res_block = checkpointed(VideoResBlock)(features, config.norm_groups, compute, name=name)
                return lambda x, given: res_block(x, given.embedding, given.image_only)
            case "transformer":
                transformer = checkpointed(SpatioTemporalTransformer)(config, compute, name=name)
                return lambda x, given: transformer(x, given.context, given.frame_index, given.image_only)


def _check_sides(x: Array, config: UNetConfig) -> None:
    h, w = x.shape[2:4]
    coarsest = 2 ** (len(config.channel_mult) - 1)
    if h % coarsest or w % coarsest:
        raise ValueError(f"latent sides must be multiples of {coarsest}, got {h}x{w}")


class UNetDownsample(nn.Module):
    """Strided 3x3 convolution, padded on all sides."""

    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        return _on_frames(Conv2d(x.shape[-1], stride=2, compute=self.compute, name="op"), x)


class UNetUpsample(nn.Module):
    """Nearest doubling, then a 3x3 convolution."""

    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        return _on_frames(UpsampleConv2d(self.compute, name="conv"), x)


def cached_shape(config: UNetConfig, x: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the features that may be cached, for an input of shape `b f h w c`."""
    if len(config.channel_mult) < 2:
        raise ValueError("a UNet of one level has nothing below it")
    return (*x[:4], config.model_channels * config.channel_mult[1])


def _on_frames(layer, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 d"]:
    """Apply a layer of `n h w c` to all frames of all videos."""
    y = layer(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def init_unet(config: UNetConfig, key: Array) -> Params:
    """Fresh parameters; output layers of residual branches start at zero, as published."""
    side = 2 ** (len(config.channel_mult) - 1)
    network = VideoUNet(config, Compute(reference=True))  # the plain form touches every parameter
    shapes = (
        (1, 1, side, side, config.in_channels),
        (1,),
        (1, 1, config.context_width),
        (1, 1, config.vector_width),
    )
    return fresh(network, key, *shapes)
