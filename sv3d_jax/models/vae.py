"""The autoencoder of Stable Diffusion (KL-f8; Rombach et al., arXiv 2112.10752, section 3.1): a picture in [-1, 1] to
latents of an eighth of its side, and back.

Two parts with their own parameters, as in the checkpoint: the encoder (with `quant_conv`) makes conditioning latents,
the decoder turns the model's latents into pixels. Each frame is encoded and decoded by itself.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import VAEConfig
from sv3d_jax.models.initializers import fresh
from sv3d_jax.models.layers import Conv2d, GroupNorm, UpsampleConv2d, attend, silu

EPSILON = 1e-6


class Encoder(nn.Module):
    """Picture to moments: mean and log-variance of the latent, before `quant_conv`."""

    config: VAEConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, pixels: Float[Array, "n h w 3"]) -> Float[Array, "n h8 w8 moments"]:
        config, compute = self.config, self.compute
        x = Conv2d(config.channels, compute=compute, name="conv_in")(pixels)
        last = len(config.channel_mult) - 1
        for level, mult in enumerate(config.channel_mult):
            x = Level(
                config.channels * mult,
                config.num_res_blocks,
                resample="downsample" if level < last else None,
                groups=config.norm_groups,
                compute=compute,
                name=f"down_{level}",
            )(x)
        x = Middle(config.norm_groups, compute, name="mid")(x)
        x = GroupNorm(EPSILON, config.norm_groups, compute, silu, name="norm_out")(x)
        return Conv2d(2 * config.latent_channels, compute=compute, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents, those of the model divided by its latent factor, to pictures; SV3D's has no post_quant_conv."""

    config: VAEConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, latents: Float[Array, "n h8 w8 c"]) -> Float[Array, "n h w 3"]:
        config, compute = self.config, self.compute
        if config.post_quant_conv:
            latents = Conv2d(config.latent_channels, size=1, compute=compute, name="post_quant_conv")(latents)
        x = Conv2d(config.channels * config.channel_mult[-1], compute=compute, name="conv_in")(latents)
        x = Middle(config.norm_groups, compute, name="mid")(x)
        for level in reversed(range(len(config.channel_mult))):
            x = Level(
                config.channels * config.channel_mult[level],
                config.num_res_blocks + 1,
                resample="upsample" if level > 0 else None,
                groups=config.norm_groups,
                compute=compute,
                name=f"up_{level}",
            )(x)
        x = GroupNorm(EPSILON, config.norm_groups, compute, silu, name="norm_out")(x)
        return Conv2d(3, compute=compute, name="conv_out")(x)


class Level(nn.Module):
    """The residual blocks of one resolution and, except for the last, the resampling to the next."""

    features: int
    num_blocks: int
    resample: Literal["downsample", "upsample"] | None
    groups: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.num_blocks):
            x = ResBlock(self.features, self.groups, self.compute, name=f"block_{i}")(x)
        if self.resample == "downsample":
            x = VAEDownsample(compute=self.compute, name="downsample")(x)
        elif self.resample == "upsample":
            x = VAEUpsample(compute=self.compute, name="upsample")(x)
        return x


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each after a group norm and SiLU, added to the input (or a 1x1 convolution of it)."""

    features: int
    groups: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        groups, compute = self.groups, self.compute
        h = GroupNorm(EPSILON, groups, compute, silu, name="norm1")(x)
        h = Conv2d(self.features, compute=compute, name="conv1")(h)
        h = GroupNorm(EPSILON, groups, compute, silu, name="norm2")(h)
        h = Conv2d(self.features, compute=compute, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv2d(self.features, size=1, compute=compute, name="nin_shortcut")(x)
        return x + h


class Middle(nn.Module):
    """Residual block, single-head attention over all positions, residual block, at the coarsest resolution."""

    groups: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResBlock(x.shape[-1], self.groups, self.compute, name="block_1")(x)
        x = SpatialAttention(self.groups, self.compute, name="attn_1")(x)
        return ResBlock(x.shape[-1], self.groups, self.compute, name="block_2")(x)


class SpatialAttention(nn.Module):
    """x plus self-attention over its positions, with one head as wide as the features and 1x1 projections."""

    groups: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, h, w, c = x.shape
        normed = GroupNorm(EPSILON, self.groups, self.compute, name="norm")(x)
        q, k, v = (
            Conv2d(c, size=1, compute=self.compute, name=name)(normed).reshape(n, h * w, 1, c)
            for name in ("q", "k", "v")
        )
        out = attend(q, k, v, self.compute).reshape(n, h, w, c)
        return x + Conv2d(c, size=1, compute=self.compute, name="proj_out")(out)


class VAEDownsample(nn.Module):
    """Strided 3x3 convolution after one row and column of zeros at the bottom and right only."""

    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = Conv2d(x.shape[-1], stride=2, padding=((0, 1), (0, 1)), compute=self.compute, name="conv")
        return conv(x)


class VAEUpsample(nn.Module):
    """Nearest doubling, then a 3x3 convolution."""

    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return UpsampleConv2d(self.compute, name="conv")(x)


def encode_moments(
    params: Params, config: VAEConfig, pixels: Float[Array, "n h w 3"], compute: Compute = Compute()
) -> tuple[Float[Array, "n h8 w8 c"], Float[Array, "n h8 w8 c"]]:
    """Mean and log-variance (within [-30, 20]) of the latents of pictures in [-1, 1].

    params is the `vae_encoder` tree: {"encoder": ..., "quant_conv": ...}. The mean, unscaled, is the conditioning
    latent; times the latent factor it is what the model denoises.
    """
    moments = Encoder(config, compute).apply({"params": params["encoder"]}, pixels)
    moments = _quant_conv(config, compute).apply({"params": params["quant_conv"]}, moments)
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)


def decode(
    params: Params, config: VAEConfig, latents: Float[Array, "n h8 w8 c"], compute: Compute = Compute()
) -> Float[Array, "n h w 3"]:
    """Pixels, about [-1, 1], of latents divided by the latent factor; params is the `vae_decoder` tree."""
    return Decoder(config, compute).apply({"params": params}, latents).astype(jnp.float32)


def init_vae(config: VAEConfig, key: Array) -> Params:
    """Fresh parameters {"vae_encoder", "vae_decoder"}."""
    keys = jax.random.split(key, 3)
    side = 2 ** len(config.channel_mult)
    return {
        "vae_encoder": {
            "encoder": fresh(Encoder(config), keys[0], (1, side, side, 3)),
            "quant_conv": fresh(
                _quant_conv(config, Compute()), keys[1], (1, 2, 2, 2 * config.latent_channels)
            ),
        },
        "vae_decoder": fresh(Decoder(config), keys[2], (1, 2, 2, config.latent_channels)),
    }


def _quant_conv(config: VAEConfig, compute: Compute) -> Conv2d:
    """The 1x1 convolution between the encoder and the moments."""
    return Conv2d(2 * config.latent_channels, size=1, compute=compute)
