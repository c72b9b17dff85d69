"""Norms with fewer passes over the values, and gradients that keep little."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float
from sv3d_jax.models.compute import Compute


def group_norm(
    x: Float[Array, "n ... c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    groups: int,
    epsilon: float,
    activation: Callable[[Array], Array],
    compute: Compute,
) -> Float[Array, "n ... c"]:
    """activation(slope x + offset) with one slope and offset per channel, those that the group norm amounts to.

    Statistics are moments of each channel of each frame, then of groups and frames. The gradient keeps x and the
    result, and computes what is between again.
    """
    frames = x.shape[1] if x.ndim == 5 else 1
    rows = x.reshape(x.shape[0], frames, -1, x.shape[-1])
    slope, offset = _slope_and_offset(rows, scale, bias, groups, epsilon, compute)
    y = _scale_and_shift(rows, slope, offset, activation, compute)
    return y.reshape(x.shape).astype(compute.dtype)


def _slope_and_offset(
    x: Float[Array, "n f p c"], scale, bias, groups: int, epsilon: float, compute: Compute
) -> tuple[Float[Array, "n f 1 c"], Float[Array, "n f 1 c"]]:
    n, f, _, c = x.shape
    grouped = (n, f, groups, c // groups)
    mean, variance = (moment.reshape(grouped) for moment in _moments(x, compute))
    group_mean = mean.mean((1, 3), keepdims=True)
    group_variance = (variance + jnp.square(mean - group_mean)).mean((1, 3))
    slope = scale * _on_channels(jax.lax.rsqrt(group_variance + epsilon), c, compute)
    offset = bias - _on_channels(group_mean[:, 0, :, 0], c, compute) * slope
    return tuple(jnp.broadcast_to(each[:, None, None], (n, f, 1, c)) for each in (slope, offset))


@partial(jax.checkpoint, static_argnums=(1,))
def _moments(
    x: Float[Array, "n f p c"], compute: Compute
) -> tuple[Float[Array, "n f c"], Float[Array, "n f c"]]:
    """Mean and variance over the pixels, in float32.

    E[x^2] - E[x]^2 loses all digits where the mean is large against the deviation. So a CPU makes two passes over the
    values; accelerators make one, over the differences from each channel's first value.
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
    """For every channel, the value of its group.

    On a CPU as a product with zeros and ones: its compiler makes `jnp.repeat` an integer division for every value of
    the picture.
    """
    each = channels // x.shape[1]
    if compute.target != "cpu":
        return jnp.repeat(x, each, axis=1)
    spread = np.kron(np.eye(x.shape[1], dtype=np.float32), np.ones((1, each), np.float32))
    return jnp.matmul(x, spread, precision="highest")


@partial(jax.checkpoint, static_argnums=(3, 4))
def _scale_and_shift(
    x: Array, slope: Array, offset: Array, activation: Callable[[Array], Array], compute: Compute
) -> Array:
    times = _times_slope if compute.target == "cpu" else jnp.multiply
    return activation(times(x.astype(jnp.float32), slope) + offset).astype(compute.dtype)


@jax.custom_vjp
def _times_slope(x: Float[Array, "n f p c"], slope: Float[Array, "n f 1 c"]) -> Float[Array, "n f p c"]:
    """The product; its gradient to the slope is one contraction.

    By itself it would be a product and then a sum, over which a CPU takes up to twenty times as long.
    """
    return x * slope


def _times_slope_backward(inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, slope = inputs
    return gradient * slope, jnp.einsum("nfpc,nfpc->nfc", gradient, x, precision="highest")[:, :, None]


_times_slope.defvjp(lambda x, slope: (x * slope, (x, slope)), _times_slope_backward)


def layer_norm(
    plain: Callable[..., Array],
    x: Float[Array, "... c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    epsilon: float,
    compute: Compute,
) -> Float[Array, "... c"]:
    """The plain form, whose gradient keeps x alone.

    One CPU gets rows: it takes up to four times as long over the gradient where there are more axes than two.
    """
    rows = x.reshape(-1, x.shape[-1]) if compute.on_one_cpu else x
    normalise = jax.checkpoint(partial(plain, epsilon=epsilon, dtype=compute.dtype))
    return normalise(rows, scale, bias).reshape(x.shape)
