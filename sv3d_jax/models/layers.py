"""Layers with the parameter names and numerics of the published checkpoints, channels last.

Every layer takes `compute`: the precision, and whether to follow the plain form (`reference`, the oracle) or the
one that is fast on accelerators and CPUs. Both forms share parameters and agree up to rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float
from sv3d_jax.models import winograd
from sv3d_jax.models.quantize import matmul_8_bit


@dataclass(frozen=True)
class Compute:
    """How a network computes: activations in `dtype` (norms and softmax are float32 whatever it is).

    With `remat`, the gradient keeps what enters the blocks of the UNet and computes their inside again. With `fold`,
    kernels are joined and scaled first, which leaves fewer products: for callers that do so once, see `hoist`.
    """

    dtype: Any = jnp.float32
    reference: bool = False
    remat: bool = False
    fold: bool = False
    quantize: str | None = None  # linear layers that may be: int8, fp8
    platform: str | None = None  # cpu, gpu or tpu: what is compiled for, where it is not the device in use

    @property
    def target(self) -> str:
        """Platform that is compiled for."""
        return self.platform or jax.default_backend()

    @property
    def on_one_cpu(self) -> bool:
        """Whether work may go part by part, each small enough for a cache: not where values lie on several devices."""
        return self.target == "cpu" and jax.device_count() == 1

    @property
    def precision(self) -> str | None:
        return "highest" if self.reference else None


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """Uniform in +-1/sqrt(fan_in), the default initialisation of the published modules."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """Linear layer over the last axis; the product is accumulated in float32.

    A `quantizable` one is in 8 bits where that was asked for: those that take every token, not those of embeddings.
    """

    features: int
    use_bias: bool = True
    zero_init: bool = False
    quantizable: bool = False
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        fan_in = x.shape[-1]
        init = nn.initializers.zeros if self.zero_init else torch_uniform(fan_in)
        kernel = self.param("kernel", init, (fan_in, self.features))
        dtype = self.compute.dtype
        multiply = quantizable_matmul if self.quantizable else matmul
        y = multiply(x.astype(dtype), kernel.astype(dtype), self.compute)
        if self.use_bias:
            y = y + self.param("bias", init, (self.features,)).astype(dtype)
        return y


def matmul(x: Float[Array, "... c"], kernel: Float[Array, "c d"], compute: Compute) -> Float[Array, "... d"]:
    return jnp.matmul(x, kernel, precision=compute.precision)


def quantizable_matmul(
    x: Float[Array, "... c"], kernel: Float[Array, "c d"], compute: Compute
) -> Float[Array, "... d"]:
    """The product, in 8 bits if that was asked for."""
    if compute.quantize is None or compute.reference:
        return matmul(x, kernel, compute)
    return matmul_8_bit(x, kernel, compute.quantize, compute.target)


class DenseKernel(nn.Module):
    """The kernel of a linear layer, for one that is computed together with others."""

    features: int

    @nn.compact
    def __call__(self, fan_in: int) -> Float[Array, "c d"]:
        return self.param("kernel", torch_uniform(fan_in), (fan_in, self.features))


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
    """Convolution of `n h w c` with an HWIO kernel; a 1x1 kernel is a matrix product."""
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return jnp.matmul(x, kernel[0, 0], precision=compute.precision)
    keeps_size = kernel.shape[:2] == (3, 3) and stride == 1 and padding == ((1, 1), (1, 1))
    if keeps_size and compute.on_one_cpu and not compute.reference:
        has_even_sides = x.shape[1] % 2 == x.shape[2] % 2 == 0
        if has_even_sides and winograd.is_worth_it(kernel, math.prod(x.shape[:3])):
            return winograd.conv3x3(x, kernel)
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
        channels, compute = x.shape[-1], self.compute
        init = torch_uniform(channels * 9)
        kernel = self.param("kernel", init, (3, 3, channels, channels))
        bias = self.param("bias", init, (channels,))
        doubled = _double_then_convolve if compute.reference else _convolve_doubled
        return doubled(x.astype(compute.dtype), kernel, compute) + bias.astype(compute.dtype)


def _double_then_convolve(x: Array, kernel: Array, compute: Compute) -> Float[Array, "n h2 w2 o"]:
    return conv2d(nearest_double(x), kernel.astype(x.dtype), 1, ((1, 1),) * 2, compute)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_doubled(x: Array, kernel: Array, compute: Compute) -> Float[Array, "n h2 w2 o"]:
    """Each output row sees two input rows: an even one w0 of the row above and w1 + w2 of its own, an odd one w0 + w1
    of its own and w2 of the row below; columns alike. So one 2x2 convolution with four times the outputs, a quarter
    for each place in the doubled pixel, needs 4/9 of the products and no doubled copy of the input.
    """
    inputs, outputs = kernel.shape[2:]
    folded = jnp.matmul(_DOUBLING, kernel.reshape(9, -1), precision="highest")  # in float32, then cast
    folded = folded.astype(x.dtype).reshape(4, 2, 2, inputs, outputs)
    folded = jnp.moveaxis(folded, 0, 3).reshape(2, 2, inputs, 4 * outputs)
    n, h, w, _ = x.shape
    y = conv2d(x, folded, 1, ((1, 1),) * 2, compute).reshape(n, h + 1, w + 1, 2, 2, outputs)
    # Even rows and columns begin with the tap above or left of the first pixel, odd ones at the pixel itself.
    rows = jnp.stack([y[:, :-1, :, 0], y[:, 1:, :, 1]], axis=2)  # n h 2 w+1 2 o
    both = jnp.stack([rows[:, :, :, :-1, 0], rows[:, :, :, 1:, 1]], axis=4)  # n h 2 w 2 o
    return both.reshape(n, 2 * h, 2 * w, outputs)


def _convolve_doubled_forward(x: Array, kernel: Array, compute: Compute) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_doubled(x, kernel, compute), (x, kernel)


def _convolve_doubled_backward(compute: Compute, inputs: tuple[Array, Array], gradient: Array):
    """That of the plain form: a CPU takes twenty times as long over the kernel gradient of the folded one."""
    return jax.vjp(lambda x, kernel: _double_then_convolve(x, kernel, compute), *inputs)[1](gradient)


_convolve_doubled.defvjp(_convolve_doubled_forward, _convolve_doubled_backward)

_TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)  # of even and odd outputs
_DOUBLING = np.einsum("atr,buc->abturc", _TAPS, _TAPS).reshape(16, 9)
"""Places in the doubled pixel times 2x2 taps, of the 3x3 taps."""


def nearest_double(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Each pixel becomes a 2x2 block."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)


class TemporalConv(nn.Module):
    """Convolution over three neighbouring frames of `b f h w c`, zero beyond the ends (published kernel (3,1,1)).

    The result times `scale`, a number.
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
    """Sum over the previous, same and next frame of frame times kernel; never a 3-D convolution, which is slow."""
    b, f, h, w, c = x.shape
    if compute.reference:
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        taps = [jnp.matmul(padded[:, i : i + f], kernel[i], precision="highest") for i in range(3)]
        return taps[0] + taps[1] + taps[2]
    if compute.on_one_cpu and winograd.is_worth_it(kernel, b * f * h * w):
        return winograd.conv3(x, kernel)
    if compute.target == "cpu":  # as fast as the form below, and its gradient takes two thirds of the time
        rows = x.reshape(b, f, h * w, c).swapaxes(1, 2).reshape(-1, f, c)
        y = jax.lax.conv_general_dilated(
            rows, kernel, (1,), ((1, 1),), dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y.reshape(b, h * w, f, -1).swapaxes(1, 2).reshape(b, f, h, w, -1)
    y = jax.lax.conv_general_dilated(
        x.reshape(b, f, h * w, c),
        kernel[:, None],
        (1, 1),
        ((1, 1), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(b, f, h, w, -1)


class GroupNorm(nn.Module):
    """Group normalisation with 32 groups in float32, then an activation; statistics pool over all axes between the
    first and the last.

    Give frames as `n h w c` to pool per frame, a video as `b f h w c` to pool over its frames too. The gradient keeps
    what came in and what goes out, and computes what is between again.
    """

    epsilon: float
    groups: int = 32
    compute: Compute = Compute()
    activation: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n ... c"]) -> Float[Array, "n ... c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        frames = x.shape[1] if x.ndim == 5 else 1
        rows = x.reshape(x.shape[0], frames, -1, channels)
        activation = self.activation or (lambda y: y)
        if self.compute.reference:
            y = activation(
                _group_norm_plain(rows.astype(jnp.float32), scale, bias, self.groups, self.epsilon)
            )
        else:
            slope, offset = _group_norm_line(rows, scale, bias, self.groups, self.epsilon, self.compute)
            y = _on_a_line(rows, slope, offset, activation, self.compute)
        return y.reshape(x.shape).astype(self.compute.dtype)


def _group_norm_plain(x: Float[Array, "n f p c"], scale, bias, groups: int, epsilon: float) -> Array:
    n, f, p, c = x.shape
    grouped = x.reshape(n, f * p, groups, c // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
    return ((grouped - mean) * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape) * scale + bias


def _group_norm_line(
    x: Float[Array, "n f p c"], scale, bias, groups: int, epsilon: float, compute: Compute
) -> tuple[Float[Array, "n f 1 c"], Float[Array, "n f 1 c"]]:
    """Slope and offset of each channel: from moments of each channel of a frame, then of groups and frames."""
    n, f, _, c = x.shape
    grouped = (n, f, groups, c // groups)
    mean, variance = (moment.reshape(grouped) for moment in _moments(x, compute))
    group_mean = mean.mean((1, 3), keepdims=True)
    group_variance = (variance + jnp.square(mean - group_mean)).mean((1, 3))
    slope = scale * _on_channels(jax.lax.rsqrt(group_variance + epsilon), c, compute)
    offset = bias - _on_channels(group_mean[:, 0, :, 0], c, compute) * slope
    return tuple(jnp.broadcast_to(each[:, None, None], (n, f, 1, c)) for each in (slope, offset))


@partial(jax.checkpoint, static_argnums=(3, 4))
def _on_a_line(
    x: Array, slope: Array, offset: Array, activation: Callable[[Array], Array], compute: Compute
) -> Array:
    times = _times_slope if compute.target == "cpu" else jnp.multiply
    return activation(times(x.astype(jnp.float32), slope) + offset).astype(compute.dtype)


@jax.custom_vjp
def _times_slope(x: Float[Array, "n f p c"], slope: Float[Array, "n f 1 c"]) -> Float[Array, "n f p c"]:
    """The product, whose gradient is not a product and a sum, over which a CPU takes up to twenty times as long."""
    return x * slope


def _times_slope_backward(inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, slope = inputs
    return gradient * slope, jnp.einsum("nfpc,nfpc->nfc", gradient, x, precision="highest")[:, :, None]


_times_slope.defvjp(lambda x, slope: (x * slope, (x, slope)), _times_slope_backward)


@partial(jax.checkpoint, static_argnums=(1,))
def _moments(
    x: Float[Array, "n f p c"], compute: Compute
) -> tuple[Float[Array, "n f c"], Float[Array, "n f c"]]:
    """Mean and variance over the pixels, in float32.

    E[x^2] - E[x]^2 alone loses all digits when the mean is large against the deviation. A CPU goes over the values
    twice; elsewhere moments are taken about each channel's first value, which one pass can do.
    """
    x = x.astype(jnp.float32)
    if compute.target == "cpu":
        mean = x.mean(2)
        return mean, jnp.square(x - mean[:, :, None]).mean(2)
    anchor = jax.lax.stop_gradient(x[:, :, :1])
    shifted = x - anchor
    first, second = shifted.mean(2), jnp.square(shifted).mean(2)
    return anchor[:, :, 0] + first, jnp.maximum(second - jnp.square(first), 0.0)


def _on_channels(x: Float[Array, "n g"], channels: int, compute: Compute) -> Float[Array, "n c"]:
    """The value of its group for every channel.

    On a CPU as a product with zeros and ones: the compiler would divide indices for every value of a picture.
    """
    each = channels // x.shape[1]
    if compute.target != "cpu":
        return jnp.repeat(x, each, axis=1)
    spread = np.kron(np.eye(x.shape[1], dtype=np.float32), np.ones((1, each), np.float32))
    return jnp.matmul(x, spread, precision="highest")


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis in float32."""

    epsilon: float = 1e-5
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        normalise = partial(_layer_norm, epsilon=self.epsilon, dtype=self.compute.dtype)
        if self.compute.reference:
            return normalise(x, scale, bias)
        # One CPU takes up to four times as long over the gradient where there are more axes than two.
        rows = x.reshape(-1, x.shape[-1]) if self.compute.on_one_cpu else x
        return jax.checkpoint(normalise)(rows, scale, bias).reshape(x.shape)


def _layer_norm(x: Float[Array, "... c"], scale, bias, epsilon: float, dtype) -> Float[Array, "... c"]:
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon) * scale + bias).astype(dtype)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x sigmoid(x) by tanh in float32: half the time on a CPU that `nn.silu` takes."""
    y = x.astype(jnp.float32)
    return (y * (0.5 + 0.5 * jnp.tanh(0.5 * y))).astype(x.dtype)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU by erf in float32, as published.

    `nn.gelu` goes by erfc: with its gradient that takes a CPU a third more time, and memory, of a feed-forward layer.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)
