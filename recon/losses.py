"""Losses of the reconstruction; all are means in float32."""

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, Scalar


def photometric_loss(rendered: Float[Array, "*n d"], target: Float[Array, "*n d"]) -> Scalar:
    """Mean squared error of colours over the background."""
    return jnp.mean(jnp.square(rendered - target))


def mask_loss(opacity: Float[Array, "*n"], mask: Float[Array, "*n"], weights: Float[Array, "*n"]) -> Scalar:
    """Weighted mean squared error of coverage."""
    return jnp.mean(weights * jnp.square(opacity - mask))
