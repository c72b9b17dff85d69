"""Layers with the parameter names and numerics of the published checkpoints, channels last.

Here stands the plain form of every operation, as the papers write it. Where a faster form exists, the operation is
called through `fast/choose.py`, which names it and says when it is taken. Every layer takes `compute`, the precision
and what is compiled for.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast import choose
from sv3d_jax.models.initializers import torch_uniform


class Dense(nn.Module):
    """Linear layer over the last axis; the product is accumulated in float32.

    A `quantizable` one is computed in 8 bits where `Compute.quantize` asks for it: those are the layers that every
    token passes through, not those of embeddings.
    """

    features: int
    use_bias: bool = True
    zero_init: bool = False
    quantizable: bool = False
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        fan_in, dtype = x.shape[-1], self.compute.dtype
        init = nn.initializers.zeros if self.zero_init else torch_uniform(fan_in)
        x, kernel = x.astype(dtype), self.param("kernel", init, (fan_in, self.features)).astype(dtype)
        if self.quantizable:
            y = choose.linear(matmul, x, kernel, self.compute)
        else:
            y = matmul(x, kernel, self.compute)
        if self.use_bias:
            y = y + self.param("bias", init, (self.features,)).astype(dtype)
        return y


def matmul(x: Float[Array, "... c"], kernel: Float[Array, "c d"], compute: Compute) -> Float[Array, "... d"]:
    """x @ kernel."""
    return choose.matmul(_plain_matmul, x, kernel, compute)


def _plain_matmul(x: Array, kernel: Array, compute: Compute) -> Array:
    return jnp.matmul(x, kernel, precision=compute.precision)


class Conv2d(nn.Module):
    """2-D convolution of `n h w c`, kernel HWIO; padding is symmetric unless given per side."""

    features: int
    size: int = 3
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None
    use_bias: bool = True
    zero_init: bool = False
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        channels, dtype = x.shape[-1], self.compute.dtype
        init = nn.initializers.zeros if self.zero_init else torch_uniform(channels * self.size**2)
        kernel = self.param("kernel", init, (self.size, self.size, channels, self.features))
        padding = self.padding or ((self.size // 2,) * 2,) * 2
        y = conv2d(x.astype(dtype), kernel.astype(dtype), self.stride, padding, self.compute)
        if self.use_bias:
            y = y + self.param("bias", init, (self.features,)).astype(dtype)
        return y


def conv2d(x: Array, kernel: Array, stride: int, padding, compute: Compute) -> Array:
    """Convolution of `n h w c` with an HWIO kernel."""
    return choose.conv2d(_plain_conv2d, x, kernel, stride, padding, compute)


def _plain_conv2d(x: Array, kernel: Array, stride: int, padding, compute: Compute) -> Array:
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return matmul(x, kernel[0, 0], compute)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=compute.precision,
    )


class UpsampleConv2d(nn.Module):
    """Nearest doubling of `n h w c`, then a 3x3 convolution as wide as the input."""

    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        channels, dtype = x.shape[-1], self.compute.dtype
        init = torch_uniform(channels * 9)
        kernel = self.param("kernel", init, (3, 3, channels, channels))
        bias = self.param("bias", init, (channels,))
        y = choose.double_then_convolve(double_then_convolve, x.astype(dtype), kernel, self.compute)
        return y + bias.astype(dtype)


def double_then_convolve(x: Array, kernel: Array, compute: Compute) -> Float[Array, "n h2 w2 d"]:
    """3x3 convolution of `n h w c` with every pixel repeated as a 2x2 block."""
    return conv2d(nearest_double(x), kernel.astype(x.dtype), 1, ((1, 1),) * 2, compute)


def nearest_double(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Each pixel becomes a 2x2 block."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)


class TemporalConv(nn.Module):
    """Convolution over three neighbouring frames of `b f h w c`, zero beyond the ends (published kernel (3,1,1)).

    With `scale`, a number, the result is multiplied by it: kernel and bias are, which are smaller.
    """

    features: int
    zero_init: bool = False
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], scale: Array | None = None) -> Float[Array, "b f h w d"]:
        channels, dtype = x.shape[-1], self.compute.dtype
        init = nn.initializers.zeros if self.zero_init else torch_uniform(channels * 3)
        kernel = self.param("kernel", init, (3, channels, self.features))
        bias = self.param("bias", init, (self.features,))
        if scale is not None:
            kernel, bias = scale * kernel, scale * bias
        return temporal_conv(x.astype(dtype), kernel.astype(dtype), self.compute) + bias.astype(dtype)


def temporal_conv(x: Float[Array, "b f h w c"], kernel: Float[Array, "3 c d"], compute: Compute) -> Array:
    """Convolution of each pixel's values over time."""
    return choose.temporal_conv(_plain_temporal_conv, x, kernel, compute)


