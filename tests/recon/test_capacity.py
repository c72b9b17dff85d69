"""Capacities that grow: no step is lost, and a fit resumes with what it had grown to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.errors import Cancelled
from sv3d_jax.recon import fit as fit_module
from sv3d_jax.recon.capacity import GrowingCapacity, grow_on_overflow, shared_size, whole_blocks
from sv3d_jax.recon.fit import FitHooks, fit


class Sizes(NamedTuple):
    rows: int
    columns: int


class State(NamedTuple):
    x: Any
    capacity: GrowingCapacity


def noisy_step(sizes, needed):
    """A step with noise that overflows below the needed sizes, which may rise from step to step."""

    def step(state, data, key):
        overflow = Sizes(*(size < need(state.x) for size, need in zip(sizes, needed, strict=True)))
        x = state.x + jax.random.uniform(key)
        return State(x, state.capacity.with_overflow(overflow)), {"x": x}

    return step


def fit_from(sizes, needed, tried, callback=None, save=None):
    """A fit of three calls that starts with these sizes; those of each attempt at a call go into `tried`."""
    steps = {}

    def choose_step(state):
        tried.append(state.capacity.static())
        return steps.setdefault(tried[-1], noisy_step(tried[-1], needed))

    hooks = FitHooks(callback=callback, choose_step=choose_step, retry=grow_on_overflow)
    state = State(jnp.zeros(()), GrowingCapacity.of(Sizes(*sizes)))
    return fit(lambda *_: None, state, None, 12, jax.random.key(3), hooks, steps_per_call=4, save=save)


CONSTANT = (lambda x: 4, lambda x: 2)
RISING = (lambda x: jnp.where(x > 3.0, 7, 3), lambda x: 1)  # more in the second call than in the first


def test_only_what_overflowed_is_doubled_until_it_suffices():
    tried = []
    fit_from((1, 2), CONSTANT, tried)
    assert tried == [(1, 2), (2, 2), (4, 2), (4, 2), (4, 2)]


def test_a_repeated_call_loses_no_step():
    (state, log), (expected, expected_log) = fit_from((1, 1), CONSTANT, []), fit_from((4, 2), CONSTANT, [])
    assert float(state.x) == float(expected.x) and log == expected_log


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("needed", [CONSTANT, RISING])
def test_a_fit_that_was_killed_after_it_grew_goes_on_to_the_same_result(tmp_path, monkeypatch, needed, calls):
    """It goes on with the sizes that it had, and grows again where it would have."""
    monkeypatch.setattr(fit_module, "SAVE_EVERY_S", 0.0)
    unbroken: list[Any] = []
    whole, whole_log = fit_from((1, 1), needed, unbroken)

    def kill(info):
        if info.step == 4 * calls:
            raise Cancelled

    before, after = [], []
    with pytest.raises(Cancelled):
        fit_from((1, 1), needed, before, kill, tmp_path / "fit.npz")
    resumed, log = fit_from((1, 1), needed, after, save=tmp_path / "fit.npz")
    assert before + after == unbroken and len(set(before)) > 1
    assert float(resumed.x) == float(whole.x) and log == whole_log
    assert resumed.capacity.static() == whole.capacity.static()


@pytest.mark.parametrize(("count", "size"), [(1, 512), (4096, 4096), (4097, 5120), (9000, 10240)])
def test_sizes_are_few_and_never_too_small(count, size):
    assert shared_size(count) == size
    assert len({shared_size(n) for n in np.arange(4097, 8193)}) == 4
    assert whole_blocks(count) % 4096 == 0 and 0 <= whole_blocks(count) - count < 4096
