"""Lights, compared with integrals over the sphere and closed forms."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.render import lighting as module
from sv3d_jax.render.lighting import (
    SGLight,
    environment_light,
    init_sg_light,
    random_sg_light,
    random_sh_light,
    soft_light,
)

sg_shading = jax.jit(module.sg_shading)

COSINE = 2.133, 1.17  # sharpness and amplitude of the lobe that stands for the cosine


def fibonacci(count: int) -> np.ndarray:
    index = np.arange(count)
    height = 1.0 - (2.0 * index + 1.0) / count
    azimuth = index * np.pi * (3.0 - np.sqrt(5.0))
    ring = np.sqrt(1.0 - height**2)
    return np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), height], axis=-1)


def closed_form(axis, sharpness, amplitude, normals):
    """The formula in float64, evaluated literally."""
    d = np.linalg.norm(sharpness[:, None] * axis + COSINE[0] * normals[:, None], axis=-1)
    total = sharpness + COSINE[0]
    return (2 * amplitude * COSINE[1] * np.exp(d - total) * (1 - np.exp(-2 * d)) / d).sum(-1)


def test_shading_is_the_integral_over_the_sphere():
    """Of the product of the light's and the cosine's lobe, over pi. Gauss quadrature in height, even steps around."""
    heights, weights = np.polynomial.legendre.leggauss(80)
    around = 2 * np.pi * np.arange(160) / 160
    ring = np.sqrt(1 - heights**2)[:, None]
    along = np.broadcast_to(heights[:, None], (80, 160))
    directions = np.stack([ring * np.cos(around), ring * np.sin(around), along], axis=-1)
    normal = np.array([0.6, 0.0, 0.8])
    for sharpness in (0.5, 2.133, 30.0):
        lobe = 0.7 * np.exp(sharpness * (directions[..., 2] - 1))
        cosine = COSINE[1] * np.exp(COSINE[0] * (directions @ normal - 1))
        expected = (lobe * cosine).sum(1) @ weights * (2 * np.pi / 160) / np.pi
        got = sg_shading(np.array([[0.0, 0.0, 1.0]]), np.array([sharpness]), np.array([0.7]), normal)
        assert float(got) == pytest.approx(expected, rel=2e-6)  # float32


@pytest.mark.parametrize("sharpness", [1e-3, 0.5, 2.1, 2.1331, 2.5, 10.8, 300.0, 1e5])
def test_every_lobe_agrees_with_the_closed_form(sharpness):
    """Also where d is almost 0 (opposite a lobe as sharp as the cosine's) and where d - s1 - s2 would cancel."""
    axis = np.array([[0.0, 0.0, 1.0]])
    angles = np.pi - np.array([0.0, 1e-3, 0.05, 0.1, 0.2, 0.3, 1.0, 2.0, 3.0])
    normals = np.stack([np.sin(angles), np.zeros_like(angles), np.cos(angles)], axis=-1)
    got = sg_shading(axis, np.array([sharpness]), np.array([1.3]), normals)
    expected = closed_form(axis, np.array([sharpness]), np.array([1.3]), normals)
    np.testing.assert_allclose(got, expected, rtol=5e-6)  # float32


def test_light_opposite_the_normal_and_as_sharp_as_the_cosine_has_the_limit():
    got = sg_shading(
        np.array([[0.0, 1.0, 0.0]]), np.array([COSINE[0]]), np.ones(1), np.array([0.0, -1.0, 0.0])
    )
    assert float(got) == pytest.approx(4 * COSINE[1] * np.exp(-2 * COSINE[0]), rel=1e-6)


def test_gradients_are_finite_everywhere():
    axis = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0], [1e-9, 0.0, 0.0], [1.0, 1.0, 1.0]])
    normals = np.concatenate([fibonacci(50), [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]])
    gradient = jax.jit(jax.grad(lambda light, normals: light.shade(normals).sum(), argnums=(0, 1)))
    for raw in (-200.0, -5.0, float(np.log(np.expm1(COSINE[0]))), 3.0, 1e6):
        light = SGLight(jnp.asarray(axis, jnp.float32), jnp.full(5, raw), jnp.linspace(-100.0, 100.0, 5))
        gradients = gradient(light, jnp.asarray(normals, jnp.float32))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients)), raw


