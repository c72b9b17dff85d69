"""From unit noise to latents: the Euler sampler of SV3D, and what can be changed about it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float
from sv3d_jax.diffusion.denoiser import Denoise
from sv3d_jax.errors import InputError
from sv3d_jax.hoist import hoist

SOLVERS = ("euler", "dpmpp_2m")


class State(NamedTuple):
    """What goes from step to step.

    denoised: by the step before, for a solver of second order. deep: what the network's levels below the first gave in
    the last step that ran them, for steps that do not.
    """

    latents: Float[Array, "b f h w c"]
    denoised: Float[Array, "b f h w c"] | None = None
    deep: Float[Array, "n f h w d"] | None = None


class StepKind(NamedTuple):
    """Which program a step runs: with guidance or without, and how much of the network.

    "all" runs all of it, "keep" also leaves what the levels below the first gave in the state, "first" takes that from
    the state and runs the first level alone.
    """

    is_guided: bool = True
    levels: Literal["all", "keep", "first"] = "all"

    def entering(self, state: State) -> State:
        """A state as a step of this kind takes it."""
        return state if self.levels == "first" else state._replace(deep=None)


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


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the probability-flow ODE is solved; as SV3D does it unless something is said.

    euler takes one call of the network a step, and so does dpmpp_2m, which also uses the call before (second
    order). `guidance_interval` are the lowest and the highest noise level at which there is guidance
    (Kynkaanniemi et al., arXiv 2404.07724); the steps outside of it cost half. Of each `cache_interval` steps the first
    runs the whole network, the others its first level on what the levels below gave then (DeepCache, arXiv 2312.00858).
    """

    solver: Literal["euler", "dpmpp_2m"] = "euler"
    churn: Churn | None = None
    guidance_interval: tuple[float, float] | None = None
    cache_interval: int = 1

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise InputError(f"solver must be {' or '.join(SOLVERS)}, got {self.solver!r}")
        if self.churn is not None and self.solver != "euler":
            raise InputError(f"churn goes with the solver euler, got {self.solver}")
        low, high = self.guidance_interval or (0.0, math.inf)
        if not 0 <= low <= high:
            raise InputError(
                f"guidance_interval is a lower and a higher noise level, got {low:g} and {high:g}"
            )
        if self.cache_interval < 1:
            raise InputError(f"cache_interval is a number of steps, at least 1, got {self.cache_interval}")

    def kinds(self, sigmas: Float[np.ndarray, "steps_plus_1"]) -> list[StepKind]:
        """What each step runs."""
        low, high = self.guidance_interval or (0.0, math.inf)
        kinds: list[StepKind] = []
        since = 0  # steps since all levels were run
        for sigma in sigmas[:-1]:
            is_guided = bool(low <= sigma <= high)
            # A step with guidance has features of both its branches, one without has those of one.
            is_due = not kinds or since == self.cache_interval or kinds[-1].is_guided != is_guided
            since = 1 if is_due else since + 1
            whole = "all" if self.cache_interval == 1 else "keep"
            kinds.append(StepKind(is_guided, whole if is_due else "first"))
        return kinds

    def initial_state(self, noise: Float[Array, "b f h w c"], sigmas: Float[Array, "steps_plus_1"]) -> State:
        """What the first step starts from."""
        x = initial_latents(noise, sigmas)
        return State(x, None if self.solver == "euler" else jnp.zeros_like(x))


def initial_latents(noise: Float[Array, "b f h w c"], sigmas: Float[Array, "steps_plus_1"]) -> Array:
    """Unit noise at the scale of the first level: times sqrt(1 + sigma_0^2)."""
    return noise * jnp.sqrt(1.0 + jnp.square(jnp.asarray(sigmas[0], jnp.float32)))


def euler_step(denoise: Denoise, x: Float[Array, "b f h w c"], sigma: Array, sigma_next: Array) -> Array:
    """One Euler step of the probability-flow ODE from sigma to sigma_next."""
    slope = (x - denoise(x, jnp.broadcast_to(sigma, x.shape[:1]))) / sigma
    return x + (sigma_next - sigma) * slope


def dpmpp_2m_step(
    denoise: Denoise,
    x: Float[Array, "b f h w c"],
    before: Float[Array, "b f h w c"],
    sigma_before: Array,
    sigma: Array,
    sigma_next: Array,
) -> tuple[Array, Array]:
    """One step of DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), and the denoised latents for the next one.

    `before` are those of the step from sigma_before to sigma. The first step, known by sigma_before = sigma, and the
    last, to 0, are of first order.
    """
    denoised = denoise(x, jnp.broadcast_to(sigma, x.shape[:1]))
    log_before, log_now, log_next = (
        jnp.log(jnp.maximum(level, 1e-12)) for level in (sigma_before, sigma, sigma_next)
    )
    last, now = log_before - log_now, log_now - log_next
    is_second_order = (last > 0) & (sigma_next > 0)
    weight = jnp.where(is_second_order, now / (2.0 * jnp.where(last > 0, last, 1.0)), 0.0)
    ratio = sigma_next / sigma
    return ratio * x + (1.0 - ratio) * (denoised + weight * (denoised - before)), denoised


def sampler_step(
    denoise: Denoise,
    method: Method,
    num_steps: int,
    sigma_before: Array,
    sigma: Array,
    sigma_next: Array,
    state: State,
    keys: Array | None,
) -> State:
    """One step: churn if it is on, with one key per video, then the solver's step."""
    if method.solver == "dpmpp_2m":
        return State(*dpmpp_2m_step(denoise, state.latents, state.denoised, sigma_before, sigma, sigma_next))
    x, churn = state.latents, method.churn
    if churn is not None and churn.s_churn > 0:
        raised = sigma * (1.0 + churn.gamma(sigma, num_steps))
        spread = churn.s_noise * jnp.sqrt(jnp.square(raised) - jnp.square(sigma))
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        x = x + spread * noise
        sigma = raised
    return State(euler_step(denoise, x, sigma, sigma_next))


