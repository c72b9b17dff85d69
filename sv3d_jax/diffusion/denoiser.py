"""From network output to denoised latents: EDM preconditioning with velocity output, and guidance around it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float

Network = Callable[[Array, Array, Array, Array], Array]
"""(x `b f h w 2c`, c_noise `b f`, context `b *f l d`, vector `b f v`) -> network output `b f h w c`."""

Denoise = Callable[[Array, Array], Array]
"""(noisy latents `b f h w c`, sigma `b`) -> denoised latents."""


class Scalings(NamedTuple):
    """Factors of the preconditioned denoiser D(x) = skip x + out F(inp x, noise)."""

    skip: Array
    out: Array
    inp: Array
    noise: Array


class Conditioning(NamedTuple):
    """What the network knows besides the noisy latents."""

    context: Float[Array, "b *f l d"]  # image token of each video, or of each of its frames
    concat: Float[Array, "b f h w c"]  # conditioning latent, not scaled by the latent factor
    vector: Float[Array, "b f v"]  # embedded conditioning noise and camera of each frame

    def without_image(self) -> "Conditioning":
        """The unconditional branch: both image embeddings zero, noise level and camera kept."""
        return Conditioning(jnp.zeros_like(self.context), jnp.zeros_like(self.concat), self.vector)


def scalings(sigma: Float[Array, "..."]) -> Scalings:
    """Skip, output and input factors and noise label at noise level sigma.

    Velocity prediction with data deviation 1; the label is ln(sigma) / 4 (EDM, arXiv 2206.00364).
    """
    sigma = jnp.asarray(sigma, jnp.float32)
    variance = jnp.square(sigma) + 1.0
    return Scalings(
        skip=1.0 / variance,
        out=-sigma / jnp.sqrt(variance),
        inp=1.0 / jnp.sqrt(variance),
        noise=0.25 * jnp.log(sigma),
    )


def denoise(
    network: Network, x: Float[Array, "b f h w c"], sigma: Float[Array, "b f"], condition: Conditioning
) -> Float[Array, "b f h w c"]:
    """Denoised latents; preconditioning stays in float32 whatever the network computes in."""
    factors = scalings(sigma)
    skip, out, inp = (factor[:, :, None, None, None] for factor in factors[:3])
    features = jnp.concatenate([inp * x, condition.concat], axis=-1)
    return skip * x + out * network(features, factors.noise, condition.context, condition.vector)


def conditional_denoiser(network: Network, condition: Conditioning) -> Denoise:
    """Denoiser without guidance, one noise level per video."""

    def run(x, sigma):
        return denoise(network, x, jnp.broadcast_to(sigma[:, None], x.shape[:2]), condition)

    return run


def both_branches(network: Network, condition: Conditioning) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Denoiser that returns the unconditional and the conditional branch, computed as one batch in this order."""
    joined = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), condition.without_image(), condition)
    denoise_both = conditional_denoiser(network, joined)

    def run(x, sigma):
        both = denoise_both(jnp.concatenate([x, x]), jnp.concatenate([sigma, sigma]))
        return tuple(jnp.split(both, 2))

    return run


def branches_in_turn(
    network: Network, condition: Conditioning
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """The same with one branch after the other, in half the memory."""
    both = jax.tree.map(lambda u, c: jnp.stack([u, c]), condition.without_image(), condition)

    def run(x, sigma):
        return tuple(jax.lax.map(lambda branch: conditional_denoiser(network, branch)(x, sigma), both))

    return run


def guided_denoiser(
    network: Network, condition: Conditioning, scale: Float[Array, "f"], in_turn: bool = False
) -> Denoise:
    """Classifier-free guidance with one scale per frame: uncond + scale (cond - uncond), in float32.

    With `in_turn` the branches are not computed as one batch.
    """
    branches = (branches_in_turn if in_turn else both_branches)(network, condition)

    def run(x, sigma):
        return guide(*branches(x, sigma), scale)

    return run


def guide(
    unconditional: Float[Array, "b f h w c"], conditional: Float[Array, "b f h w c"], scale: Float[Array, "f"]
) -> Float[Array, "b f h w c"]:
    """The unconditional branch and scale times the step from it to the conditional one."""
    return unconditional + scale[:, None, None, None] * (conditional - unconditional)
