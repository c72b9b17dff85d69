"""The Euler sampler of SV3D: a deterministic ODE solver from unit noise to latents, churn as an option."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float
from sv3d_jax.diffusion.denoiser import Denoise


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Noise added back before a step (EDM, algorithm 2); SV3D uses none."""

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def gamma(self, sigma: Array, num_steps: int) -> Array:
        """Relative increase of the noise level at sigma."""
        gamma = min(self.s_churn / num_steps, math.sqrt(2.0) - 1.0)
        return jnp.where((sigma >= self.s_tmin) & (sigma <= self.s_tmax), gamma, 0.0)


def initial_latents(noise: Float[Array, "b f h w c"], sigmas: Float[Array, "steps_plus_1"]) -> Array:
    """Unit noise at the scale of the first level: times sqrt(1 + sigma_0^2)."""
    return noise * jnp.sqrt(1.0 + jnp.square(jnp.asarray(sigmas[0], jnp.float32)))


def euler_step(denoise: Denoise, x: Float[Array, "b f h w c"], sigma: Array, sigma_next: Array) -> Array:
    """One Euler step of the probability-flow ODE from sigma to sigma_next."""
    slope = (x - denoise(x, jnp.broadcast_to(sigma, x.shape[:1]))) / sigma
    return x + (sigma_next - sigma) * slope


def sampler_step(
    denoise: Denoise,
    churn: Churn | None,
    num_steps: int,
    x: Array,
    sigma: Array,
    sigma_next: Array,
    keys: Array | None,
) -> Array:
    """One step of the sampler: churn if it is on, with one key per video, then Euler."""
    if churn is not None and churn.s_churn > 0:
        raised = sigma * (1.0 + churn.gamma(sigma, num_steps))
        spread = churn.s_noise * jnp.sqrt(jnp.square(raised) - jnp.square(sigma))
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        x = x + spread * noise
        sigma = raised
    return euler_step(denoise, x, sigma, sigma_next)


def sample(
    denoise: Denoise,
    noise: Float[Array, "b f h w c"],
    sigmas: Float[Array, "steps_plus_1"],
    churn: Churn | None = None,
    keys: Array | None = None,
) -> Float[Array, "b f h w c"]:
    """Integrate from unit noise, scaled to sigmas[0], down to sigmas[-1] = 0; one scan, for use under jit."""
    return trajectory(denoise, noise, sigmas, churn, keys, keep=False)[0]


def trajectory(
    denoise: Denoise,
    noise: Float[Array, "b f h w c"],
    sigmas: Float[Array, "steps_plus_1"],
    churn: Churn | None = None,
    keys: Array | None = None,
    keep: bool = True,
) -> tuple[Array, Array | None]:
    """The sample and, if kept, the latents after every step `steps b f h w c`."""
    sigmas = jnp.asarray(sigmas, jnp.float32)
    num_steps = len(sigmas) - 1

    def step(x, level):
        index, sigma, sigma_next = level
        x = sampler_step(denoise, churn, num_steps, x, sigma, sigma_next, _step_keys(keys, index))
        return x, (x if keep else None)

    levels = (jnp.arange(num_steps), sigmas[:-1], sigmas[1:])
    return jax.lax.scan(step, initial_latents(noise, sigmas), levels)


def sample_with_callback(
    step: Callable[[Array, Array, Array, Array], Array],
    noise: Float[Array, "b f h w c"],
    sigmas: Float[Array, "steps_plus_1"],
    callback: Callable[[int, float, Array], None],
    keys: Array | None = None,
) -> Float[Array, "b f h w c"]:
    """The same integration as a host loop over one compiled step, with a call after each.

    step is a compiled (x, sigma, sigma_next, keys) -> x. callback gets (steps done, sigma reached, latents); what
    it raises ends the loop. It is called when a step has really finished, so at most one step runs past a cancel.
    """
    sigmas = jnp.asarray(sigmas, jnp.float32)
    x = initial_latents(noise, sigmas)
    for index in range(len(sigmas) - 1):
        x = jax.block_until_ready(step(x, sigmas[index], sigmas[index + 1], _step_keys(keys, index)))
        callback(index + 1, float(sigmas[index + 1]), x)
    return x


def _step_keys(keys: Array | None, index: int | Array) -> Array | None:
    """The keys of one step, one per video, so that a video draws the same noise in a batch as alone."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
