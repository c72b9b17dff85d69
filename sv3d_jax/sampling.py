"""The UNet in the steps of a sampler: its branches, what is computed before the first step, loops over the steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.diffusion.config import StepKind
from sv3d_jax.diffusion.denoiser import (
    Conditioning,
    Denoise,
    conditional_denoiser,
    guide,
    guided_denoiser,
    joined_branches,
    precondition,
    sequential_branches,
)
from sv3d_jax.diffusion.sampler import Sampler, SamplerState, levels_at, step_keys
from sv3d_jax.diffusion.solvers import StepLevels
from sv3d_jax.errors import InputError
from sv3d_jax.hoist import hoist
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import UNetConfig
from sv3d_jax.models.video_unet import CACHE, VideoUNet, cached_shape
from sv3d_jax.programs import kept_jit
from sv3d_jax.runner import Runner


class SamplingInputs(NamedTuple):
    """Inputs that are constant over the steps."""

    params: Params  # of the UNet
    condition: Conditioning
    scale: Float[Array, "f"]  # of guidance


class Prediction(NamedTuple):
    """Output of the first half of a step, handed to a host-side correction."""

    x: Float[Array, "b f h w c"]  # latents, with churn
    levels: StepLevels
    # The unconditional and the conditional branch, or one estimate.
    denoised: tuple[Float[Array, "b f h w c"], ...]
    features: Float[Array, "n f h w d"] | None


@dataclass(frozen=True)
class UNetDenoiser:
    """How the UNet denoises.

    With `sequential_cfg` the branches of the guidance are computed one after the other. `place` constrains the sharding
    of the network's input.
    """

    config: UNetConfig
    compute: Compute
    sequential_cfg: bool = False
    place: Callable[[Float[Array, "b f h w c"]], Float[Array, "b f h w c"]] | None = None

    def denoiser(self, params: Params, condition: Conditioning, scale: Float[Array, "f"] | None) -> Denoise:
        """The denoiser with guidance, or without where there is no scale."""

        def network(*inputs):
            return self._apply(params, StepKind(), None, *inputs)[0]

        if scale is None:
            return conditional_denoiser(network, condition)
        return guided_denoiser(network, condition, scale, self.sequential_cfg)

    def branches(
        self,
        kind: StepKind,
        params: Params,
        condition: Conditioning,
        x: Float[Array, "b f h w c"],
        sigma: Float[Array, "b"],
        features: Float[Array, "n f h w d"] | None = None,
    ) -> tuple[tuple[Array, ...], Array | None]:
        """(unconditional, conditional) denoised latents, or (conditional,) in a step without guidance; and the cached
        features after a step of this kind.
        """

        def network(*inputs):
            return self._apply(params, kind, features, *inputs)

        if kind.is_guided and self.sequential_cfg:
            return sequential_branches(lambda *inputs: network(*inputs)[0], condition)(x, sigma), None
        if kind.is_guided:
            condition = joined_branches(condition)
            x, sigma = jnp.concatenate([x, x]), jnp.concatenate([sigma, sigma])
        sigma = jnp.broadcast_to(sigma[:, None], x.shape[:2])
        denoised, features = precondition(network, x, sigma, condition)
        return tuple(jnp.split(denoised, 2)) if kind.is_guided else (denoised,), features

    def features_shape(self, kind: StepKind, x: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        """The cached features of a step of this kind for latents of shape `b f h w c`."""
        b, *rest = x
        shape = cached_shape(self.config, (2 * b if kind.is_guided else b, *rest))
        return jax.ShapeDtypeStruct(shape, self.compute.dtype)

    def _apply(
        self, params: Params, kind: StepKind, features: Array | None, x: Array, *rest: Array
    ) -> tuple[Array, Array | None]:
        """The UNet's output, and the cached features after the call."""
        unet, variables = VideoUNet(self.config, self.compute), {"params": params}
        x = x if self.place is None else self.place(x)
        if kind.cache == "reuse":
            return unet.apply(variables, x, *rest, cached=features), features
        if kind.cache == "store":
            output, stored = unet.apply(variables, x, *rest, mutable=CACHE)
            return output, stored[CACHE]["features"][0]
        return unet.apply(variables, x, *rest), features


class StepProgram(NamedTuple):
    """The two functions of steps of one kind: the step-invariant values, and one step."""

    prepare: Callable[[SamplingInputs, Float[Array, "steps_plus_1"]], Any]
    """(inputs, sigmas) -> step-invariant values."""
    step: Callable[..., Any]
    """(inputs, sigmas, step-invariant values, index of the step, state, its keys) -> what the step returns."""


