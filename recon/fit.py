"""The optimisation loop of every stage: compiled calls of some steps each, a log, saves, resumption, cancelling."""

import io
import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import PRNGKeyArray

State = Any  # pytrees, known to the stage alone
Data = Any
Losses = dict[str, jax.Array]
Step = Callable[[State, Data, PRNGKeyArray], tuple[State, Losses]]

STEPS_PER_CALL = 16
SAVE_EVERY_S = 20.0


class FitInfo(NamedTuple):
    """What a callback is told; it may raise `Cancelled`, which ends the fit at once."""

    step: int  # steps done
    total: int
    losses: dict[str, float]  # mean over the steps since the last call


class Look(NamedTuple):
    """Who is shown the state of a fit now and then."""

    every: int  # steps, rounded up to whole calls; the last ones count too
    at: Callable[[int, State], None]  # is given the steps done and the state


def fit(
    step: Step,
    state: State,
    data: Data,
    num_steps: int,
    key: PRNGKeyArray,
    callback: Callable[[FitInfo], None] | None = None,
    steps_per_call: int = STEPS_PER_CALL,
    begin: Callable[[State, PRNGKeyArray], State] | None = None,
    choose: Callable[[State], Step] | None = None,
    retry: Callable[[State, State], State | None] | None = None,
    save: Path | None = None,
    look: Look | None = None,
) -> tuple[State, list[FitInfo]]:
    """Run `step` `num_steps` times, `steps_per_call` of them in one compiled scan; returns the state and a log.

    `begin` opens each call: work that is due now and then, such as a refresh of the occupancy grid. `choose` takes
    the place of `step` where static shapes follow the state: it is asked before each call. `retry` is given the states
    before and after a call; it returns None, or what to make the call again from, with more room. `data` is handed to
    each step as it is. `num_steps` is rounded up to whole calls, so that one program serves all.

    With `save`, the state goes into that file every now and then, and a fit that finds it goes on from there to the
    same result; the file is removed in the end. It belongs to one fit: same settings, same data.
    """

    @cache
    def compiled(step):
        @partial(jax.jit, donate_argnums=() if retry else 0)
        def call(state, data, key):
            begin_key, step_key = jax.random.split(key)
            if begin is not None:
                state = begin(state, begin_key)
            keys = jax.random.split(step_key, steps_per_call)
            state, losses = jax.lax.scan(lambda state, key: step(state, data, key), state, keys)
            return state, jax.tree.map(jnp.mean, losses)

        return call

    num_calls = -(-num_steps // steps_per_call)
    log: list[FitInfo] = []
    if save is not None and save.exists():
        state, log = _read(save, state)
    saved_at = time.monotonic()
    keys = jax.random.split(key, num_calls)
    for number in range(len(log), num_calls):
        while True:
            call = compiled(step if choose is None else choose(state))
            after, losses = call(state, data, keys[number])
            again = None if retry is None else retry(state, after)
            if again is None:
                break
            state = again
        state = after
        losses = {name: float(value) for name, value in losses.items()}
        log.append(FitInfo((number + 1) * steps_per_call, num_calls * steps_per_call, losses))
        if save is not None and time.monotonic() - saved_at > SAVE_EVERY_S:
            _write(save, state, log)
            saved_at = time.monotonic()
        if look is not None and _is_due(look.every, log[-1], steps_per_call):
            look.at(log[-1].step, state)
        if callback is not None:
            callback(log[-1])
    if save is not None:
        save.unlink(missing_ok=True)
    return state, log


def _is_due(every: int, info: FitInfo, steps: int) -> bool:
    """Whether a multiple of `every` lies in the last so many steps, or they are the last of all."""
    return info.step % every < steps or info.step == info.total


def save_arrays(path: Path, tree: Any) -> None:
    """Write the arrays of a pytree into one .npz file, whole or not at all."""
    from sv3d_jax.io.outputs import write_atomic

    buffer = io.BytesIO()
    np.savez(buffer, *map(np.asarray, jax.tree.leaves(tree)))
    write_atomic(path, buffer.getvalue())


def load_arrays(path: Path, like: Any) -> Any:
    """What `save_arrays` wrote, in the structure of `like`, whose own values do not matter."""
    with np.load(path) as saved:
        return jax.tree.unflatten(jax.tree.structure(like), [saved[name] for name in saved.files])


def _write(path: Path, state: State, log: list[FitInfo]) -> None:
    save_arrays(path, (state, json.dumps(log)))


def _read(path: Path, state: State) -> tuple[State, list[FitInfo]]:
    """The saved state in the structure of a fresh one, and the log."""
    state, log = load_arrays(path, (state, ""))
    return jax.tree.map(jnp.asarray, state), [FitInfo(*entry) for entry in json.loads(str(log))]
