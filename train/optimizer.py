"""The optimiser of a run: Adam with warm-up and cosine decay, clipped by the global norm."""

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
    rate = learning_rate(config, max_steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay),
    )