class SamplerProgram(NamedTuple):
    """Steps of one kind: what is computed before the first of them, and one step."""

    prepare: Callable[[tuple, Float[Array, "steps_plus_1"]], Any]
    """(fixed arguments, sigmas) -> prepared values."""
    step: Callable[[tuple, Float[Array, "steps_plus_1"], Any, Array, State, Array | None], State]
    """(fixed arguments, sigmas, prepared values, index of the step, state, its keys) -> state."""


def plain_program(step: Callable[..., State]) -> SamplerProgram:
    """`step(*fixed, sigma_before, sigma, sigma_next, state, keys)` as it is, with nothing prepared."""
    return SamplerProgram(
        prepare=lambda fixed, sigmas: (),
        step=lambda fixed, sigmas, prepared, index, state, keys: step(
            *fixed, *_levels(sigmas, index), state, keys
        ),
    )


def hoisted_program(
    step: Callable[..., State], fixed: tuple, state: State, keys: Array | None
) -> SamplerProgram:
    """The same with everything prepared that latents do not decide: what depends on the noise level, for all levels."""
    level = jax.ShapeDtypeStruct((), jnp.float32)
    once, at_level, rest = hoist(step, fixed, (level, level, level), (state, keys))

    def prepare(fixed, sigmas):
        kept = once(fixed)
        levels = _levels(sigmas, jnp.arange(len(sigmas) - 1))
        return kept, jax.vmap(lambda *levels: at_level(fixed, levels, kept))(*levels)

    def step_at(fixed, sigmas, prepared, index, state, keys):
        kept, at_levels = prepared
        levels = _levels(sigmas, index)
        return rest(fixed, levels, (state, keys), kept, [values[index] for values in at_levels])

    return SamplerProgram(prepare, step_at)


def sample(
    denoise: Denoise,
    noise: Float[Array, "b f h w c"],
    sigmas: Float[Array, "steps_plus_1"],
    method: Method = Method(),
    keys: Array | None = None,
) -> Float[Array, "b f h w c"]:
    """Integrate from unit noise, scaled to sigmas[0], down to sigmas[-1] = 0; one scan, for use under jit.

    Guidance is the business of `denoise`.
    """
    kinds = [StepKind()] * (len(sigmas) - 1)
    program = plain_program(partial(sampler_step, denoise, method, len(kinds)))
    return run_programs({StepKind(): program}, kinds, method, (), noise, sigmas, keys)


def run_programs(
    programs: Mapping[StepKind, SamplerProgram],
    kinds: Sequence[StepKind],
    method: Method,
    fixed: tuple,
    noise: Float[Array, "b f h w c"],
    sigmas: Float[Array, "steps_plus_1"],
    keys: Array | None = None,
) -> Float[Array, "b f h w c"]:
    """All steps, each by the program of its kind; a scan for each stretch with or without guidance, for use in jit."""
    sigmas = jnp.asarray(sigmas, jnp.float32)
    prepared = {kind: programs[kind].prepare(fixed, sigmas) for kind in dict.fromkeys(kinds)}

    def step(kind, index, state):
        keys_now = _step_keys(keys, index)
        return programs[kind].step(fixed, sigmas, prepared[kind], index, kind.entering(state), keys_now)

    def of_stretch(state, steps):
        found = list(dict.fromkeys(kinds[index] for index in steps))
        is_last = np.array([kinds[index] == found[-1] for index in steps])

        def one(state, at):
            index, is_last = at
            if len(found) == 1:
                return step(found[0], index, state), None
            whole, rest = (partial(step, kind) for kind in found)
            return jax.lax.cond(is_last, rest, whole, index, state), None

        if found[0].levels == "keep":  # a scan's state has the same parts throughout
            deep = jax.eval_shape(partial(step, found[0], steps[0]), state).deep
            state = state._replace(deep=jnp.zeros(deep.shape, deep.dtype))
        state, _ = jax.lax.scan(one, state, (jnp.asarray(steps), is_last))
        return state._replace(deep=None)

    state = method.initial_state(noise, sigmas)
    for _, stretch in groupby(range(len(kinds)), key=lambda index: kinds[index].is_guided):
        state = of_stretch(state, list(stretch))
    return state.latents


def sample_with_callback(
    step: Callable[[np.int32, State, Array | None], State],
    state: State,
    sigmas: Float[Array, "steps_plus_1"],
    callback: Callable[[int, float, Array], None],
    keys: Array | None = None,
) -> Float[Array, "b f h w c"]:
    """The same integration as a host loop over compiled steps, with a call after each.

    `step` takes an index, the state and its keys. callback gets (steps done, sigma reached, latents); what it raises
    ends the loop. It is called when a step has really finished, so at most one step runs past a cancel.
    """
    for index in range(len(sigmas) - 1):
        state = jax.block_until_ready(step(np.int32(index), state, _step_keys(keys, index)))
        callback(index + 1, float(sigmas[index + 1]), state.latents)
    return state.latents


def _levels(sigmas: Float[Array, "steps_plus_1"], index: int | Array) -> tuple[Array, Array, Array]:
    """The noise levels before (its own at the first step), of and after steps."""
    return sigmas[jnp.maximum(index - 1, 0)], sigmas[index], sigmas[index + 1]


def _step_keys(keys: Array | None, index: int | Array) -> Array | None:
    """The keys of one step, one per video, so that a video draws the same noise in a batch as alone."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
