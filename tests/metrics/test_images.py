"""PSNR, SSIM and the verb `eval orbit`."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sv3d_jax.cameras.orbit import static_orbit
from sv3d_jax.errors import InputError
from sv3d_jax.io.orbits import write_orbit
from sv3d_jax.metrics.config import EvalOrbitConfig
from sv3d_jax.metrics.images import psnr, run_eval_orbit, ssim
from sv3d_jax.metrics.perceptual import lpips
from sv3d_jax.models.lpips import lpips_params, lpips_shapes
from sv3d_jax.progress import NullProgress


def pictures(seed: int, shape=(2, 40, 36, 3)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def test_psnr_of_a_uniform_error_of_a_tenth_is_20():
    np.testing.assert_allclose(psnr(np.full((4, 4, 3), 0.5), np.full((4, 4, 3), 0.4)), 20.0, atol=1e-3)


def test_psnr_agrees_with_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio

    a, b = pictures(0), pictures(1)
    expected = [peak_signal_noise_ratio(y, x, data_range=1.0) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5)


def test_ssim_agrees_with_scikit_image():
    from skimage.metrics import structural_similarity

    a = pictures(2)
    b = np.clip(a + 0.2 * pictures(3), 0, 1)
    settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    expected = [
        structural_similarity(x, y, data_range=1.0, channel_axis=-1, **settings)
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(ssim(a, b), expected, atol=1e-5)  # float32 variances


def test_gradient_of_ssim_is_precise_where_bright_pictures_almost_agree():
    """There rounding of the squares must not outweigh their differences. Compared with differences in float64."""
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    first = np.float32(0.95 + 0.02 * rng.normal(size=(24, 45, 3)))
    second = np.float32(first + 1e-4 * rng.normal(size=first.shape))
    settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1)

    def slope(place):
        step = np.zeros(first.shape)
        step[place] = 1e-6
        after, before = (
            structural_similarity(moved, second.astype(np.float64), data_range=1.0, **settings)
            for moved in (first + step, first - step)
        )
        return (after - before) / 2e-6

    places = [(12, column, channel) for column in range(6, 40, 5) for channel in range(3)]
    expected = np.array([slope(place) for place in places])
    gradient = np.asarray(jax.grad(lambda x: ssim(x, second))(first))
    error = np.linalg.norm([gradient[place] for place in places] - expected)
    assert error < 1.5e-3 * np.linalg.norm(expected)


def test_ssim_of_equal_pictures_is_one():
    np.testing.assert_allclose(ssim(pictures(4), pictures(4)), 1.0, atol=1e-6)


def two_orbits(tmp_path, error: int) -> EvalOrbitConfig:
    frames = np.full((3, 32, 32, 3), 100, np.uint8)
    write_orbit(tmp_path / "target", frames, static_orbit(3))
    frames[:2] += error  # the last frame is the input and stays
    write_orbit(tmp_path / "pred", frames, static_orbit(3))
    return EvalOrbitConfig(
        pred=tmp_path / "pred", target=tmp_path / "target", output=tmp_path / "scores.json"
    )


def test_the_mean_without_the_input_leaves_it_out(tmp_path):
    result = run_eval_orbit(two_orbits(tmp_path, 51), NullProgress())
    assert result["psnr_without_input"] == pytest.approx(20 * np.log10(5), abs=1e-3)


def test_lpips_is_reported_where_its_weights_are_given(tmp_path):
    config = two_orbits(tmp_path, 51)
    assert "lpips" not in run_eval_orbit(config, NullProgress())
    rng, shapes = np.random.default_rng(0), lpips_shapes()
    tensors = {
        name: rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
        for name, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "lpips.safetensors")
    result = run_eval_orbit(replace(config, lpips=tmp_path / "lpips.safetensors"), NullProgress())
    frames = np.full((2, 1, 32, 32, 3), 100 / 255, np.float32)
    frames[1] += 51 / 255
    expected = float(lpips(*frames, lpips_params(tensors))[0])
    assert abs(expected) > 1e-3 and result["lpips_without_input"] == pytest.approx(expected, rel=1e-3)
    assert result["lpips_per_frame"][-1] == 0.0  # the input, which is the same


def test_the_result_is_written_as_json(tmp_path):
    config = two_orbits(tmp_path, 5)
    assert run_eval_orbit(config, NullProgress()) == json.loads(config.output.read_text())


def test_orbits_of_different_lengths_are_refused(tmp_path):
    config = two_orbits(tmp_path, 5)
    write_orbit(tmp_path / "pred", np.zeros((2, 32, 32, 3), np.uint8), static_orbit(2))
    with pytest.raises(InputError, match="2 frames of 32x32"):
        run_eval_orbit(config, NullProgress())


def test_other_cameras_are_pointed_out(tmp_path):
    config = two_orbits(tmp_path, 5)
    write_orbit(tmp_path / "pred", np.zeros((3, 32, 32, 3), np.uint8), static_orbit(3, elevation_deg=40.0))
    with pytest.warns(UserWarning, match="cameras"):
        run_eval_orbit(config, NullProgress())
