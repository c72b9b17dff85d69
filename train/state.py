"""The state of a training run."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from sv3d_jax.arrays import Array, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that the next step depends on, besides settings, frozen weights and data."""

    step: Array  # steps so far, skipped ones included
    params: Params
    ema: Params  # exponential moving average of params; the weights that are exported
    opt_state: optax.OptState
    skipped: Array  # steps without an update because loss or gradient was not finite
    skipped_in_row: Array


def new_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    # The leaves share no buffers, because the compiled step donates them all.
    step, skipped, skipped_in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(step, params, ema, optimizer.init(params), skipped, skipped_in_row)
