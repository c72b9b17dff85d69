"""Noise levels of the sampler and of training."""

import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float


def karras_sigmas(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0
) -> np.ndarray:
    """Levels from sigma_max down to sigma_min and a final 0: float32, `num_steps + 1` values (EDM, eq. 5).

    One step has the single level sigma_max before the 0.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    ramp = np.linspace(0.0, 1.0, num_steps) if num_steps > 1 else np.zeros(1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return np.append(sigmas, 0.0).astype(np.float32)


def log_normal_sigmas(normal: Float[Array, "..."], p_mean: float, p_std: float) -> Float[Array, "..."]:
    """Training levels exp(p_mean + p_std * normal) from standard normal numbers."""
    return jnp.exp(p_mean + p_std * normal)
