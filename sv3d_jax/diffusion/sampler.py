"""From unit noise to latents by the steps of a sampler: denoise, correct, update.

The steps are one scan under `jax.jit` (`sample`), or a host loop over compiled steps, which callbacks and corrections
on the host need (`sv3d_jax.sampling`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float
from sv3d_jax.diffusion.config import Churn, SamplingConfig
from sv3d_jax.diffusion.denoiser import Denoise
from sv3d_jax.diffusion.solvers import Euler, Solver, StepLevels, make_solver
from sv3d_jax.errors import InputError

Correct = Callable[[Array, Array, Array], Array]
"""(denoised latents `b f h w c`, sigma, index of the step) -> corrected denoised latents."""


class SamplerState(NamedTuple):
    """What one step hands to the next."""

    latents: Float[Array, "b f h w c"]
    memory: Any = ()  # state of the solver
    features: Float[Array, "n f h w d"] | None = None  # cached, of the lower-resolution levels of the UNet


@dataclass(frozen=True)
class Correction:
    """A change of the denoised latents between denoiser and solver, e.g. to replace them by re-rendered views.

    function takes denoised latents `b f h w c`, the noise level and the index of the step, counted from 0, and returns
    denoised latents. on: "guided" corrects the guided estimate, "branches" each branch before guidance. steps: where it
    applies, None for all steps; -1 is the last. With `on_host`, function is called between compiled steps with arrays
    on the device, and may do anything; otherwise it is pure and part of the compiled step.
    """

    function: Correct
    on: Literal["guided", "branches"] = "guided"
    steps: Sequence[int] | None = None
    on_host: bool = False

    def __post_init__(self):
        if not callable(self.function):
            raise InputError(
                f"correct is a function of denoised latents, noise level and step, got {self.function!r}"
            )
        if self.on not in ("guided", "branches"):
            raise InputError(f'a Correction is on "guided" or "branches", got {self.on!r}')
        if self.steps is not None:
            object.__setattr__(self, "steps", tuple(int(step) for step in self.steps))

    def for_steps(self, num_steps: int) -> "Correction":
        """The correction with negative indices of steps resolved. Raises InputError for a step out of range."""
        if self.steps is None:
            return self
        if bad := [step for step in self.steps if not -num_steps <= step < num_steps]:
            raise InputError(f"Correction.steps has {bad[0]}, but there are {num_steps} steps")
        return replace(self, steps=tuple(sorted({step % num_steps for step in self.steps})))

    def program_key(self) -> Any:
        """Key for compiled programs; the function of an on_host correction is not part of them."""
        return ("host", self.on) if self.on_host else (self.function, self.on, self.steps)

    def __call__(self, denoised: Array, levels: StepLevels) -> Array:
        """Corrected latents of one step, under `jax.jit`."""

        def change(denoised, sigma, index):
            return jnp.asarray(self.corrected(denoised, sigma, index), denoised.dtype)

        if self.steps is None:
            return change(denoised, levels.current, levels.index)
        is_due = jnp.isin(levels.index, jnp.asarray(self.steps, jnp.int32))
        return jax.lax.cond(is_due, change, lambda x, *_: x, denoised, levels.current, levels.index)

    def corrected(self, denoised: Array, sigma: Array, index: Array | int) -> Any:
        """What the function returns. Raises InputError if it is no array of the shape of the denoised latents."""
        result = self.function(denoised, sigma, index)
        if (shape := getattr(result, "shape", None)) != denoised.shape:
            found = f"the shape {shape}" if shape is not None else f"{result!r}"
            raise InputError(f"correct must return latents of the shape {denoised.shape}, got {found}")
        return result


@dataclass(frozen=True)
class Sampler:
    """The steps of sampling, for any denoiser."""

    num_steps: int
    solver: Solver = Euler()
    churn: Churn = Churn()
    correction: Correction | None = None

    @classmethod
    def from_config(
        cls, config: SamplingConfig, num_steps: int, correct: "Correct | Correction | None" = None
    ) -> "Sampler":
        """The sampler that the options name."""
        if correct is not None:
            correct = correct if isinstance(correct, Correction) else Correction(correct)
            correct = correct.for_steps(num_steps)
        return cls(num_steps, make_solver(config.solver), config.churn_options, correct)

    def init(self, noise: Float[Array, "b f h w c"], sigmas: Float[Array, "steps_plus_1"]) -> SamplerState:
        """What the first step starts from: unit noise at the scale of the first level."""
        x = initial_latents(noise, sigmas)
        return SamplerState(x, self.solver.init(x))

    def step(
        self, denoise: Denoise, levels: StepLevels, state: SamplerState, keys: Array | None = None
    ) -> SamplerState:
        """One step. `keys`, one per video, are for churn."""
        x, levels = self.add_churn(state.latents, levels, keys)
        denoised = denoise(x, jnp.broadcast_to(levels.current, x.shape[:1]))
        denoised = self.correct(denoised, levels, "guided")
        x, memory = self.solver.update(x, denoised, levels, state.memory)
        return SamplerState(x, memory, state.features)

    def add_churn(
        self, x: Float[Array, "b f h w c"], levels: StepLevels, keys: Array | None
    ) -> tuple[Array, StepLevels]:
        """Latents with noise added, and the raised level (EDM, algorithm 2, lines 4 to 6); unchanged without churn."""
        churn, sigma = self.churn, levels.current
        if not churn.s_churn:
            return x, levels
        if keys is None:
            raise InputError("churn draws noise in every step: it needs keys, one for each video")
        gamma = min(churn.s_churn / self.num_steps, math.sqrt(2.0) - 1.0)
        gamma = jnp.where((sigma >= churn.s_tmin) & (sigma <= churn.s_tmax), gamma, 0.0)
        raised = sigma * (1.0 + gamma)
        spread = churn.s_noise * jnp.sqrt(jnp.square(raised) - jnp.square(sigma))
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        return x + spread * noise, levels._replace(current=raised)

    def correct(self, denoised: Array, levels: StepLevels, what: str) -> Array:
        """The correction applied, if it is meant for `what` ("guided" or "branches") and is not run on the host."""
        correction = self.correction
        if correction is None or correction.on_host or correction.on != what:
            return denoised
        return correction(denoised, levels)


def initial_latents(noise: Float[Array, "b f h w c"], sigmas: Float[Array, "steps_plus_1"]) -> Array:
    """Unit noise at the scale of the first level: times sqrt(1 + sigma_0^2)."""
    return noise * jnp.sqrt(1.0 + jnp.square(jnp.asarray(sigmas[0], jnp.float32)))


def sample(
    denoise: Denoise,
    noise: Float[Array, "b f h w c"],
    sigmas: Float[Array, "steps_plus_1"],
    config: SamplingConfig = SamplingConfig(),
    keys: Array | None = None,
    correct: Correct | Correction | None = None,
) -> Float[Array, "b f h w c"]:
    """Integrate from unit noise, scaled to sigmas[0], down to sigmas[-1] = 0; one scan, for use under jit.

    `denoise` includes guidance; of the options, `solver` and `churn` alone are used. `keys`, one per video, are for
    churn.
    """
    sampler = Sampler.from_config(config, len(sigmas) - 1, correct)
    if (correction := sampler.correction) is not None and (correction.on_host or correction.on == "branches"):
        raise InputError(
            'sample() supports only Correction(on="guided", on_host=False)',
            hint="Pipeline supports the other forms",
        )
    sigmas = jnp.asarray(sigmas, jnp.float32)

    def step(state, index):
        return sampler.step(denoise, levels_at(sigmas, index), state, step_keys(keys, index)), None

    return jax.lax.scan(step, sampler.init(noise, sigmas), jnp.arange(sampler.num_steps))[0].latents


def levels_at(sigmas: Float[Array, "steps_plus_1"], index: int | Array) -> StepLevels:
    """The noise levels of one or several steps; `previous` of step 0 is sigmas[0]."""
    return StepLevels(sigmas[jnp.maximum(index - 1, 0)], sigmas[index], sigmas[index + 1], jnp.asarray(index))


def step_keys(keys: Array | None, index: int | Array) -> Array | None:
    """The keys of one step, one per video, so that a video draws the same noise in a batch as alone."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
