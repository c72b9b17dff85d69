"""Fresh parameters, from the distributions of the published modules."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from sv3d_jax.arrays import Array, Params


def fresh(network: nn.Module, key: Array, *shapes: tuple[int, ...]) -> Params:
    """Fresh parameters of a network that takes float32 inputs of these shapes, which are not computed with.

    One program for all draws takes XLA the better part of a minute to compile; one for each shape, seconds.
    """
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return network.lazy_init(key, *inputs, mutable=["params"])["params"]


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """Uniform in +-1/sqrt(fan_in), torch's default for linear layers and convolutions."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        # Flat, since XLA takes ten times as long to compile a draw of several dimensions; the numbers are the same.
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init
