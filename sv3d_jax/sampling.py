"""The UNet as a denoiser with guidance, and as the steps of a sampler."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.diffusion.denoiser import Conditioning, Denoise, conditional_denoiser, guided_denoiser
from sv3d_jax.diffusion.sampler import (
    Method,
    SamplerProgram,
    State,
    StepKind,
    hoisted_program,
    plain_program,
    sampler_step,
)
from sv3d_jax.errors import InputError
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import UNetConfig
from sv3d_jax.models.video_unet import CACHE, VideoUNet, cached_shape


@dataclass(frozen=True)
class UNetSampler:
    """How a UNet is sampled from.

    With `in_turn` the branches of the guidance are computed one after the other; `spread` says how the network's input
    lies on the devices.
    """

    config: UNetConfig
    compute: Compute
    in_turn: bool = False
    spread: Callable[[Float[Array, "b f h w c"]], Float[Array, "b f h w c"]] = lambda x: x

    def denoiser(
        self,
        params: Params,
        condition: Conditioning,
        scale: Float[Array, "f"] | None,
        apply: Callable[..., Any] | None = None,
    ) -> Denoise:
        """The denoiser with guidance, or without where there is no scale; `apply` takes the place of the UNet's."""
        call = apply or VideoUNet(self.config, self.compute).apply

        def network(x, *rest):
            return call({"params": params}, self.spread(x), *rest)

        if scale is None:
            return conditional_denoiser(network, condition)
        return guided_denoiser(network, condition, scale, self.in_turn)

    def program(
        self,
        kind: StepKind,
        method: Method,
        num_steps: int,
        fixed: tuple[Params, Conditioning, Float[Array, "f"]],
        state: State,
        keys: Array | None = None,
    ) -> SamplerProgram:
        """Steps of one kind from (parameters, condition, guidance scale) and a state, all of which may be shapes.

        What a step leaves for the first level of later ones is in the state it returns; with `in_turn` there is no
        such program.
        """
        if self.in_turn and kind.levels != "all":
            raise InputError(
                "steps of the first level alone do not go with guidance in two halves",
                hint="leave out cache_interval, or low_memory and a mesh with frames but without two branches",
            )
        unet = VideoUNet(self.config, self.compute)

        def step(params, condition, scale, sigma_before, sigma, sigma_next, state, keys):
            kept = []  # by the one call of the network in this step, while it is traced

            def apply(variables, *inputs):
                if kind.levels == "all":
                    return unet.apply(variables, *inputs)
                if kind.levels == "first":
                    return unet.apply(variables, *inputs, cached=state.deep)
                out, sown = unet.apply(variables, *inputs, mutable=CACHE)
                kept.extend(sown[CACHE]["features"])
                return out

            denoise = self.denoiser(params, condition, scale if kind.is_guided else None, apply)
            levels = (sigma_before, sigma, sigma_next)
            after = sampler_step(denoise, method, num_steps, *levels, state, keys)
            return after._replace(deep=kept[0] if kept else state.deep)

        state = self.entering(kind, state)
        if self.compute.reference or self.in_turn:
            return plain_program(step)
        return hoisted_program(step, fixed, state, keys)

    def entering(self, kind: StepKind, state: State) -> State:
        """A state as a step of this kind takes it; what an earlier step must have left as a shape."""
        b, *rest = state.latents.shape
        if kind.levels == "first":
            shape = cached_shape(self.config, (2 * b if kind.is_guided else b, *rest))
            state = state._replace(deep=jax.ShapeDtypeStruct(shape, self.compute.dtype))
        return kind.entering(state)
