"""Light that rendered objects stand in."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float


class SoftLight(NamedTuple):
    """An overcast sky: brightest for normals along `axis`, never darker than `ambient`, without shadows."""

    axis: Float[np.ndarray, "3"]
    ambient: float

    def shade(self, normals: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """Factor on the albedo, in [ambient, 1], of surfaces with these unit normals."""
        return self.ambient + (1.0 - self.ambient) * (0.5 + 0.5 * (normals @ self.axis))


def soft_light(seed: int, max_tilt_deg: float = 12.0) -> SoftLight:
    """A sky that is tilted at random from straight up, with an ambient part in [0.6, 0.75]."""
    rng = np.random.default_rng([seed, 0x11647])
    tilt = np.radians(max_tilt_deg) * np.sqrt(rng.uniform())
    azimuth = rng.uniform(0.0, 2.0 * np.pi)
    axis = [np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)]
    return SoftLight(np.asarray(axis, np.float32), float(rng.uniform(0.6, 0.75)))


# The cosine of the angle to a normal, zero behind the surface, as a spherical Gaussian around the normal (SV3D).
COSINE_SHARPNESS, COSINE_AMPLITUDE = 2.133, 1.17
INITIAL_SHARPNESS_PER_LOBE, INITIAL_AMPLITUDE = 0.45, 0.832


class SGLight(NamedTuple):
    """White light from afar, fixed in the world: a sum of spherical Gaussians a exp(s (mu . x - 1)).

    Parameters are free numbers for an optimiser: mu is the axis made unit, s and a are softplus of the raw values.
    """

    axis: Float[Array, "k 3"]
    sharpness_raw: Float[Array, "k"]
    amplitude_raw: Float[Array, "k"]

    def shade(self, normals: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """Factor on the albedo of surfaces with these unit normals; may exceed 1."""
        squared = jnp.sum(jnp.square(self.axis), axis=-1, keepdims=True)
        axis = self.axis * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))
        sharpness, amplitude = jax.nn.softplus(self.sharpness_raw), jax.nn.softplus(self.amplitude_raw)
        return sg_shading(axis, sharpness, amplitude, normals)


def init_sg_light(num_lobes: int = 24) -> SGLight:
    """Equal lobes on a Fibonacci lattice, whose shading has mean 1 over all normals.

    Neighbouring lobes cross at about half their height: 24 of them have sharpness 10.8.
    """
    index = np.arange(num_lobes)
    height = 1.0 - (2.0 * index + 1.0) / num_lobes
    azimuth = index * np.pi * (3.0 - np.sqrt(5.0))
    ring = np.sqrt(1.0 - height**2)
    axis = np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), height], axis=-1)
    raw = np.log(np.expm1([INITIAL_SHARPNESS_PER_LOBE * num_lobes, INITIAL_AMPLITUDE]))
    sharpness_raw, amplitude_raw = jnp.asarray(np.tile(raw[:, None], num_lobes), jnp.float32)
    return SGLight(jnp.asarray(axis, jnp.float32), sharpness_raw, amplitude_raw)


def sg_shading(
    axis: Float[Array, "k 3"],
    sharpness: Float[Array, "k"],
    amplitude: Float[Array, "k"],
    normals: Float[Array, "*n 3"],
) -> Float[Array, "*n"]:
    """Light that a white Lambertian surface reflects, (1 / pi) sum_i max(I_i, 0), for unit axes and normals.

    I is the integral of the product of a light's lobe and the cosine's: with d = |s1 mu1 + s2 mu2|,
    I = 2 pi a1 a2 exp(d - s1 - s2) (1 - exp(-2 d)) / d. The SV3D paper prints a difference in place of the sum.
    """
    cosine = jnp.einsum("...c,kc->...k", normals, axis, precision="highest")
    total, product = sharpness + COSINE_SHARPNESS, sharpness * COSINE_SHARPNESS
    squared = jnp.square(sharpness - COSINE_SHARPNESS) + 2.0 * product * (1.0 + cosine)
    # (1 - exp(-2 d)) exp(d) = 2 sinh(d), and sinh(d) / d is a power series in d^2: no root, no division by 0.
    is_small = squared < 0.25
    series = 2.0 * jnp.exp(-total) * (1.0 + squared / 6.0 * (1.0 + squared / 20.0 * (1.0 + squared / 42.0)))
    d = jnp.sqrt(jnp.where(is_small, 1.0, squared))
    # d - s1 - s2 as a quotient, for the difference of large numbers loses all digits.
    exponent = -2.0 * product * (1.0 - cosine) / (d + total)
    closed = jnp.exp(exponent) * -jnp.expm1(-2.0 * d) / d
    lobes = 2.0 * COSINE_AMPLITUDE * jnp.maximum(amplitude, 0.0) * jnp.where(is_small, series, closed)
    return jnp.sum(lobes, axis=-1)