@dataclass(frozen=True)
class SamplingSteps:
    """The steps of one sampling as functions of arrays, to be compiled as one scan or step by step.

    What does not depend on latents is computed before the first step, for all noise levels, unless the plain form or
    sequential guidance is asked for.
    """

    unet: UNetDenoiser
    sampler: Sampler
    kinds: tuple[StepKind, ...]
    _programs: "dict[StepKind, StepProgram]" = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        if self.unet.sequential_cfg and any(kind.cache != "off" for kind in self.kinds):
            raise InputError(
                "cached features do not go with sequential classifier-free guidance",
                hint="drop cache_interval, or drop low_memory and, for a mesh with a "
                '"frames" axis, add a "cfg" axis of size 2',
            )

    @property
    def corrects_on_host(self) -> bool:
        """Whether a correction runs between compiled programs."""
        return self.sampler.correction is not None and self.sampler.correction.on_host

    def init(self, noise: Float[Array, "b f h w c"], sigmas: Float[Array, "steps_plus_1"]) -> SamplerState:
        """The state before the first step."""
        return self.sampler.init(noise, sigmas)

    def sample(
        self,
        inputs: SamplingInputs,
        noise: Float[Array, "b f h w c"],
        sigmas: Float[Array, "steps_plus_1"],
        keys: Array | None,
    ) -> Float[Array, "b f h w c"]:
        """All steps: one scan for each segment of consecutive steps that are all guided, or all not."""
        state = self.init(noise, sigmas)
        prepared = {
            kind: self.prepare(kind, inputs, sigmas, state, keys) for kind in dict.fromkeys(self.kinds)
        }

        def step(kind, index, state):
            return self.step(kind, inputs, sigmas, prepared[kind], index, state, step_keys(keys, index))

        for _, segment in groupby(range(len(self.kinds)), key=lambda index: self.kinds[index].is_guided):
            state = self._scan(step, state, list(segment))
        return state.latents

    def prepare(
        self, kind: StepKind, inputs: SamplingInputs, sigmas: Array, state: SamplerState, keys: Array | None
    ) -> Any:
        """The step-invariant values of the steps of a kind; only the shapes of `state` and `keys` are used."""
        return self._program(kind, inputs, state, keys).prepare(inputs, sigmas)

    def step(
        self,
        kind: StepKind,
        inputs: SamplingInputs,
        sigmas: Array,
        prepared: Any,
        index: int | Array,
        state: SamplerState,
        keys: Array | None,
    ) -> SamplerState | Prediction:
        """The state after a step of a kind or, with an on_host correction, a `Prediction`."""
        state = self.drop_unused_features(kind, state)
        return self._program(kind, inputs, state, keys).step(inputs, sigmas, prepared, index, state, keys)

    def update(self, prediction: Prediction, scale: Float[Array, "f"], memory: Any) -> SamplerState:
        """The second half of a step: guidance where it is still due, and the solver's update."""
        denoised, levels = self._guided(prediction.denoised, scale), prediction.levels
        x, memory = self.sampler.solver.update(prediction.x, denoised, levels, memory)
        return SamplerState(x, memory, prediction.features)

    def correct_on_host(self, prediction: Prediction, index: int) -> Prediction:
        """The prediction with its denoised latents corrected, outside of compiled programs, if this step is due."""
        correction = self.sampler.correction
        if correction is None or not (correction.steps is None or index in correction.steps):
            return prediction
        sigma = prediction.levels.current
        corrected = tuple(
            jax.device_put(np.asarray(correction.corrected(each, sigma, index), np.float32), each.sharding)
            for each in prediction.denoised
        )
        return prediction._replace(denoised=corrected)

    def state_shape(self, kind: StepKind, state: SamplerState) -> SamplerState:
        """The state as input of a step of a kind; cached features, where it reuses them, are given as a shape."""
        features = self.unet.features_shape(kind, state.latents.shape) if kind.cache == "reuse" else None
        return state._replace(features=features)

    def _program(
        self, kind: StepKind, inputs: SamplingInputs, state: SamplerState, keys: Array | None
    ) -> StepProgram:
        """The functions of one kind of steps; the network is traced once for both of them."""
        if kind not in self._programs:
            function = self._predict if self.corrects_on_host else self._step
            if self.unet.compute.reference or self.unet.sequential_cfg:
                self._programs[kind] = plain_program(partial(function, kind))
            else:
                state = self.state_shape(kind, state)
                self._programs[kind] = hoisted_program(partial(function, kind), inputs, state, keys)
        return self._programs[kind]

    def _step(
        self,
        kind: StepKind,
        inputs: SamplingInputs,
        levels: StepLevels,
        state: SamplerState,
        keys: Array | None,
    ) -> SamplerState:
        """One whole step: denoise, correct, update."""
        prediction = self._predict(kind, inputs, levels, state, keys)
        return self.update(prediction, inputs.scale, state.memory)

    def _predict(
        self,
        kind: StepKind,
        inputs: SamplingInputs,
        levels: StepLevels,
        state: SamplerState,
        keys: Array | None,
    ) -> Prediction:
        """The first half of a step: denoised latents, of both branches if the host is to correct those."""
        sampler, correction = self.sampler, self.sampler.correction
        x, levels = sampler.add_churn(state.latents, levels, keys)
        sigma = jnp.broadcast_to(levels.current, x.shape[:1])
        branches, features = self.unet.branches(
            kind, inputs.params, inputs.condition, x, sigma, state.features
        )
        branches = tuple(sampler.correct(branch, levels, "branches") for branch in branches)
        if not (self.corrects_on_host and correction is not None and correction.on == "branches"):
            branches = (sampler.correct(self._guided(branches, inputs.scale), levels, "guided"),)
        return Prediction(x, levels, branches, features)

    def _guided(self, branches: tuple[Array, ...], scale: Float[Array, "f"]) -> Float[Array, "b f h w c"]:
        return guide(*branches, scale) if len(branches) == 2 else branches[0]

    def drop_unused_features(self, kind: StepKind, state: SamplerState) -> SamplerState:
        """The state without cached features, unless a step of this kind reuses them."""
        return state if kind.cache == "reuse" else state._replace(features=None)

    def _scan(
        self, step: Callable[..., SamplerState], state: SamplerState, indices: list[int]
    ) -> SamplerState:
        """The steps of one segment: of one kind, or of one that stores features and one that reuses them."""
        found = list(dict.fromkeys(self.kinds[index] for index in indices))
        is_last = np.array([self.kinds[index] == found[-1] for index in indices])

        def one(state, at):
            index, is_last = at
            if len(found) == 1:
                return step(found[0], index, state), None
            first, second = (partial(step, kind) for kind in found)
            return jax.lax.cond(is_last, second, first, index, state), None

        if found[0].cache == "store":  # scan needs a carry of fixed structure
            shape = self.unet.features_shape(found[0], state.latents.shape)
            state = state._replace(features=jnp.zeros(shape.shape, shape.dtype))
        state, _ = jax.lax.scan(one, state, (jnp.asarray(indices), is_last))
        return state._replace(features=None)


