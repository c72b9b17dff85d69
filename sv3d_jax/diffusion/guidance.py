"""Classifier-free guidance scales, one per frame of the orbit."""

from typing import Protocol

import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float


class GuidanceCurve(Protocol):
    """A guidance curve: the scale of each frame, given cfg_min and cfg_max; runs under `jax.jit`."""

    def __call__(self, num_frames: int, cfg_min: float, cfg_max: float) -> Float[Array, "f"]: ...


def triangular_scale(num_frames: int, cfg_min: float = 1.0, cfg_max: float = 2.5) -> Float[Array, "f"]:
    """cfg_min at both ends of the orbit, cfg_max half way round (SV3D, section 3).

    First and last frames are at or next to the input view and need little guidance. With an even num_frames no frame
    is exactly half way.
    """
    position = jnp.linspace(-1.0, 1.0, num_frames)
    return cfg_min + (cfg_max - cfg_min) * (1.0 - jnp.abs(position))


def linear_scale(num_frames: int, cfg_min: float = 1.0, cfg_max: float = 2.5) -> Float[Array, "f"]:
    """From cfg_min at the first frame to cfg_max at the last (Stable Video Diffusion)."""
    return jnp.linspace(cfg_min, cfg_max, num_frames)


def constant_scale(num_frames: int, cfg_min: float = 2.5, cfg_max: float = 2.5) -> Float[Array, "f"]:
    """cfg_max for every frame."""
    return jnp.full((num_frames,), cfg_max)


CURVES: dict[str, GuidanceCurve] = {
    "triangular": triangular_scale,
    "linear": linear_scale,
    "constant": constant_scale,
}
"""Guidance curves by the names that `SamplingConfig` and the verbs take."""


def guidance_scale(
    guidance: str | GuidanceCurve, num_frames: int, cfg_min: float, cfg_max: float
) -> Float[Array, "f"]:
    """The scale of each frame by a guidance curve, given by its name or as a function."""
    curve = CURVES[guidance] if isinstance(guidance, str) else guidance
    return curve(num_frames, cfg_min, cfg_max)
