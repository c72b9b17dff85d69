"""From network output to denoised latents: EDM preconditioning with velocity output, and guidance around it."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    """Conditioning inputs of the network."""

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
    """Denoised latents D(x) = c_skip x + c_out F(c_in x, c_noise) (EDM, eq. 7).

    Preconditioning stays in float32 whatever the network computes in.
    """
    return precondition(lambda *inputs: (network(*inputs), None), x, sigma, condition)[0]


def precondition(
    network: Callable[..., tuple[Array, Any]],
    x: Float[Array, "b f h w c"],
    sigma: Float[Array, "b f"],
    condition: Conditioning,
) -> tuple[Float[Array, "b f h w c"], Any]:
    """`denoise` for a network that returns (output, other); returns (denoised latents, other)."""
    factors = scalings(sigma)
    skip, out, inp = (factor[:, :, None, None, None] for factor in factors[:3])
    features = jnp.concatenate([inp * x, condition.concat], axis=-1)
    output, other = network(features, factors.noise, condition.context, condition.vector)
    return skip * x + out * output, other


def conditional_denoiser(network: Network, condition: Conditioning) -> Denoise:
    """Denoiser without guidance, one noise level per video."""

    def run(x, sigma):
        return denoise(network, x, jnp.broadcast_to(sigma[:, None], x.shape[:2]), condition)

    return run


def both_branches(network: Network, condition: Conditioning) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Denoiser that returns the unconditional and the conditional branch, computed as one batch in this order."""
    joined = conditional_denoiser(network, joined_branches(condition))

    def run(x, sigma):
        return tuple(jnp.split(joined(jnp.concatenate([x, x]), jnp.concatenate([sigma, sigma])), 2))

    return run


def sequential_branches(
    network: Network, condition: Conditioning
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """The same by sequential classifier-free guidance: one branch after the other, in half the memory."""
    both = jax.tree.map(lambda u, c: jnp.stack([u, c]), condition.without_image(), condition)

    def run(x, sigma):
        return tuple(jax.lax.map(lambda branch: conditional_denoiser(network, branch)(x, sigma), both))

    return run


def guided_denoiser(
    network: Network, condition: Conditioning, scale: Float[Array, "f"], sequential: bool = False
) -> Denoise:
    """Classifier-free guidance with one scale per frame, in float32; with `sequential`, by `sequential_branches`."""
    branches = (sequential_branches if sequential else both_branches)(network, condition)

    def run(x, sigma):
        return guide(*branches(x, sigma), scale)

    return run


def joined_branches(condition: Conditioning) -> Conditioning:
    """The conditioning of the unconditional and of the conditional branch, as one batch in this order."""
    return jax.tree.map(lambda u, c: jnp.concatenate([u, c]), condition.without_image(), condition)


def guide(
    unconditional: Float[Array, "b f h w c"], conditional: Float[Array, "b f h w c"], scale: Float[Array, "f"]
) -> Float[Array, "b f h w c"]:
    """Classifier-free guidance (arXiv 2207.12598, eq. 6): unconditional + scale (conditional - unconditional)."""
    return unconditional + scale[:, None, None, None] * (conditional - unconditional)
