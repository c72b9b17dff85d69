"""Distant lights on diffuse surfaces: a soft sky, spherical harmonics, spherical Gaussians. No shadows."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float
from sv3d_jax.programs import kept_jit


class SoftLight(NamedTuple):
    """An overcast sky: shading is 1 for normals along `axis` and `ambient` for the opposite ones."""

    axis: Float[np.ndarray, "3"]
    ambient: float

    def shade(self, normals: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """Factor on the albedo, in [ambient, 1], of surfaces with these unit normals."""
        return self.ambient + (1.0 - self.ambient) * (0.5 + 0.5 * (normals @ self.axis))


def soft_light(seed: int, max_tilt_deg: float = 12.0) -> SoftLight:
    """A random soft light: axis tilted from straight up by at most `max_tilt_deg`, ambient in [0.6, 0.75]."""
    rng = np.random.default_rng([seed, 0x11647])
    tilt = np.radians(max_tilt_deg) * np.sqrt(rng.uniform())
    azimuth = rng.uniform(0.0, 2.0 * np.pi)
    axis = [np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)]
    return SoftLight(np.asarray(axis, np.float32), float(rng.uniform(0.6, 0.75)))


class SHLight(NamedTuple):
    """Coloured distant light as spherical harmonics up to order 2, fixed in the world.

    `coefficients` expand the radiance reflected by a white Lambertian surface, as a function of its normal: those of
    the incoming light times 1, 2/3 and 1/4 for the three orders (Ramamoorthi and Hanrahan 2001, equation 8, divided by
    pi).
    """

    coefficients: Float[Array, "9 3"]

    def shade(self, normals: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
        """Factor on the albedo of surfaces with these unit normals; may exceed 1, never negative."""
        return jnp.maximum(jnp.asarray(sh_basis(normals)) @ self.coefficients, 0.0)


SH_COSINE = np.repeat([1.0, 2.0 / 3.0, 1.0 / 4.0], [1, 3, 5])
PIXELS_AT_ONCE = 1 << 18
"""Of an environment map: each takes 200 bytes while its light is computed."""


def sh_basis(directions: Float[Any, "*n 3"]) -> Float[Any, "*n 9"]:
    """Real orthonormal spherical harmonics up to order 2 at unit directions (numpy or jax arrays)."""
    xp = jnp if isinstance(directions, jax.Array) else np
    x, y, z = (directions[..., i] for i in range(3))
    first, second = np.sqrt(3 / (4 * np.pi)), np.sqrt(15 / (4 * np.pi))
    return xp.stack(
        [
            xp.full_like(x, np.sqrt(1 / (4 * np.pi))),
            *(first * y, first * z, first * x),
            *(second * x * y, second * y * z, np.sqrt(5 / (16 * np.pi)) * (3 * z**2 - 1)),
            *(second * x * z, 0.5 * second * (x**2 - y**2)),
        ],
        axis=-1,
    )


def environment_light(radiance: Float[np.ndarray, "h w 3"], turn_deg: float = 0.0) -> SHLight:
    """The light of an equirectangular environment map (top row: straight up), rotated about the vertical axis.

    Scaled to a mean of 1 over all normals, because environment maps differ in exposure by factors of thousands.
    """
    height, width = radiance.shape[:2]
    azimuth = np.pi - (np.arange(width) + 0.5) * 2 * np.pi / width + np.deg2rad(turn_deg)  # seen from inside
    coefficients = np.zeros((9, 3))
    for rows in np.array_split(np.arange(height), -(-height * width // PIXELS_AT_ONCE)):
        polar = ((rows + 0.5) * np.pi / height)[:, None]
        z = np.broadcast_to(np.cos(polar), (len(rows), width))
        basis = sh_basis(np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), z], -1))
        area = np.sin(polar) * (np.pi / height) * (2 * np.pi / width)
        coefficients += np.tensordot(
            basis * area[..., None], radiance[rows].astype(np.float64), ((0, 1), (0, 1))
        )
    return _of_mean_one(coefficients * SH_COSINE[:, None])


def random_sh_light(seed: int) -> SHLight:
    """A random light of mean 1: brighter from above, with random gradients and tint."""
    rng = np.random.default_rng([seed, 0x5B])
    coefficients = np.zeros((9, 3))
    coefficients[0] = rng.uniform(0.85, 1.15, 3)
    grey, tint = rng.normal(size=(9, 1)), rng.normal(size=(9, 3))
    deviation = np.repeat([0.0, 0.35, 0.2], [1, 3, 5])[:, None]
    coefficients += deviation * (grey + 0.25 * tint)
    coefficients[2] += 0.3  # z: from above
    return _of_mean_one(coefficients * SH_COSINE[:, None])


def _of_mean_one(coefficients: np.ndarray) -> SHLight:
    mean = coefficients[0].mean() * np.sqrt(1 / (4 * np.pi))
    return SHLight(jnp.asarray(coefficients / max(mean, 1e-12), jnp.float32))


# The clamped cosine around the normal, approximated by a spherical Gaussian (constants of SV3D).
COSINE_SHARPNESS, COSINE_AMPLITUDE = 2.133, 1.17
INITIAL_SHARPNESS_PER_LOBE, INITIAL_AMPLITUDE = 0.45, 0.832


class SGLight(NamedTuple):
    """White distant light, fixed in the world: a sum of spherical Gaussians a exp(s (mu . x - 1)).

    Parameters are unconstrained for optimization: mu is the normalized axis, s and a are softplus of the raw values.
    """

    axis: Float[Array, "k 3"]
    sharpness_raw: Float[Array, "k"]
    amplitude_raw: Float[Array, "k"]

    def shade(self, normals: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """Factor on the albedo of surfaces with these unit normals; may exceed 1."""
        return sg_shading(*self._lobes(), normals)

    def shade_in_parts(self, normals: Float[Array, "*n 3"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        """The same without gradient in the normals, and zeros that have that gradient alone."""
        return sg_shading_parts(*self._lobes(), normals)

    def _lobes(self) -> tuple[Array, Array, Array]:
        squared = jnp.sum(jnp.square(self.axis), axis=-1, keepdims=True)
        axis = self.axis * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))
        return axis, jax.nn.softplus(self.sharpness_raw), jax.nn.softplus(self.amplitude_raw)

    def times(self, factor: float) -> "SGLight":
        """The same light, brighter or darker."""
        amplitude = factor * jax.nn.softplus(self.amplitude_raw)
        return self._replace(amplitude_raw=amplitude + jnp.log(-jnp.expm1(-amplitude)))


def init_sg_light(num_lobes: int = 24) -> SGLight:
    """Equal lobes on a Fibonacci lattice; their shading has mean 1 over all normals.

    Neighbouring lobes intersect at about half their amplitude: 24 of them have sharpness 10.8.
    """
    index = np.arange(num_lobes)
    height = 1.0 - (2.0 * index + 1.0) / num_lobes
    azimuth = index * np.pi * (3.0 - np.sqrt(5.0))
    ring = np.sqrt(1.0 - height**2)
    axis = np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), height], axis=-1)
    raw = np.log(np.expm1([INITIAL_SHARPNESS_PER_LOBE * num_lobes, INITIAL_AMPLITUDE]))
    sharpness_raw, amplitude_raw = jnp.asarray(np.tile(raw[:, None], num_lobes), jnp.float32)
    return SGLight(jnp.asarray(axis, jnp.float32), sharpness_raw, amplitude_raw)


def random_sg_light(seed: int) -> "SGLight":
    """A random light: one to three lobes of different widths, mostly above, and a nearly uniform one."""
    rng = np.random.default_rng([seed, 0x56])
    lamps = int(rng.integers(1, 4))
    azimuth, height = rng.uniform(0.0, 2.0 * np.pi, lamps), rng.uniform(-0.2, 1.0, lamps)
    ring = np.sqrt(1.0 - height**2)
    axis = np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), height], axis=-1)
    sharpness = np.exp(rng.uniform(np.log(2.0), np.log(40.0), lamps))
    power = rng.dirichlet(np.full(lamps, 2.0)) * rng.uniform(0.4, 0.7)  # the lamps' share of the light
    axis = np.concatenate([axis, [[0.0, 0.0, 1.0]]])
    sharpness, power = np.append(sharpness, 1e-3), np.append(power, 1.0 - power.sum())
    # A lobe of sharpness s and amplitude 1 has the mean (1 - exp(-2 s)) / (2 s) over all directions. The mean shading,
    # which shall be 1, is 4 times the product of the means of the light's lobe and the cosine's lobe.
    amplitude = power / (4.0 * COSINE_AMPLITUDE * _lobe_mean(sharpness) * _lobe_mean(COSINE_SHARPNESS))
    raws = (jnp.asarray(np.log(np.expm1(values)), jnp.float32) for values in (sharpness, amplitude))
    return SGLight(jnp.asarray(axis, jnp.float32), *raws)


def _lobe_mean(sharpness: Any) -> Any:
    return -np.expm1(-2.0 * sharpness) / (2.0 * sharpness)


@kept_jit
def sg_shading(
    axis: Float[Array, "k 3"],
    sharpness: Float[Array, "k"],
    amplitude: Float[Array, "k"],
    normals: Float[Array, "*n 3"],
) -> Float[Array, "*n"]:
    """Shading of a white Lambertian surface, (1 / pi) sum_i max(I_i, 0), for unit axes and normals.

    I is the integral of the product of the light's lobe and the cosine's lobe: with d = |s1 mu1 + s2 mu2|,
    I = 2 pi a1 a2 exp(d - s1 - s2) (1 - exp(-2 d)) / d. The SV3D paper prints a difference instead of the sum in d.
    """
    return sum(sg_shading_parts(axis, sharpness, amplitude, normals))


@jax.custom_vjp
def sg_shading_parts(
    axis: Float[Array, "k 3"],
    sharpness: Float[Array, "k"],
    amplitude: Float[Array, "k"],
    normals: Float[Array, "*n 3"],
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """`sg_shading` with the gradient in the light alone, and zeros that have the gradient in the normals.

    The slopes of all lobes are computed once for both, forwards; on a CPU in half of the time that the derived
    gradient takes.
    """
    integral = _lobe_integral(sharpness, _cosines(axis, normals))
    shading = jnp.matmul(integral, _scale(amplitude), precision="highest")
    return shading, jnp.zeros_like(shading)


def _shading_forward(*inputs):
    return sg_shading_parts(*inputs), inputs


def _shading_backward(inputs, cotangents):
    axis, sharpness, amplitude, normals = inputs
    rows = normals.reshape(-1, 3)
    of_light, of_normals = (cotangent.ravel() for cotangent in cotangents)
    cosine, scale = _cosines(axis, rows), _scale(amplitude)
    ones = jnp.ones_like(sharpness), jnp.ones_like(cosine)
    integral, by_sharpness = jax.jvp(lambda s: _lobe_integral(s, cosine), (sharpness,), ones[:1])
    _, by_cosine = jax.jvp(lambda c: _lobe_integral(sharpness, c), (cosine,), ones[1:])
    product = partial(jnp.matmul, precision="highest")
    return (
        scale[:, None] * product(by_cosine.T, of_light[:, None] * rows),
        scale * product(of_light, by_sharpness),
        jax.vjp(_scale, amplitude)[1](product(of_light, integral))[0],
        (of_normals[:, None] * product(by_cosine, scale[:, None] * axis)).reshape(normals.shape),
    )


sg_shading_parts.defvjp(_shading_forward, _shading_backward)


def _cosines(axis: Array, normals: Array) -> Array:
    return jnp.einsum("...c,kc->...k", normals, axis, precision="highest")


def _scale(amplitude: Array) -> Array:
    return 2.0 * COSINE_AMPLITUDE * jnp.maximum(amplitude, 0.0)


def _lobe_integral(sharpness: Float[Array, "k"], cosine: Float[Array, "*n k"]) -> Float[Array, "*n k"]:
    """I / (2 pi a1 a2), from the cosine of the angle between the two axes."""
    total, product = sharpness + COSINE_SHARPNESS, sharpness * COSINE_SHARPNESS
    squared = jnp.square(sharpness - COSINE_SHARPNESS) + 2.0 * product * (1.0 + cosine)
    # (1 - exp(-2 d)) exp(d) = 2 sinh(d). For small d, sinh(d) / d is a power series in d^2: no division by 0.
    is_small = squared < 0.25
    series = 2.0 * jnp.exp(-total) * (1.0 + squared / 6.0 * (1.0 + squared / 20.0 * (1.0 + squared / 42.0)))
    d = jnp.sqrt(jnp.where(is_small, 1.0, squared))
    # d - s1 - s2 as a quotient, because the difference of large numbers would lose all digits.
    exponent = -2.0 * product * (1.0 - cosine) / (d + total)
    closed = jnp.exp(exponent) * -jnp.expm1(-2.0 * d) / d
    return jnp.where(is_small, series, closed)
