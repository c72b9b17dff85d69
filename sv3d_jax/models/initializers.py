"""Distributions of fresh parameters, those of the published modules."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """Uniform in +-1/sqrt(fan_in), torch's default for linear layers and convolutions."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
