"""The spatio-temporal UNet of SV3D (VideoUNet of Stable Video Diffusion), channels last, published names."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.models.attention import SpatioTemporalTransformer
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import UNetConfig
from sv3d_jax.models.embeddings import sinusoidal
from sv3d_jax.models.layers import Conv2d, Dense, GroupNorm, UpsampleConv2d, silu
from sv3d_jax.models.resnet import VideoResBlock


class VideoUNet(nn.Module):
    """Predicts the network output F of the preconditioned denoiser for all frames of each video."""

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
        deep: Float[Array, "b f h w d"] | None = None,
    ) -> Float[Array, "b f h w o"]:
        """Network output in float32.

        x: noisy latents times c_in, then conditioning latents, along channels. context: image tokens, per video
        or per frame. vector: noise and camera embedding. image_only: nonzero for frames that are stills (their
        temporal branches are off). frame_index: the place of each frame in its orbit, 0 .. f-1 by default; give it
        when the frames are some of a longer orbit. deep: what the levels below the first gave another call (it sows
        that as "deep", see `deep_shape`); only the first level is then computed.

        Sides must be divisible by 2^(levels - 1) so that the skips fit.
        """
        config, compute = self.config, self.compute
        b, f, h, w, _ = x.shape
        coarsest = 2 ** (len(config.channel_mult) - 1)
        if h % coarsest or w % coarsest:
            raise ValueError(f"latent sides must be multiples of {coarsest}, got {h}x{w}")
        c_noise = jnp.broadcast_to(c_noise if c_noise.ndim == 2 else c_noise[:, None], (b, f))
        if context.ndim == 3:
            context = jnp.broadcast_to(context[:, None], (b, f, *context.shape[1:]))
        if frame_index is None:
            frame_index = jnp.broadcast_to(jnp.arange(f, dtype=jnp.float32), (b, f))
        x, context = x.astype(compute.dtype), context.astype(compute.dtype)

        width = config.embedding_width
        time = sinusoidal(c_noise, config.model_channels).astype(compute.dtype)
        time = Dense(width, compute=compute, name="time_embed_0")(time)
        time = Dense(width, compute=compute, name="time_embed_2")(silu(time))
        label = Dense(width, compute=compute, name="label_emb_0_0")(vector.astype(compute.dtype))
        label = Dense(width, compute=compute, name="label_emb_0_2")(silu(label))
        embedding = time + label

        ResBlock, Transformer = (
            nn.remat(block) if compute.remat else block
            for block in (VideoResBlock, SpatioTemporalTransformer)
        )

        def res_block(x, level, name):
            features = config.model_channels * config.channel_mult[level]
            return ResBlock(features, config.norm_groups, compute, name=name)(x, embedding, image_only)

        def transformer(x, name):
            return Transformer(config, compute, name=name)(x, context, frame_index, image_only)

        x = _on_frames(Conv2d(config.model_channels, compute=compute, name="input_blocks_0_0"), x)
        skips = [x]
        levels = range(len(config.channel_mult) if deep is None else 1)
        for level in levels:
            for _ in range(config.num_res_blocks):
                block = f"input_blocks_{len(skips)}"
                x = res_block(x, level, f"{block}_0")
                if level in config.attention_levels:
                    x = transformer(x, f"{block}_1")
                skips.append(x)
            if level != levels[-1]:
                x = Downsample(compute, name=f"input_blocks_{len(skips)}_0")(x)
                skips.append(x)

        if deep is None:
            x = res_block(x, levels[-1], "middle_block_0")
            x = transformer(x, "middle_block_1")
            x = res_block(x, levels[-1], "middle_block_2")

        block = (len(config.channel_mult) - len(levels)) * (config.num_res_blocks + 1)
        for level in reversed(levels):
            if level == 0 and deep is not None:
                x = deep
            elif level == 0:
                self.sow("deep", "deep", x)
            for i in range(config.num_res_blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = res_block(x, level, f"output_blocks_{block}_0")
                place = 1
                if level in config.attention_levels:
                    x = transformer(x, f"output_blocks_{block}_1")
                    place = 2
                if level and i == config.num_res_blocks:
                    x = Upsample(compute, name=f"output_blocks_{block}_{place}")(x)
                block += 1

        x = _on_frames(GroupNorm(1e-5, config.norm_groups, compute, name="out_0"), x)
        out = Conv2d(config.out_channels, zero_init=True, compute=compute, name="out_2")
        return _on_frames(out, silu(x)).astype(jnp.float32)


class Downsample(nn.Module):
    """Strided 3x3 convolution, padded on all sides."""

    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        return _on_frames(Conv2d(x.shape[-1], stride=2, compute=self.compute, name="op"), x)


class Upsample(nn.Module):
    """Nearest doubling, then a 3x3 convolution."""

    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        return _on_frames(UpsampleConv2d(self.compute, name="conv"), x)


def deep_shape(config: UNetConfig, x: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the features that the levels below the first give, for an input of shape `b f h w c`."""
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

    def init(key):
        return network.init(
            key,
            jnp.zeros((1, 1, side, side, config.in_channels)),
            jnp.zeros((1,)),
            jnp.zeros((1, 1, config.context_width)),
            jnp.zeros((1, 1, config.vector_width)),
        )["params"]

    return jax.jit(init)(key)