def _plain_temporal_conv(x: Array, kernel: Array, compute: Compute) -> Float[Array, "b f h w d"]:
    """Previous, same and next frame, each times its tap of the kernel, summed."""
    frames = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    taps = [matmul(padded[:, i : i + frames], kernel[i], compute) for i in range(3)]
    return taps[0] + taps[1] + taps[2]


class GroupNorm(nn.Module):
    """Group normalisation in float32, then an activation; statistics pool over all axes but the first.

    Give frames as `n h w c` to pool per frame, a video as `b f h w c` to pool over its frames too.
    """

    epsilon: float
    groups: int = 32
    compute: Compute = Compute()
    activation: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n ... c"]) -> Float[Array, "n ... c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        activation = self.activation or (lambda y: y)
        return choose.group_norm(
            group_norm, x, scale, bias, self.groups, self.epsilon, activation, self.compute
        )


def group_norm(
    x: Float[Array, "n ... c"], scale: Array, bias: Array, groups: int, epsilon: float
) -> Float[Array, "n ... c"]:
    """scale (x - mean) / sqrt(variance + epsilon) + bias, moments over each group of channels and all places.

    Wu and He, Group Normalization, arXiv 1803.08494, equations 1, 2, 6 and 7.
    """
    n, c = x.shape[0], x.shape[-1]
    grouped = x.astype(jnp.float32).reshape(n, -1, groups, c // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
    return ((grouped - mean) * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape) * scale + bias


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis in float32."""

    epsilon: float = 1e-5
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return choose.layer_norm(layer_norm, x, scale, bias, self.epsilon, self.compute)


def layer_norm(x: Float[Array, "... c"], scale: Array, bias: Array, epsilon: float, dtype) -> Array:
    """scale (x - mean) / sqrt(variance + epsilon) + bias, moments over the last axis.

    Ba, Kiros and Hinton, Layer Normalization, arXiv 1607.06450, equations 3 and 4.
    """
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon) * scale + bias).astype(dtype)


def attend(
    q: Float[Array, "n s k d"], k: Float[Array, "n l k d"], v: Float[Array, "n l k d"], compute: Compute
) -> Float[Array, "n s k d"]:
    """softmax(q k^T / sqrt(d)) v for each head, softmax in float32 (Vaswani et al., arXiv 1706.03762, equation 1)."""
    return choose.attention(plain_attention, q, k, v, compute)


def plain_attention(q: Array, k: Array, v: Array, compute: Compute) -> Float[Array, "n s k d"]:
    """The equation, for all heads at once."""
    scores = jnp.einsum("nskd,nlkd->nksl", q, k, precision=compute.precision).astype(jnp.float32)
    weights = nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1).astype(q.dtype)
    return jnp.einsum("nksl,nlkd->nskd", weights, v, precision=compute.precision)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x sigmoid(x) in float32, by tanh, which takes a CPU half the time of `nn.silu`."""
    y = x.astype(jnp.float32)
    return (y * (0.5 + 0.5 * jnp.tanh(0.5 * y))).astype(x.dtype)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x (1 + erf(x / sqrt(2))) / 2, in float32 (Hendrycks and Gimpel, arXiv 1606.08415, section 2).

    `nn.gelu` uses erfc: with that, a feed-forward layer and its gradient take a CPU a third more time, and memory.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)
