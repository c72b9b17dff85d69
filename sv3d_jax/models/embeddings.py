"""Sinusoidal embeddings of noise levels, angles and frame indices."""

import math

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float


def sinusoidal(values: Float[Array, "..."], width: int) -> Float[Array, "... width"]:
    """Cosines, then sines, of each value times `width / 2` frequencies from 1 down to nearly 1/10000; float32.

    Vaswani et al., arXiv 1706.03762, section 3.5, with all cosines before the sines.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(values, jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
