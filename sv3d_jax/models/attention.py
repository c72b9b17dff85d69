"""The transformer of the UNet: a spatial block on the tokens of each frame, then a temporal one on each position."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, size_of_parts
from sv3d_jax.models.attend import attend, scaled
from sv3d_jax.models.config import UNetConfig
from sv3d_jax.models.embeddings import sinusoidal
from sv3d_jax.models.layers import (
    Compute,
    Dense,
    DenseKernel,
    GroupNorm,
    LayerNorm,
    gelu,
    quantizable_matmul,
    silu,
)
from sv3d_jax.models.resnet import TimeMixer

MAX_ROWS = 1024  # of a feed-forward layer on a CPU: parts whose inner values stay in a cache


class SpatioTemporalTransformer(nn.Module):
    """Residual transformer of depth 1 over space and of depth 1 over time, blended by a learned factor."""

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
        # Every position and frame of a video asks the same context.
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
        names = ("to_q", "to_k", "to_v")
        if compute.fold:
            kernel = jnp.concatenate([DenseKernel(c, name=name)(c) for name in names], axis=1)
            qkv = quantizable_matmul(x.astype(compute.dtype), kernel.astype(compute.dtype), compute)
            q, k, v = jnp.split(qkv, 3, axis=-1)
        else:
            q, k, v = (
                Dense(c, use_bias=False, quantizable=True, compute=compute, name=name)(x) for name in names
            )
        heads = (c // self.head_width, self.head_width)
        q, k, v = (t.reshape(*t.shape[:-1], *heads) for t in (q, k, v))
        out = _attend_over_frames(q, k, v, compute) if self.over_frames else attend(q, k, v, compute)
        return Dense(c, quantizable=True, compute=compute, name="to_out_0")(out.reshape(x.shape))


def _attend_over_frames(q, k, v, compute: Compute) -> Float[Array, "b f s k d"]:
    """Attention among the frames of each position, frames left where they are."""
    scores = jnp.einsum("bfskd,bgskd->bskfg", scaled(q), k, precision=compute.precision)
    weights = nn.softmax(scores.astype(jnp.float32), axis=-1).astype(q.dtype)
    return jnp.einsum("bskfg,bgskd->bfskd", weights, v, precision=compute.precision)


def _add_cross_attention(
    x: Float[Array, "n s c"], context: Float[Array, "n l d"], config: UNetConfig, compute: Compute
) -> Float[Array, "n s c"]:
    """x plus the cross-attention of its norm to the context (layers `norm2` and `attn2` of the calling module).

    The softmax over a single key is 1, so one context token gives every query the same vector
    to_out(to_v(context)), whatever x is.
    """
    attention = CrossAttention(x.shape[-1], config.head_width, compute, name="attn2")
    if context.shape[1] == 1 and not compute.reference:
        return x + attention(None, context)
    return x + attention(LayerNorm(compute=compute, name="norm2")(x), context)


class CrossAttention(nn.Module):
    """Multi-head attention of x to the context; without x, the one vector that a single token gives to all."""

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
    """Gated feed-forward: value times GELU(gate), then back to the width; the exact GELU."""

    mult: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        c = x.shape[-1]
        rows = size = x.size // c
        if self.compute.on_one_cpu and not self.compute.reference:
            size = size_of_parts(rows, MAX_ROWS)
        if size == rows:
            return self.at_once(x)
        one_part = nn.remat(lambda module, _, part: (None, module.at_once(part)), prevent_cse=False)
        over_parts = nn.scan(one_part, variable_broadcast="params", split_rngs={"params": False})
        _, y = over_parts(self, None, x.reshape(-1, size, c))
        return y.reshape(x.shape)

    def at_once(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """The layer itself; the call above gives it all tokens, or on one CPU some after the other."""
        hidden = GEGLU(self.mult * x.shape[-1], compute=self.compute, name="net_0")(x)
        return Dense(x.shape[-1], quantizable=True, compute=self.compute, name="net_2")(hidden)


class GEGLU(nn.Module):
    """Linear to twice the width; the first half times GELU of the second."""

    features: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        return _gated(Dense(2 * self.features, quantizable=True, compute=self.compute, name="proj")(x))


@jax.checkpoint  # the gradient keeps what came in, not what erf gives
def _gated(x: Float[Array, "... d2"]) -> Float[Array, "... d"]:
    value, gate = jnp.split(x, 2, axis=-1)
    return value * gelu(gate)
