"""Masked score distillation with linear encoders, where every gradient is a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.diffusion.schedule import karras_sigmas
from sv3d_jax.errors import CameraError
from sv3d_jax.recon.sds import (
    random_orbit,
    sds_gradient,
    sds_loss,
    sds_sigma_index,
    sds_sigma_range,
    visibility_mask,
)

FRAMES, SIZE = 3, 4
MATRIX = (
    np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
)  # of the encoder: each pixel by itself
SIGMA, KEY = jnp.float32(1.7), jax.random.key(5)


def encode(pixels):
    return pixels @ MATRIX + 0.25


def denoise(noised, sigma):
    """Depends on the level and mixes neighbouring frames, as a video model does."""
    return 0.5 * noised / sigma + 0.1 * jnp.roll(noised, 1, axis=1)


def pictures(seed=1, frames=FRAMES, size=SIZE):
    return np.random.default_rng(seed).random((frames, size, size, 3)).astype(np.float32)


def mask():
    """Zeros, ones and what lies between."""
    return np.clip(np.random.default_rng(2).uniform(-0.5, 1.5, (FRAMES, SIZE, SIZE)), 0, 1).astype(np.float32)


def test_gradient_of_a_linear_encoder_is_the_closed_formula():
    latents = np.einsum("fhwc,cd->fhwd", 2 * pictures() - 1, MATRIX) + 0.25
    noise = np.asarray(jax.random.normal(KEY, latents.shape))
    noised = latents + 1.7 * noise
    denoised = 0.5 * noised / 1.7 + 0.1 * np.roll(noised, 1, axis=0)
    # w (eps_phi - eps) with eps_phi = (noised - denoised) / sigma and w = sigma; pixels are 2 J - 1.
    score = 1.7 * ((noised - denoised) / 1.7 - noise)
    expected = mask()[..., None] * np.einsum("fhwd,cd->fhwc", score, 2 * MATRIX)
    got = sds_gradient(pictures(), mask(), encode, denoise, SIGMA, KEY)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)  # float32


def test_gradient_of_a_convolutional_encoder_is_that_of_autodiff():
    kernel = np.random.default_rng(3).normal(size=(3, 3, 3, 2)).astype(np.float32)

    def encode(pixels):
        strided = jax.lax.conv_general_dilated(
            pixels, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(strided)

    def surrogate(images):
        latents = encode(2 * images - 1)
        noised = latents + SIGMA * jax.random.normal(KEY, latents.shape)
        denoised = denoise(noised[None], SIGMA[None])[0]
        return jnp.sum(jax.lax.stop_gradient(latents - denoised) * latents)

    expected = mask()[..., None] * jax.grad(surrogate)(pictures())
    got = sds_gradient(pictures(), mask(), encode, denoise, SIGMA, KEY)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_gradient_is_exactly_0_under_the_mask():
    def explode(noised, sigma):
        return noised.at[0, 0, 0, 0].set(jnp.inf)

    hidden = mask()
    hidden[0, 0, 0] = 0.0
    got = np.asarray(sds_gradient(pictures(), hidden, encode, explode, SIGMA, KEY))
    assert not got[hidden == 0].any() and got[hidden > 0].all()


def test_weights_get_no_gradient():
    def loss(weights, images):
        def encode(pixels):
            return pixels @ weights["encoder"]

        def denoise(noised, sigma):
            return noised * weights["denoiser"]

        return sds_loss(images, sds_gradient(images, mask(), encode, denoise, SIGMA, KEY))

    weights = {"encoder": jnp.asarray(MATRIX), "denoiser": jnp.float32(0.3)}
    of_weights, of_images = jax.grad(loss, argnums=(0, 1))(weights, pictures())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_weights)) and np.any(of_images)


def test_gradient_of_the_loss_is_the_cotangent():
    cotangent = pictures(4)
    got = jax.grad(lambda images: sds_loss(images, cotangent))(jnp.asarray(pictures()))
    np.testing.assert_array_equal(got, cotangent)


def test_memory_does_not_grow_with_the_frames():
    kernels = [np.ones((3, 3, *ends), np.float32) for ends in ((3, 32), (32, 32), (32, 4))]

    def encode(pixels):
        x = pixels
        for kernel, stride in zip(kernels, (1, 2, 4), strict=True):
            x = jnp.tanh(
                jax.lax.conv_general_dilated(
                    x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            )
        return x

    def bytes_for(frames):
        images = jax.ShapeDtypeStruct((frames, 64, 64, 3), jnp.float32)
        visible = jax.ShapeDtypeStruct((frames, 64, 64), jnp.float32)
        compiled = jax.jit(
            lambda images, visible: sds_gradient(
                images, visible, encode, lambda x, sigma: 0.5 * x, SIGMA, KEY
            )
        ).lower(images, visible)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    assert bytes_for(21) < 1.1 * bytes_for(5)


CAMERA = np.array([[0.0, 0.0, 10.0]])


def seen_under(cosine: float) -> np.ndarray:
    return np.array([np.sqrt(1 - cosine**2), 0.0, cosine])


@pytest.mark.parametrize(
    ("cosine", "expected"), [(1.0, 0.0), (0.5, 0.0), (0.25, 0.5), (0.125, 0.84375), (0.0, 1.0), (-1.0, 1.0)]
)
def test_mask_is_a_smooth_step_of_the_cosine(cosine, expected):
    """1 - x^2 (3 - 2 x), x = cosine / 0.5."""
    got, best_dot, _ = visibility_mask(np.zeros(3), seen_under(cosine), CAMERA)
    assert float(got) == pytest.approx(expected, abs=1e-6)
    assert float(best_dot) == pytest.approx(cosine, abs=1e-6)


def test_the_most_direct_camera_decides():
    cameras = np.array([[0.0, 0.0, 10.0], [3.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    normals = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    got, best_dot, best_camera = visibility_mask(np.zeros((3, 3)), normals, cameras)
    assert best_camera.tolist() == [1, 2, 0] and not got.any()
    np.testing.assert_allclose(best_dot, 1.0, rtol=1e-6)


def test_background_has_no_share():
    assert float(visibility_mask(np.zeros(3), np.zeros(3), CAMERA)[0]) == 0.0


def test_mask_carries_no_gradient():
    gradients = jax.grad(lambda p, n: visibility_mask(p, n, CAMERA)[0], argnums=(0, 1))(
        jnp.zeros(3), jnp.asarray(seen_under(0.3))
    )
    assert not np.any(gradients)


@pytest.mark.parametrize("num_frames", [2, 5, 21])
def test_random_orbits_end_at_the_input_view(num_frames):
    rng = np.random.default_rng(0)
    for elevation in np.linspace(-89.0, 89.0, 50):
        path = random_orbit(rng, elevation, num_frames)
        assert len(path) == num_frames and path.azimuths_deg[-1] == 0.0
        assert path.elevations_deg[-1] == pytest.approx(elevation, abs=1e-9)


def test_random_orbits_go_round_once_and_stay_off_the_poles():
    rng = np.random.default_rng(1)
    for _ in range(200):
        path = random_orbit(rng, rng.uniform(-60.0, 60.0), 21)
        steps = np.diff([0.0, *path.azimuths_deg[:-1], 360.0])
        assert 0.5 * 360 / 21 < steps.min() and steps.max() < 1.5 * 360 / 21
        assert np.abs(path.elevations_deg).max() <= 89.0


def test_half_of_the_random_orbits_go_far_up_and_down():
    rng = np.random.default_rng(2)
    spans = np.array([np.ptp(random_orbit(rng, 0.0, 21).elevations_deg) for _ in range(400)])
    assert 0.4 < (spans > 50.0).mean() < 0.6


def test_random_orbits_repeat_by_their_seed():
    first, again, other = (random_orbit(np.random.default_rng(seed), 10.0, 21) for seed in (3, 3, 4))
    assert np.array_equal(first.azimuths_deg, again.azimuths_deg)
    assert np.array_equal(first.elevations_deg, again.elevations_deg)
    assert not np.array_equal(first.elevations_deg, other.elevations_deg)


def test_an_input_view_at_the_pole_is_refused():
    with pytest.raises(CameraError, match="within 89 degrees, got 90"):
        random_orbit(np.random.default_rng(0), 90.0, 21)


def test_noise_falls_from_20_to_5():
    assert sds_sigma_range(0, 200) == (0.3, 20.0)
    assert sds_sigma_range(199, 200) == (0.3, pytest.approx(5.0))


@pytest.mark.parametrize("step", [0, 100, 199])
def test_every_level_in_the_range_is_drawn_equally_and_no_other(step):
    sigmas = karras_sigmas(50)
    low, high = sds_sigma_range(step, 200)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: sds_sigma_index(sigmas, step, 200, key))(keys))
    counts = np.bincount(drawn, minlength=len(sigmas))
    inside = (sigmas >= low) & (sigmas <= high)
    share = 4000 / inside.sum()
    assert not counts[~inside].any() and np.abs(counts[inside] - share).max() < 5 * np.sqrt(share)


def test_a_ladder_without_a_level_in_the_range_gives_the_next_below():
    assert int(sds_sigma_index(np.array([700.0, 30.0, 0.1, 0.0]), 0, 200, KEY)) == 2
