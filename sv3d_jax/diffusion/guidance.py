"""Classifier-free guidance scales, one per frame of the orbit."""

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float


def triangular_scale(num_frames: int, cfg_min: float = 1.0, cfg_max: float = 2.5) -> Float[Array, "f"]:
    """cfg_min at both ends of the orbit, cfg_max half way round (SV3D, section 3).

    The last frame is the given view and the first lies next to it, so both need little. With an even num_frames
    no frame is exactly half way.
    """
    position = jnp.linspace(-1.0, 1.0, num_frames)
    return cfg_min + (cfg_max - cfg_min) * (1.0 - jnp.abs(position))


def linear_scale(num_frames: int, cfg_min: float = 1.0, cfg_max: float = 2.5) -> Float[Array, "f"]:
    """From cfg_min at the first frame to cfg_max at the last (Stable Video Diffusion)."""
    return jnp.linspace(cfg_min, cfg_max, num_frames)


def constant_scale(num_frames: int, cfg: float) -> Float[Array, "f"]:
    """The same scale for every frame."""
    return jnp.full((num_frames,), cfg)


SCALES = {
    "triangular": triangular_scale,
    "linear": linear_scale,
    "constant": lambda num_frames, cfg_min, cfg_max: constant_scale(num_frames, cfg_max),
}
"""Guidance by name; each takes (num_frames, cfg_min, cfg_max)."""
