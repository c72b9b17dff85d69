"""The state of a training run."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from sv3d_jax.arrays import Array, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that the next step depends on, besides the run's settings."""

    step: Array  # steps taken, skipped ones included
    params: Params
    ema: Params  # running average of params, the weights that are shipped
    opt_state: optax.OptState
    skipped: Array  # steps left out because loss or gradient was not finite
    skipped_in_row: Array


def new_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    # Every leaf is a buffer of its own, so that the step may reuse the memory of the state it is given.
    step, skipped, skipped_in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(step, params, ema, optimizer.init(params), skipped, skipped_in_row)
