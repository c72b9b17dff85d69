"""The training objective: weighted squared error of the denoised latents (EDM, eq. 2)."""

from collections.abc import Callable

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float
from sv3d_jax.diffusion.denoiser import Conditioning, Network, denoise


def v_weighting(sigma: Float[Array, "..."]) -> Float[Array, "..."]:
    """(1 + sigma^2) / sigma^2: the network output then has unit weight at every level."""
    return edm_weighting(sigma, sigma_data=1.0)


def edm_weighting(sigma: Float[Array, "..."], sigma_data: float = 0.5) -> Float[Array, "..."]:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
    return (jnp.square(sigma) + sigma_data**2) / jnp.square(sigma * sigma_data)


def eps_weighting(sigma: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 / sigma^2."""
    return 1.0 / jnp.square(sigma)


def unit_weighting(sigma: Float[Array, "..."]) -> Float[Array, "..."]:
    """1."""
    return jnp.ones_like(sigma)


WEIGHTINGS: dict[str, Callable[[Array], Array]] = {
    "v": v_weighting,
    "edm": edm_weighting,
    "eps": eps_weighting,
    "unit": unit_weighting,
}


def denoising_loss(
    network: Network,
    latents: Float[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    sigma: Float[Array, "b f"],
    condition: Conditioning,
    weighting: Callable[[Array], Array] = v_weighting,
) -> Float[Array, "b f"]:
    """Loss of every frame: mean over its latent of weighting(sigma) (D(latents + sigma noise) - latents)^2.

    sigma should be one level per video, repeated over its frames, as in sampling.
    """
    noisy = latents + sigma[:, :, None, None, None] * noise
    denoised = denoise(network, noisy, sigma, condition)
    return weighting(sigma) * jnp.square(denoised - latents).mean((2, 3, 4))
