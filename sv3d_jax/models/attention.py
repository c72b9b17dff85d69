"""The transformer of the UNet: a spatial block over the tokens of each frame, then a temporal one over the frames of
each position.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import UNetConfig
from sv3d_jax.models.embeddings import sinusoidal
from sv3d_jax.models.fast import choose
from sv3d_jax.models.layers import Dense, GroupNorm, LayerNorm, attend, gelu, silu
from sv3d_jax.models.resnet import TimeMixer


class SpatioTemporalTransformer(nn.Module):
    """x plus a spatial and a temporal transformer block of it, blended by a learned factor (`TimeMixer`)."""

    config: UNetConfig
    compute: Compute

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        context: Float[Array, "b f l d"],
        frame_index: Float[Array, "b f"],
        image_only: Float[Array, "b f"] | None = None,
    ) -> Float[Array, "b f h w c"]:
        b, f, h, w, c = x.shape
        config, compute = self.config, self.compute
        normed = GroupNorm(1e-6, config.norm_groups, compute, name="norm")(x.reshape(b * f, h, w, c))
        tokens = Dense(c, quantizable=True, compute=compute, name="proj_in")(normed.reshape(b, f, h * w, c))
        spatial = SpatialBlock(config, compute, name="transformer_blocks_0")(tokens, context)

        position = sinusoidal(frame_index, c).astype(compute.dtype)
        position = Dense(4 * c, compute=compute, name="time_pos_embed_0")(position)
        position = Dense(c, compute=compute, name="time_pos_embed_2")(silu(position))
        temporal = TemporalBlock(config, compute, name="time_stack_0")(
            spatial + position[:, :, None], context[:, 0]
        )
        mixed = TimeMixer(name="time_mixer")(spatial, temporal, image_only)
        out = Dense(c, zero_init=True, quantizable=True, compute=compute, name="proj_out")(mixed)
        return x + out.reshape(x.shape)


class SpatialBlock(nn.Module):
    """Self-attention within a frame, cross-attention to that frame's context, feed-forward."""

    config: UNetConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f s c"], context: Float[Array, "b f l d"]
    ) -> Float[Array, "b f s c"]:
        b, f, s, c = x.shape
        config, compute = self.config, self.compute
        x = x.reshape(b * f, s, c)
        context = context.reshape(b * f, *context.shape[2:])
        normed = LayerNorm(compute=compute, name="norm1")(x)
        x = x + SelfAttention(config.head_width, compute=compute, name="attn1")(normed)
        x = _add_cross_attention(x, context, config, compute)
        x = x + FeedForward(config.ff_mult, compute, name="ff")(LayerNorm(compute=compute, name="norm3")(x))
        return x.reshape(b, f, s, c)


class TemporalBlock(nn.Module):
    """Feed-forward, self-attention over the frames at each position, cross-attention to the context of the first
    frame, feed-forward."""

    config: UNetConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b f s c"], context: Float[Array, "b l d"]) -> Float[Array, "b f s c"]:
        b, f, s, c = x.shape
        config, compute = self.config, self.compute
        x = x + FeedForward(config.ff_mult, compute, name="ff_in")(
            LayerNorm(compute=compute, name="norm_in")(x)
        )
        normed = LayerNorm(compute=compute, name="norm1")(x)
        x = x + SelfAttention(config.head_width, over_frames=True, compute=compute, name="attn1")(normed)
        # All positions and frames of a video attend to the same context.
        x = _add_cross_attention(x.reshape(b, f * s, c), context, config, compute).reshape(b, f, s, c)
        return x + FeedForward(config.ff_mult, compute, name="ff")(
            LayerNorm(compute=compute, name="norm3")(x)
        )


