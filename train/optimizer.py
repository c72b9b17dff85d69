"""The optimiser of a run: Adam with warm-up and cosine decay, clipped by the global norm."""

import jax
import jax.numpy as jnp
import optax

from sv3d_jax.train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, max_steps: int) -> optax.Schedule:
    """Rate at each step: linear warm-up, then half a cosine down to final_fraction of the peak at max_steps."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(max_steps, config.warmup_steps + 1),
        end_value=config.learning_rate * config.final_fraction,
    )


def make_optimizer(config: OptimizerConfig, max_steps: int) -> optax.GradientTransformation:
    """Gradient clipping, then Adam with decoupled weight decay (AdamW, arXiv 1711.05101)."""
    adamw = optax.chain(
        adam(config.b1, config.b2),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate(config, max_steps)),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def adam(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam` whose moments can be updated in place.

    The update is computed from the new moments. Without the barrier XLA may recompute these from the old moments, and
    then has to keep copies of the old ones: on a CPU, copying took a third of the time of the update.
    """
    moments = optax.scale_by_adam(b1, b2, eps)

    def update(gradient, state, params=None):
        _, new = moments.update(gradient, state, params)
        mu, nu = jax.lax.optimization_barrier((new.mu, new.nu))
        mean, square = (
            optax.tree.bias_correction(moment, beta, new.count) for moment, beta in ((mu, b1), (nu, b2))
        )
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square), new._replace(mu=mu, nu=nu)

    return optax.GradientTransformation(moments.init, update)