def plain_program(step: Callable[..., Any]) -> StepProgram:
    """`step(inputs, levels, state, keys)` unchanged, without step-invariant values."""
    return StepProgram(
        prepare=lambda inputs, sigmas: (),
        step=lambda inputs, sigmas, prepared, index, state, keys: step(
            inputs, levels_at(sigmas, index), state, keys
        ),
    )


def hoisted_program(
    step: Callable[..., Any], inputs: SamplingInputs, state: SamplerState, keys: Array | None
) -> StepProgram:
    """As `plain_program`, but what does not depend on latents is computed before the first step, for all noise levels.

    inputs, state and keys may be ShapeDtypeStructs.
    """
    level, index = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    levels = StepLevels(level, level, level, index)
    once, at_level, rest = hoist(step, (inputs,), (levels,), (state, keys))

    def prepare(inputs, sigmas):
        kept = once((inputs,))
        levels = levels_at(sigmas, jnp.arange(len(sigmas) - 1))
        return kept, jax.vmap(lambda levels: at_level((inputs,), (levels,), kept))(levels)

    def step_at(inputs, sigmas, prepared, index, state, keys):
        kept, at_levels = prepared
        levels = levels_at(sigmas, index)
        return rest((inputs,), (levels,), (state, keys), kept, [values[index] for values in at_levels])

    return StepProgram(prepare, step_at)


_step_keys = kept_jit(step_keys)


def sampling_loop(
    runner: Runner,
    steps: SamplingSteps,
    inputs: SamplingInputs,
    noise: Float[Array, "b f h w c"],
    sigmas: Float[Array, "steps_plus_1"],
    keys: Array | None,
    after_step: Callable[[int, float, Array], Array | None] | None,
) -> Callable[[], Float[Array, "b f h w c"]]:
    """`SamplingSteps.sample` as a Python loop over compiled steps: call the result for the latents.

    after_step gets (steps done, noise level reached, latents). It is called after the step has finished on the device;
    an exception raised there stops sampling before the next step, and the next step begins with latents that it
    returns.
    """
    first = runner.run(steps.init, noise, sigmas)
    reached = np.asarray(sigmas)[1:].tolist()

    def compiled(kind: StepKind) -> Callable[..., Any]:
        prepared = runner.run(partial(steps.prepare, kind), inputs, sigmas, first, keys, split=False)
        state_shapes = jax.tree.map(runner.placement.split_shape, steps.state_shape(kind, first))
        given = (inputs, sigmas, prepared)
        program = runner.compile(partial(steps.step, kind), *given, np.int32(0), state_shapes, keys)
        return partial(program, *given)

    programs = {kind: compiled(kind) for kind in dict.fromkeys(steps.kinds)}

    def run() -> Float[Array, "b f h w c"]:
        state = first
        for index, kind in enumerate(steps.kinds):
            needed = steps.drop_unused_features(kind, state)
            own = None if keys is None else _step_keys(keys, np.int32(index))
            result = programs[kind](np.int32(index), needed, own)
            if steps.corrects_on_host:
                result = steps.correct_on_host(result, index)
                result = runner.run(steps.update, result, inputs.scale, state.memory)
            state = jax.block_until_ready(result)
            changed = None if after_step is None else after_step(index + 1, reached[index], state.latents)
            if changed is not None:
                state = state._replace(latents=jax.device_put(changed, state.latents.sharding))
        return state.latents

    return run
