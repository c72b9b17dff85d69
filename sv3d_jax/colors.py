"""Conversion between sRGB and linear light (IEC 61966-2-1), for numpy and jax arrays."""

from typing import Any


def linear_from_srgb(values: Any) -> Any:
    """Linear light from sRGB values in [0, 1]; floating-point arrays of any shape."""
    xp = values.__array_namespace__()
    return xp.where(
        values <= 0.04045, values / 12.92, ((xp.clip(values, 0.04045, None) + 0.055) / 1.055) ** 2.4
    )


def srgb_from_linear(values: Any) -> Any:
    """sRGB values from linear light in [0, 1]; floating-point arrays of any shape."""
    xp = values.__array_namespace__()
    # The inner clip keeps the power's gradient finite at 0.
    return xp.where(
        values <= 0.0031308, values * 12.92, 1.055 * xp.clip(values, 0.0031308, None) ** (1 / 2.4) - 0.055
    )