def test_gradients_agree_with_finite_differences():
    """On both sides of the point where the power series is used."""
    rng = np.random.default_rng(0)
    axis, raw = rng.normal(size=(4, 3)), np.array([1.9, 2.0, 8.0, 0.1])
    normals = np.concatenate([fibonacci(20), -axis / np.linalg.norm(axis, axis=1, keepdims=True)])

    def shade(axis, raw):
        unit = axis / np.linalg.norm(axis, axis=1, keepdims=True)
        return closed_form(unit, np.log1p(np.exp(raw)), np.log1p(np.exp(raw)), normals).sum()

    def numeric(function, x, step=1e-5):
        basis = np.eye(x.size).reshape(-1, *x.shape) * step
        return np.array([(function(x + e) - function(x - e)) / (2 * step) for e in basis]).reshape(x.shape)

    def total(axis, raw):
        return SGLight(axis, raw, raw).shade(jnp.asarray(normals, jnp.float32)).sum()

    given = jnp.asarray(axis, jnp.float32), jnp.asarray(raw, jnp.float32)
    of_axis, of_raw = jax.jit(jax.grad(total, argnums=(0, 1)))(*given)
    np.testing.assert_allclose(of_axis, numeric(lambda x: shade(x, raw), axis), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(of_raw, numeric(lambda x: shade(axis, x), raw), rtol=2e-4, atol=2e-4)


def test_parts_of_the_shading_have_the_gradients_of_the_light_and_of_the_normals():
    light, normals = random_sg_light(3), jnp.asarray(fibonacci(40), jnp.float32)
    weights = np.random.default_rng(0).normal(size=(2, 40)).astype(np.float32)

    def weighted(parts):
        return sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))

    shading, zeros = light.shade_in_parts(normals)
    np.testing.assert_allclose(shading, light.shade(normals), rtol=1e-6)
    assert not np.any(zeros)
    got = jax.grad(lambda *given: weighted(given[0].shade_in_parts(given[1])), argnums=(0, 1))(light, normals)
    for number, weight in enumerate(weights):
        expected = jax.grad(lambda *given, w=weight: (given[0].shade(given[1]) * w).sum(), argnums=number)
        for ours, theirs in zip(*map(jax.tree.leaves, (got[number], expected(light, normals))), strict=True):
            assert float(jnp.abs(theirs).max()) > 1e-3
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gradient_in_the_normals_agrees_with_finite_differences():
    axis, sharpness, amplitude = (
        fibonacci(5),
        np.array([0.3, 2.0, 2.133, 8.0, 90.0]),
        np.linspace(0.2, 1.0, 5),
    )
    normals, step = fibonacci(12), 1e-5

    def total(normals):  # by the cosine alone: the closed form takes d from vectors, and so |n| = 1
        squared = (sharpness - COSINE[0]) ** 2 + 2 * sharpness * COSINE[0] * (1 + normals @ axis.T)
        d, both = np.sqrt(squared), sharpness + COSINE[0]
        return (2 * amplitude * COSINE[1] * np.exp(d - both) * (1 - np.exp(-2 * d)) / d).sum(-1)

    sides = [total(normals[:, None] + sign * step * np.eye(3)) for sign in (1, -1)]
    lobes = (jnp.asarray(part, jnp.float32) for part in (axis, sharpness, amplitude))
    got = jax.grad(lambda normals, *lobes: module.sg_shading(*lobes, normals).sum())
    expected = (sides[0] - sides[1]) / (2 * step)
    np.testing.assert_allclose(got(jnp.asarray(normals, jnp.float32), *lobes), expected, rtol=1e-3, atol=1e-4)


def test_first_light_has_mean_1():
    assert float(init_sg_light().shade(fibonacci(4000)).mean()) == pytest.approx(1.0, abs=1e-3)


def test_first_light_is_almost_even():
    shading = init_sg_light().shade(fibonacci(4000))
    assert 0.98 < float(shading.min()) and float(shading.max()) < 1.02


