"""The optimisation loop: compiled calls of several steps each, a log, saving, resuming, cancelling."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, PRNGKeyArray, UInt, on_device
from sv3d_jax.io.scratch import read_arrays, write_arrays
from sv3d_jax.programs import Programs, kept_jit

FitState = Any  # a pytree that the stage defines
Data = Any  # a pytree, likewise
Losses = dict[str, jax.Array]
Step = Callable[[FitState, Data, PRNGKeyArray], tuple[FitState, Losses]]

STEPS_PER_CALL = 16
SAVE_EVERY_S = 20.0


class FitInfo(NamedTuple):
    """What a callback is told after each call; it may raise `Cancelled`, which ends the fit at once."""

    step: int  # steps done
    total: int
    losses: dict[str, float]  # mean over the steps of the call


def half_fit(save: Path) -> Path:
    """Beside the file of an unfinished fit: that of its steps at half the resolution."""
    return save.with_name(f"half_{save.name}")


class Preview(NamedTuple):
    """A function that is given the state of a fit every so many steps, and after the last one."""

    every: int  # steps, rounded up to whole calls
    show: Callable[[int, Any], None]  # takes the number of steps done, and the state

    def of(self, convert: Callable[[FitState], Any]) -> "Preview":
        """The preview of a fit whose state `convert` turns into what this one shows."""
        return Preview(self.every, lambda step, state: self.show(step, convert(state)))

    def is_due(self, info: FitInfo, steps: int) -> bool:
        """Whether a multiple of `every` lies in the last `steps` steps, or the fit has ended."""
        return info.step % self.every < steps or info.step == info.total


@dataclass(frozen=True)
class FitHooks:
    """What `fit` calls besides the step; all are optional."""

    callback: Callable[[FitInfo], None] | None = None
    """is given the losses after each call"""
    preview: Preview | None = None
    """is given the state now and then"""
    before_call: Callable[[FitState, PRNGKeyArray], FitState] | None = None
    """changes the state at the start of each call, as a part of the compiled program; set by the stage, like
    `choose_step` and `retry`"""
    choose_step: Callable[[FitState], Step] | None = None
    """gives the step of the next call, where it depends on the state, such as on sizes of arrays"""
    retry: Callable[[FitState, FitState], FitState | None] | None = None
    """takes the states before and after a call; returns the state to repeat the call from, or None to go on"""


NO_HOOKS = FitHooks()


def fit(
    step: Step,
    state: FitState,
    data: Data,
    num_steps: int,
    key: PRNGKeyArray,
    hooks: FitHooks = NO_HOOKS,
    steps_per_call: int = STEPS_PER_CALL,
    save: Path | None = None,
    before: int = 0,
    total: int | None = None,
    programs: Programs | None = None,
) -> tuple[FitState, list[FitInfo]]:
    """Run `step` `num_steps` times, `steps_per_call` of them in one compiled scan; returns the state and a log.

    `data` is handed to each step as it is. The program is kept on disk if `describe` can tell what the step
    closes over: settings, functions of this package. `num_steps` is rounded up to whole calls, so that one program
    serves all.

    With `save`, the state is written to that file every `SAVE_EVERY_S` seconds, and a fit that finds the file goes on
    from there to the same result. It belongs to one fit: same settings, same data. The caller removes it, once the
    result is kept.

    Where the fit is one of several that follow one another, `before` and `total` are the steps of those before it and
    of all together, for the log and the hooks.
    """
    programs = programs or Programs()
    num_calls = -(-num_steps // steps_per_call)
    total = max(before + num_calls * steps_per_call, total or 0)
    log: list[FitInfo] = []
    if save is not None and (saved := _read(save, state)) is not None:
        state, log = saved
    saved_at = time.monotonic()
    keys = np.asarray(_split(key, count=num_calls))
    for number in range(len(log), num_calls):
        state, losses = _call(programs, step, state, data, _key(keys[number], key), hooks, steps_per_call)
        log.append(FitInfo(before + (number + 1) * steps_per_call, total, losses))
        if save is not None and time.monotonic() - saved_at > SAVE_EVERY_S:
            _write(save, state, log)
            saved_at = time.monotonic()
        if hooks.preview is not None and hooks.preview.is_due(log[-1], steps_per_call):
            hooks.preview.show(log[-1].step, state)
        if hooks.callback is not None:
            hooks.callback(log[-1])
    return state, log


def _several_steps(
    step: Step,
    before_call: Callable[[FitState, PRNGKeyArray], FitState] | None,
    steps_per_call: int,
    state: FitState,
    data: Data,
    key: PRNGKeyArray,
) -> tuple[FitState, Losses]:
    """One call: `before_call`, then a scan over the steps; returns the state and the mean losses."""
    before_key, step_key = jax.random.split(key)
    if before_call is not None:
        state = before_call(state, before_key)
    keys = jax.random.split(step_key, steps_per_call)
    state, losses = jax.lax.scan(lambda state, key: step(state, data, key), state, keys)
    return state, jax.tree.map(jnp.mean, losses)


@kept_jit
def _split(key: PRNGKeyArray, *, count: int) -> UInt[Array, "n k"]:
    return jax.random.key_data(jax.random.split(key, count))


def _key(data: UInt[Array, "k"], like: PRNGKeyArray) -> PRNGKeyArray:
    return jax.random.wrap_key_data(on_device(data), impl=jax.random.key_impl(like))


def compile_call(
    programs: Programs,
    step: Step,
    state: FitState,
    data: Data,
    key: PRNGKeyArray,
    hooks: FitHooks,
    steps_per_call: int = STEPS_PER_CALL,
) -> Callable[..., tuple[FitState, Losses]]:
    """The program of a call of `fit`; arrays may be ShapeDtypeStructs."""
    several = partial(_several_steps, step, hooks.before_call, steps_per_call)
    return programs.compile(several, state, data, key, donate_argnums=() if hooks.retry else 0)


def _call(
    programs: Programs,
    step: Step,
    state: FitState,
    data: Data,
    key: PRNGKeyArray,
    hooks: FitHooks,
    steps_per_call: int,
) -> tuple[FitState, dict[str, float]]:
    """The state and the losses after one call, repeated until `retry` has no objection."""
    while True:
        chosen = step if hooks.choose_step is None else hooks.choose_step(state)
        call = compile_call(programs, chosen, state, data, key, hooks, steps_per_call)
        after, losses = call(state, data, key)
        again = None if hooks.retry is None else hooks.retry(state, after)
        if again is None:
            return after, {name: float(value) for name, value in losses.items()}
        state = again


def save_arrays(path: Path, tree: Any) -> None:
    """Write the arrays of a pytree into one .npz file, whole or not at all."""
    leaves = map(np.asarray, jax.tree.leaves(tree))
    write_arrays(path, {f"arr_{index}": leaf for index, leaf in enumerate(leaves)})


def load_arrays(path: Path, like: Any) -> Any | None:
    """What `save_arrays` wrote, in the structure of `like`, whose own values do not matter.

    None if there is no such file, or if it is damaged or of another structure.
    """
    arrays, structure = read_arrays(path), jax.tree.structure(like)
    if arrays is None or len(arrays) != structure.num_leaves:
        return None
    return jax.tree.unflatten(structure, list(arrays.values()))


def log_to_json(log: list[FitInfo]) -> str:
    """A log as text, to be saved beside arrays."""
    return json.dumps(log)


def log_from_json(text: Any) -> list[FitInfo]:
    """The log that `log_to_json` wrote, from text or from an array that holds it."""
    return [FitInfo(*entry) for entry in json.loads(str(text))]


def _write(path: Path, state: FitState, log: list[FitInfo]) -> None:
    save_arrays(path, (state, log_to_json(log)))


def _read(path: Path, state: FitState) -> tuple[FitState, list[FitInfo]] | None:
    """The saved state, in the structure of a fresh one, and the log; None if nothing usable is saved."""
    saved = load_arrays(path, (state, ""))
    return None if saved is None else (on_device(saved[0]), log_from_json(saved[1]))
