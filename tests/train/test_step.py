"""The training step and its losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sv3d_jax.diffusion.denoiser import Conditioning
from sv3d_jax.train.losses import drop_image
from sv3d_jax.train.state import new_state
from sv3d_jax.train.step import train_step


def quadratic(params, batch, key):
    return jnp.square(params["w"] - batch).sum()


@pytest.fixture
def step():
    optimizer = optax.sgd(0.25)
    state = new_state({"w": jnp.zeros(3)}, optimizer)
    return state, functools.partial(train_step, loss=quadratic, optimizer=optimizer, ema_decay=0.9)


def test_step_takes_the_optimisers_update(step):
    state, run = step
    new, metrics = run(state, jnp.ones(3), jax.random.key(0))
    np.testing.assert_allclose(new.params["w"], 0.5)  # w - 0.25 * 2 (w - 1)
    assert metrics["loss"] == 3.0


def test_average_follows_the_parameters_faster_at_first(step):
    state, run = step
    new, _ = run(state, jnp.ones(3), jax.random.key(0))
    np.testing.assert_allclose(new.ema["w"], 0.9 * 0.5, rtol=1e-6)  # decay of step 0 is 1 / 10
    late = new.__class__(jnp.int32(10_000), state.params, state.ema, state.opt_state, *[jnp.int32(0)] * 2)
    new, _ = run(late, jnp.ones(3), jax.random.key(0))
    np.testing.assert_allclose(new.ema["w"], 0.1 * 0.5, rtol=1e-6)


def test_step_that_is_not_finite_changes_nothing_and_is_counted(step):
    state, run = step
    new, _ = run(state, jnp.array([1.0, jnp.nan, 1.0]), jax.random.key(0))
    np.testing.assert_array_equal(new.params["w"], state.params["w"])
    np.testing.assert_array_equal(new.ema["w"], state.ema["w"])
    assert (new.step, new.skipped, new.skipped_in_row) == (1, 1, 1)
    good, _ = run(new, jnp.ones(3), jax.random.key(0))
    assert (good.skipped, good.skipped_in_row) == (1, 0)


def test_dropout_acts_on_whole_videos_and_never_on_the_vector():
    condition = Conditioning(jnp.ones((2, 1, 3)), jnp.ones((2, 5, 4, 4, 2)), jnp.ones((2, 5, 7)))
    dropped = drop_image(condition, jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(dropped.context[:, 0, 0], [0, 1])
    np.testing.assert_array_equal(dropped.concat.mean((1, 2, 3, 4)), [1, 0])
    np.testing.assert_array_equal(dropped.vector, condition.vector)
