"""Noise levels of the sampler and of training."""

import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float
from sv3d_jax.models.config import ModelConfig


def karras_sigmas(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0
) -> np.ndarray:
    """Levels from sigma_max down to sigma_min and a final 0: float32, `num_steps + 1` values (EDM, eq. 5).

    One step has the single level sigma_max before the 0. The published levels are computed in float32, where raising
    to rho amplifies an error of 1 ulp to about 1e-6 relative, so rounding follows the published code.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    roots = np.float32(high) + _unit_ramp(num_steps) * np.float32(low - high)
    return np.append(roots.astype(np.float64) ** rho, 0.0).astype(np.float32)


def model_sigmas(model: ModelConfig, num_steps: int | None = None) -> np.ndarray:
    """`karras_sigmas` with the model's range and rho; num_steps None means the model's default."""
    return karras_sigmas(num_steps or model.num_steps, model.sigma_min, model.sigma_max, model.rho)


def _unit_ramp(num: int) -> np.ndarray:
    """0 to 1 as torch's linspace rounds it: steps up from 0 in the first half, down from 1 in the second."""
    index, step = np.arange(num), np.float64(np.float32(1.0) / np.float32(max(num - 1, 1)))
    falling = (index >= num // 2) & (num > 1)
    return np.where(falling, 1.0 - step * (num - 1 - index), step * index).astype(np.float32)


def log_normal_sigmas(normal: Float[Array, "..."], p_mean: float, p_std: float) -> Float[Array, "..."]:
    """Training levels exp(p_mean + p_std * normal) from standard normal numbers."""
    return jnp.exp(p_mean + p_std * normal)
