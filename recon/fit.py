"""The optimisation loop of every stage."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import PRNGKeyArray

State = Any  # pytrees, known to the stage alone
Data = Any
Losses = dict[str, jax.Array]


class FitInfo(NamedTuple):
    """What a callback is told; it may raise `Cancelled`, which ends the fit at once."""

    step: int  # steps done
    total: int
    losses: dict[str, float]  # mean over the steps since the last call


def fit(
    step: Callable[[State, Data, PRNGKeyArray], tuple[State, Losses]],
    state: State,
    data: Data,
    num_steps: int,
    key: PRNGKeyArray,
    callback: Callable[[FitInfo], None] | None = None,
    steps_per_call: int = 16,
    begin: Callable[[State, PRNGKeyArray], State] | None = None,
) -> tuple[State, list[FitInfo]]:
    """Run `step` `num_steps` times, `steps_per_call` of them in one compiled scan; returns the state and a log.

    `begin` opens each call: work that is due now and then, such as a refresh of the occupancy grid.
    `data` is handed to each step as it is. `num_steps` is rounded up to whole calls, so that one program serves all.
    """

    @partial(jax.jit, donate_argnums=0)
    def call(state, data, key):
        begin_key, step_key = jax.random.split(key)
        if begin is not None:
            state = begin(state, begin_key)
        keys = jax.random.split(step_key, steps_per_call)
        state, losses = jax.lax.scan(lambda state, key: step(state, data, key), state, keys)
        return state, jax.tree.map(jnp.mean, losses)

    log = []
    num_calls = -(-num_steps // steps_per_call)
    for number, call_key in enumerate(jax.random.split(key, num_calls)):
        state, losses = call(state, data, call_key)
        losses = {name: float(value) for name, value in losses.items()}
        log.append(FitInfo((number + 1) * steps_per_call, num_calls * steps_per_call, losses))
        if callback is not None:
            callback(log[-1])
    return state, log
