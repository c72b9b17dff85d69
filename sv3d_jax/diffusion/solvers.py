"""Solvers of the probability-flow ODE: each takes latents from one noise level to the next.

A user-defined solver is a frozen dataclass with the two methods of `Solver`, given as `SamplingConfig(solver=...)`.
The denoiser is called once per step, before `update`: multi-step methods (DPM++ 2M) fit, multi-stage ones (Heun,
Runge-Kutta) do not.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, Int


class StepLevels(NamedTuple):
    """Where in the schedule a step is; all are scalars.

    previous: noise level of the preceding step (in the first step: equal to current). current: noise level of the
    latents. next: noise level after the step. index: of the step, counted from 0.
    """

    previous: Float[Array, ""]
    current: Float[Array, ""]
    next: Float[Array, ""]
    index: Int[Array, ""]


class Solver(Protocol):
    """What the sampler asks of a solver; both methods must be pure, since they run under `jax.jit`."""

    def init(self, x: Float[Array, "b f h w c"]) -> Any:
        """The solver state before the first step at latents x: a pytree of arrays, () for none."""
        ...

    def update(
        self,
        x: Float[Array, "b f h w c"],
        denoised: Float[Array, "b f h w c"],
        levels: StepLevels,
        memory: Any,
    ) -> tuple[Float[Array, "b f h w c"], Any]:
        """Latents at `levels.next` and the new solver state.

        They follow from latents x at `levels.current`, the denoised estimate, and `memory`, the solver state.
        """
        ...


@dataclass(frozen=True)
class Euler:
    """Euler's method (EDM, algorithm 1 without the second-order correction), of first order: SV3D's sampler."""

    def init(self, x: Float[Array, "b f h w c"]) -> tuple[()]:
        """Euler's method has no state."""
        return ()

    def update(
        self,
        x: Float[Array, "b f h w c"],
        denoised: Float[Array, "b f h w c"],
        levels: StepLevels,
        memory: tuple[()],
    ) -> tuple[Float[Array, "b f h w c"], tuple[()]]:
        """x + (sigma_next - sigma) dx/dsigma, where dx/dsigma = (x - denoised) / sigma (EDM, eq. 3)."""
        slope = (x - denoised) / levels.current
        return x + (levels.next - levels.current) * slope, ()


@dataclass(frozen=True)
class DPMpp2M:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): of second order, by the denoised latents of the last step.

    The first step and the last, to 0, are of first order.
    """

    def init(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """Zeros in place of the denoised latents of the preceding step, which the first step does not use."""
        return jnp.zeros_like(x)

    def update(
        self,
        x: Float[Array, "b f h w c"],
        denoised: Float[Array, "b f h w c"],
        levels: StepLevels,
        memory: Float[Array, "b f h w c"],
    ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
        """(sigma_next / sigma) x + (1 - sigma_next / sigma) D, D extrapolated from both denoised latents."""
        log_previous, log_current, log_next = (
            jnp.log(jnp.maximum(level, 1e-12)) for level in (levels.previous, levels.current, levels.next)
        )
        last, now = log_previous - log_current, log_current - log_next
        is_second_order = (last > 0) & (levels.next > 0)
        weight = jnp.where(is_second_order, now / (2.0 * jnp.where(last > 0, last, 1.0)), 0.0)
        ratio = levels.next / levels.current
        return ratio * x + (1.0 - ratio) * (denoised + weight * (denoised - memory)), denoised


SOLVERS: dict[str, Solver] = {"euler": Euler(), "dpmpp_2m": DPMpp2M()}
"""Solvers by the names that `SamplingConfig` and the verbs take."""


def make_solver(solver: str | Solver) -> Solver:
    """The solver of that name, or the solver itself."""
    return SOLVERS[solver] if isinstance(solver, str) else solver
