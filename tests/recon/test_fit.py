"""The optimisation loop."""

import jax
import jax.numpy as jnp
import pytest

from sv3d_jax.errors import Cancelled
from sv3d_jax.recon.fit import fit


def towards(state, target, key):
    state = state - 0.1 * (state - target)
    return state, {"loss": (state - target) ** 2}


def test_every_step_is_taken_and_calls_are_whole():
    state, log = fit(
        lambda state, data, key: (state + 1, {}), jnp.zeros(()), None, 10, jax.random.key(0), steps_per_call=4
    )
    assert (float(state), [info.step for info in log]) == (12.0, [4, 8, 12])


def test_losses_of_a_call_are_averaged():
    _, log = fit(towards, jnp.ones(()), jnp.zeros(()), 2, jax.random.key(0), steps_per_call=2)
    assert log[0].losses["loss"] == pytest.approx((0.81 + 0.6561) / 2)


def test_begin_opens_every_call():
    state, _ = fit(
        lambda state, data, key: (state, {}),
        jnp.zeros(()),
        None,
        12,
        jax.random.key(0),
        steps_per_call=4,
        begin=lambda state, key: state + 1,
    )
    assert float(state) == 3.0


def test_a_callback_ends_the_fit():
    calls = []

    def cancel(info):
        calls.append(info.step)
        if len(calls) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(towards, jnp.ones(()), jnp.zeros(()), 100, jax.random.key(0), cancel, steps_per_call=5)
    assert calls == [5, 10]
