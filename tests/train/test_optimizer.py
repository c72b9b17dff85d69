"""The optimiser against optax, and what its step keeps in memory."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sv3d_jax.train.config import OptimizerConfig
from sv3d_jax.train.optimizer import learning_rate, make_optimizer
from sv3d_jax.train.state import new_state
from sv3d_jax.train.step import train_step

CONFIG = OptimizerConfig(weight_decay=0.1, warmup_steps=2, clip_norm=0.5)


def weights() -> dict[str, jax.Array]:
    a, b = jax.random.split(jax.random.key(0))
    return {"a": jax.random.normal(a, (64, 128)), "b": jax.random.normal(b, (7,))}


def test_updates_are_those_of_adamw():
    ours = make_optimizer(CONFIG, 20)
    adamw = optax.adamw(
        learning_rate(CONFIG, 20), b1=CONFIG.b1, b2=CONFIG.b2, weight_decay=CONFIG.weight_decay
    )
    theirs = optax.chain(optax.clip_by_global_norm(CONFIG.clip_norm), adamw)
    params = [weights(), weights()]
    states = [ours.init(params[0]), theirs.init(params[1])]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for seed in range(5):
        gradient = jax.tree.map(lambda leaf, seed=seed: jnp.sin(leaf + seed), weights())
        for i, optimizer in enumerate((ours, theirs)):
            updates, states[i] = optimizer.update(gradient, states[i], params[i])
            params[i] = optax.apply_updates(params[i], updates)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8), *params)


@pytest.mark.parametrize("finite", [True, False])
def test_a_step_changes_its_state_in_place(finite):
    """Beside the state that it is given, the compiled step keeps no more than the gradient and one new value."""

    def loss(params, batch, key):
        return sum(jnp.sum(jnp.square(leaf - batch[0])) for leaf in jax.tree.leaves(params))

    optimizer = make_optimizer(replace(CONFIG, warmup_steps=0), 20)
    step = jax.jit(
        functools.partial(train_step, loss=loss, optimizer=optimizer, ema_decay=0.9), donate_argnums=0
    )
    state, batch = new_state(weights(), optimizer), jnp.full((1,), 1.0 if finite else np.nan)
    memory = step.lower(state, batch, jax.random.key(0)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2.5 * 4 * 64 * 128
    before = jax.tree.map(np.asarray, weights())
    after, _ = step(state, batch, jax.random.key(0))
    changed = jax.tree.map(lambda old, new: bool(np.any(old != new)), before, after.params)
    assert changed == {"a": finite, "b": finite}
