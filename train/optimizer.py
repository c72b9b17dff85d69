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
    """Clipping, then Adam; decoupled weight decay where the settings ask for it."""
    adamw = optax.chain(
        adam(config.b1, config.b2),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate(config, max_steps)),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def adam(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, whose new moments can take the place of the old ones.

    Its direction is computed from the new moments. Where a compiler is free to work them out once more, from the old
    ones, it keeps copies of these: of all state on a CPU, a third of the time of the change.
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