def test_first_lobes_have_sharpness_10_8():
    light = init_sg_light()
    np.testing.assert_allclose(jax.nn.softplus(light.sharpness_raw), 10.8, rtol=1e-6)
    np.testing.assert_allclose(jax.nn.softplus(light.amplitude_raw), 0.832, rtol=1e-6)


def test_length_of_the_axis_does_not_matter():
    light = init_sg_light(7)
    normals = fibonacci(30)
    longer = light._replace(axis=light.axis * 17.0)
    np.testing.assert_allclose(longer.shade(normals), light.shade(normals), rtol=1e-5)


def test_lobes_of_negative_amplitude_are_dark():
    assert float(sg_shading(np.eye(3)[:1], np.ones(1), np.array([-1.0]), np.eye(3)[0])) == 0.0


def test_environment_that_grows_with_height_shades_by_its_cosine_integral():
    height = np.cos((np.arange(64) + 0.5) * np.pi / 64)
    light = environment_light(np.broadcast_to((1.0 + height)[:, None, None], (64, 128, 3)))
    normals = fibonacci(200)
    expected = 1.0 + 2.0 / 3.0 * normals[:, 2]  # (1 / pi) integral of (1 + z) max(n . w, 0)
    np.testing.assert_allclose(
        light.shade(normals), np.tile(expected[:, None], 3), atol=2e-3
    )  # rows of 3 degrees


def test_environment_is_seen_from_inside_with_x_ahead_in_its_middle():
    picture = np.zeros((32, 64, 3))
    picture[14:18, 30:34, 0] = 1.0  # red ahead
    picture[14:18, 14:18, 1] = 1.0  # green a quarter turn to the left
    light = environment_light(picture)
    ahead, left = np.asarray(light.shade(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])))
    assert ahead[0] > 4 * ahead[1] and left[1] > 4 * left[0]


def test_a_large_environment_takes_little_memory_besides_itself():
    height = np.cos((np.arange(1024) + 0.5) * np.pi / 1024)
    radiance = np.broadcast_to((1.0 + height)[:, None, None], (1024, 1024, 3)).astype(np.float32)
    tracemalloc.start()
    light = environment_light(radiance)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * radiance.nbytes  # all at once: 18 times
    # (1 / pi) integral of (1 + z) max(n . w, 0), up to the width of a row
    np.testing.assert_allclose(light.shade(np.eye(3)), [[1.0] * 3, [1.0] * 3, [5 / 3] * 3], atol=1e-4)


def test_turning_an_environment_turns_its_shading():
    picture = np.random.default_rng(0).uniform(size=(32, 64, 3))
    normals = fibonacci(50)
    turned = normals @ np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # by 90 degrees
    np.testing.assert_allclose(
        environment_light(picture, turn_deg=90.0).shade(turned),
        environment_light(picture).shade(normals),
        atol=1e-5,  # float32
    )


@pytest.mark.parametrize("make", [random_sh_light, random_sg_light])
def test_random_lights_have_mean_one_and_differ(make):
    shades = [np.asarray(make(seed).shade(jnp.asarray(fibonacci(4000), jnp.float32))) for seed in range(8)]
    assert all(shade.min() >= 0 for shade in shades)
    # Clipping below 0 adds a little.
    np.testing.assert_allclose([shade.mean() for shade in shades], 1.0, atol=0.01)
    assert all(shade.std() > 0.05 for shade in shades)
    assert np.abs(shades[0] - shades[1]).max() > 0.1


@pytest.mark.parametrize("factor", [0.02, 0.7, 9.0])
def test_a_light_times_a_factor_shades_by_that_factor(factor):
    light, normals = init_sg_light(7), fibonacci(30)
    np.testing.assert_allclose(light.times(factor).shade(normals), factor * light.shade(normals), rtol=1e-5)


def test_soft_light_never_leaves_its_range():
    normals = np.random.default_rng(0).normal(size=(500, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for seed in range(20):
        light = soft_light(seed)
        assert np.degrees(np.arccos(light.axis[2])) <= 12.0
        assert 0.6 <= light.ambient <= light.shade(normals).min() <= light.shade(normals).max() <= 1.0
