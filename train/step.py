"""One pure training step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sv3d_jax.arrays import Params, PRNGKeyArray, Scalar
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
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, Scalar]]:
    """The next state, and loss and gradient norm. If either is not finite, only the counts change."""
    value, gradient = mean_gradient(loss, state.params, batch, key, accumulate)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)

    # A smaller decay in the first steps; otherwise the initial weights dominate for about 1 / (1 - decay) steps.
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))

    def change(params, ema, opt_state):
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        # From new weights that are there already: worked out twice, the old ones would be needed longer, as a copy.
        params = jax.lax.optimization_barrier(optax.apply_updates(params, updates))
        ema = jax.tree.map(lambda mean, new: decay * mean + (1.0 - decay) * new, ema, params)
        return params, ema, opt_state

    old = state.params, state.ema, state.opt_state
    params, ema, opt_state = jax.lax.cond(finite, change, lambda *kept: kept, *old)
    missed = (~finite).astype(jnp.int32)
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        ema=ema,
        opt_state=opt_state,
        skipped=state.skipped + missed,
        skipped_in_row=missed * (state.skipped_in_row + 1),
    )
    counts = {"skipped": new_state.skipped, "skipped_in_row": new_state.skipped_in_row}
    return new_state, {"loss": value, "grad_norm": norm, **counts}


def mean_gradient(
    loss: Loss, params: Params, batch: Any, key: PRNGKeyArray, parts: int = 1
) -> tuple[Scalar, Params]:
    """Loss and gradient of a batch, accumulated over equal parts to keep the activations of only one in memory.

    A batch that does not divide into `parts` is not split. Every part has its own random key.
    """
    rows = len(jax.tree.leaves(batch)[0])
    if parts == 1 or rows % parts:
        return jax.value_and_grad(loss)(params, batch, key)
    # Row i goes to part i mod parts, so that every part is spread over the devices as the batch is.
    split = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf.reshape(rows // parts, parts, *leaf.shape[1:]), 1, 0), batch
    )

    def add(total, part):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *part)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zero, (split, jax.random.split(key, parts)))
    return jax.tree.map(lambda leaf: leaf / parts, total)
