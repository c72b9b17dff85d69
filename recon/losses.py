"""Losses of the reconstruction; all are means in float32."""

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, Scalar


def photometric_loss(rendered: Float[Array, "*n d"], target: Float[Array, "*n d"]) -> Scalar:
    """Mean squared error of colours over the background."""
    return jnp.mean(jnp.square(rendered - target))


def mask_loss(opacity: Float[Array, "*n"], mask: Float[Array, "*n"], weights: Float[Array, "*n"]) -> Scalar:
    """Weighted mean squared error of coverage."""
    return jnp.mean(weights * jnp.square(opacity - mask))


def distortion_loss(
    weights: Float[Array, "n s"], depths: Float[Array, "n s"], lengths: Float[Array, "n s"]
) -> Scalar:
    """Mean over rays of the distance between the places where a ray sees something (mip-NeRF 360, eq. 15).

    Where colour is even, fog explains the views as well as a surface does; this prefers the surface. Samples are
    in order along the ray.
    """
    # sum_ij w_i w_j |t_i - t_j| is twice the sum over pairs with t_j < t_i.
    weight_before = jnp.cumsum(weights, axis=-1) - weights
    moment = weights * depths
    moment_before = jnp.cumsum(moment, axis=-1) - moment
    between = 2.0 * jnp.sum(weights * (depths * weight_before - moment_before), axis=-1)
    within = jnp.sum(jnp.square(weights) * lengths, axis=-1) / 3.0
    return jnp.mean(between + within)
