"""One pure training step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sv3d_jax.arrays import PRNGKeyArray, Scalar
from sv3d_jax.train.losses import Loss
from sv3d_jax.train.state import TrainState


def train_step(
    state: TrainState,
    batch: Any,
    key: PRNGKeyArray,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> tuple[TrainState, dict[str, Scalar]]:
    """The next state, and loss and gradient norm. A step that is not finite changes nothing but the counts."""
    value, gradient = jax.value_and_grad(loss)(state.params, batch, key)
    norm = optax.global_norm(gradient)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)

    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The first steps average over few weights: otherwise the initial ones linger for 1 / (1 - decay) steps.
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = jax.tree.map(lambda mean, new: decay * mean + (1.0 - decay) * new, state.ema, params)

    params, ema, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, ema, opt_state),
        (state.params, state.ema, state.opt_state),
    )
    missed = (~finite).astype(jnp.int32)
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        ema=ema,
        opt_state=opt_state,
        skipped=state.skipped + missed,
        skipped_in_row=missed * (state.skipped_in_row + 1),
    )
    return new_state, {"loss": value, "grad_norm": norm}