class SelfAttention(nn.Module):
    """Multi-head self-attention over the second-last axis, or over the frames at each position."""

    head_width: int
    over_frames: bool = False
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "... s c"]) -> Float[Array, "... s c"]:
        c, compute = x.shape[-1], self.compute
        projected = choose.projections(projections, x, ("to_q", "to_k", "to_v"), c, compute)
        heads = (c // self.head_width, self.head_width)
        q, k, v = (t.reshape(*t.shape[:-1], *heads) for t in projected)
        out = attend_over_frames(q, k, v, compute) if self.over_frames else attend(q, k, v, compute)
        return Dense(c, quantizable=True, compute=compute, name="to_out_0")(out.reshape(x.shape))


def projections(x: Array, names: tuple[str, ...], features: int, compute: Compute) -> list[Array]:
    """Linear layers of one input, without bias."""
    return [
        Dense(features, use_bias=False, quantizable=True, compute=compute, name=name)(x) for name in names
    ]


def attend_over_frames(q, k, v, compute: Compute) -> Float[Array, "b f s k d"]:
    """Attention among the frames of each position (equation 1 of `attend`); frames stay the second axis.

    The queries are scaled in place of the scores, which are more.
    """
    q = (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)
    scores = jnp.einsum("bfskd,bgskd->bskfg", q, k, precision=compute.precision)
    weights = nn.softmax(scores.astype(jnp.float32), axis=-1).astype(q.dtype)
    return jnp.einsum("bskfg,bgskd->bfskd", weights, v, precision=compute.precision)


def _add_cross_attention(
    x: Float[Array, "n s c"], context: Float[Array, "n l d"], config: UNetConfig, compute: Compute
) -> Float[Array, "n s c"]:
    """x plus the cross-attention of its norm to the context (layers `norm2` and `attn2` of the calling module)."""
    attention = CrossAttention(x.shape[-1], config.head_width, compute, name="attn2")
    if choose.leaves_out_scores(context, compute):
        return x + attention(None, context)
    return x + attention(LayerNorm(compute=compute, name="norm2")(x), context)


class CrossAttention(nn.Module):
    """Multi-head attention of x to the context; without x, the vector that a context of one token gives to all."""

    features: int
    head_width: int
    compute: Compute

    @nn.compact
    def __call__(
        self, x: Float[Array, "n s c"] | None, context: Float[Array, "n l d"]
    ) -> Float[Array, "n s c"]:
        value = Dense(self.features, use_bias=False, compute=self.compute, name="to_v")(context)
        if x is None:
            out = value
        else:
            q = Dense(self.features, use_bias=False, compute=self.compute, name="to_q")(x)
            k = Dense(self.features, use_bias=False, compute=self.compute, name="to_k")(context)
            heads = (self.features // self.head_width, self.head_width)
            q, k, v = (t.reshape(*t.shape[:-1], *heads) for t in (q, k, value))
            out = attend(q, k, v, self.compute).reshape(x.shape)
        return Dense(self.features, compute=self.compute, name="to_out_0")(out)


class FeedForward(nn.Module):
    """Gated feed-forward layer (`GEGLU`), then back to the width."""

    mult: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        return choose.feed_forward(FeedForward.of_tokens, self, x, self.compute)

    def of_tokens(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """The layer for the given tokens, which are all or a part of them."""
        hidden = GEGLU(self.mult * x.shape[-1], compute=self.compute, name="net_0")(x)
        return Dense(x.shape[-1], quantizable=True, compute=self.compute, name="net_2")(hidden)


class GEGLU(nn.Module):
    """GELU(x W + b) * (x V + c) (Shazeer, arXiv 2002.05202, equation 5), in one linear layer: first V, then W."""

    features: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        return _gated(Dense(2 * self.features, quantizable=True, compute=self.compute, name="proj")(x))


@jax.checkpoint  # the gradient keeps the input alone and computes GELU again
def _gated(x: Float[Array, "... d2"]) -> Float[Array, "... d"]:
    value, gate = jnp.split(x, 2, axis=-1)
    return value * gelu(gate)
