"""The Euler sampler of SV3D: a deterministic ODE solver from unit noise to latents, churn as an option."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float
from sv3d_jax.diffusion.denoiser import Denoise
from sv3d_jax.hoist import hoist


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
    sigma: Array,
    sigma_next: Array,
    x: Array,
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


class SamplerProgram(NamedTuple):
    """All steps of a sampler: what is computed before the first of them, and one step."""

    prepare: Callable[[tuple, Float[Array, "steps_plus_1"]], Any]
    """(fixed arguments, sigmas) -> prepared values."""
    step: Callable[[tuple, Float[Array, "steps_plus_1"], Any, Array, Array, Array | None], Array]
    """(fixed arguments, sigmas, prepared values, index of the step, x, its keys) -> x."""


def plain_program(step: Callable[..., Array]) -> SamplerProgram:
    """`step(*fixed, sigma, sigma_next, x, keys)` as it is, with nothing prepared."""
    return SamplerProgram(
        prepare=lambda fixed, sigmas: (),
        step=lambda fixed, sigmas, prepared, index, x, keys: step(
            *fixed, sigmas[index], sigmas[index + 1], x, keys
        ),
    )


def hoisted_program(step: Callable[..., Array], fixed: tuple, x: Array, keys: Array | None) -> SamplerProgram:
    """The same with everything prepared that latents do not decide: what depends on the noise level, for all levels."""
    level = jax.ShapeDtypeStruct((), jnp.float32)
    once, at_level, rest = hoist(step, fixed, (level, level), (x, keys))

    def prepare(fixed, sigmas):
        kept = once(fixed)
        return kept, jax.vmap(lambda *levels: at_level(fixed, levels, kept))(sigmas[:-1], sigmas[1:])

    def step_at(fixed, sigmas, prepared, index, x, keys):
        kept, at_levels = prepared
        levels = (sigmas[index], sigmas[index + 1])
        return rest(fixed, levels, (x, keys), kept, [values[index] for values in at_levels])

    return SamplerProgram(prepare, step_at)


def sample(
    denoise: Denoise,
    noise: Float[Array, "b f h w c"],
    sigmas: Float[Array, "steps_plus_1"],
    churn: Churn | None = None,
    keys: Array | None = None,
) -> Float[Array, "b f h w c"]:
    """Integrate from unit noise, scaled to sigmas[0], down to sigmas[-1] = 0; one scan, for use under jit."""
    program = plain_program(partial(sampler_step, denoise, churn, len(sigmas) - 1))
    return run_program(program, (), noise, sigmas, keys)


def run_program(
    program: SamplerProgram,
    fixed: tuple,
    noise: Float[Array, "b f h w c"],
    sigmas: Float[Array, "steps_plus_1"],
    keys: Array | None = None,
) -> Float[Array, "b f h w c"]:
    """All steps of a program as one scan, for use under jit."""
    sigmas = jnp.asarray(sigmas, jnp.float32)
    prepared = program.prepare(fixed, sigmas)

    def step(x, index):
        return program.step(fixed, sigmas, prepared, index, x, _step_keys(keys, index)), None

    return jax.lax.scan(step, initial_latents(noise, sigmas), jnp.arange(len(sigmas) - 1))[0]


def sample_with_callback(
    step: Callable[[Array, Array, Array | None], Array],
    noise: Float[Array, "b f h w c"],
    sigmas: Float[Array, "steps_plus_1"],
    callback: Callable[[int, float, Array], None],
    keys: Array | None = None,
) -> Float[Array, "b f h w c"]:
    """The same integration as a host loop over one compiled step, with a call after each.

    step is a compiled (index, x, keys) -> x. callback gets (steps done, sigma reached, latents); what it raises ends
    the loop. It is called when a step has really finished, so at most one step runs past a cancel.
    """
    x = initial_latents(noise, sigmas)
    for index in range(len(sigmas) - 1):
        x = jax.block_until_ready(step(np.int32(index), x, _step_keys(keys, index)))
        callback(index + 1, float(sigmas[index + 1]), x)
    return x


def _step_keys(keys: Array | None, index: int | Array) -> Array | None:
    """The keys of one step, one per video, so that a video draws the same noise in a batch as alone."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
