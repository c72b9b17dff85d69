"""Volume rendering: compositing of samples along rays."""

from typing import NamedTuple

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float


class Composite(NamedTuple):
    """The result of rendering rays."""

    color: Float[Array, "n d"]  # over the background
    depth: Float[Array, "n"]  # sum of weight * depth, not divided by opacity
    opacity: Float[Array, "n"]
    weights: Float[Array, "n s"]  # of the samples: transmittance times alpha


def composite(
    density: Float[Array, "n s"],
    radiance: Float[Array, "n s d"],
    lengths: Float[Array, "n s"],
    depths: Float[Array, "n s"],
    background: Float[Array, "*#n d"],
) -> Composite:
    """Colour, depth and opacity of rays through intervals of constant density, front to back.

    With tau = density * length, a sample's weight is T (1 - exp(-tau)), where T = exp(-sum of tau before it) is the
    transmittance (Mildenhall et al. 2020, NeRF, equation 3). Samples of length 0 have no effect.
    """
    optical_depth = density * lengths
    transmittance = jnp.exp(optical_depth - jnp.cumsum(optical_depth, axis=-1))
    weights = transmittance * -jnp.expm1(-optical_depth)
    opacity = jnp.sum(weights, axis=-1)
    color = jnp.einsum("ns,nsd->nd", weights, radiance) + (1.0 - opacity)[:, None] * background
    depth = jnp.sum(weights * depths, axis=-1)
    return Composite(color, depth, opacity, weights)
