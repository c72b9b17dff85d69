"""Light that rendered objects stand in."""

from typing import NamedTuple

import numpy as np

from sv3d_jax.arrays import Array, Float


class SoftLight(NamedTuple):
    """An overcast sky: brightest for normals along `axis`, never darker than `ambient`, without shadows."""

    axis: Float[np.ndarray, "3"]
    ambient: float

    def shade(self, normals: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """Factor on the albedo, in [ambient, 1], of surfaces with these unit normals."""
        return self.ambient + (1.0 - self.ambient) * (0.5 + 0.5 * (normals @ self.axis))


def soft_light(seed: int, max_tilt_deg: float = 25.0) -> SoftLight:
    """A sky that is tilted at random from straight up, with an ambient part in [0.55, 0.75]."""
    rng = np.random.default_rng([seed, 0x11647])
    tilt = np.radians(max_tilt_deg) * np.sqrt(rng.uniform())
    azimuth = rng.uniform(0.0, 2.0 * np.pi)
    axis = [np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)]
    return SoftLight(np.asarray(axis, np.float32), float(rng.uniform(0.55, 0.75)))
