"""Image metrics (PSNR, SSIM) and the verb `eval orbit`."""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float
from sv3d_jax.errors import InputError
from sv3d_jax.io.orbits import OrbitFrames, read_orbit
from sv3d_jax.io.outputs import write_json
from sv3d_jax.metrics.config import EvalOrbitConfig
from sv3d_jax.metrics.perceptual import lpips, read_lpips_weights
from sv3d_jax.progress import Progress

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_BLOCK = 32  # pixels that are blurred together
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for values in [0, 1]
MAX_PSNR = 100.0  # for identical images, so that means stay finite


def psnr(prediction: Float[Array, "*f h w c"], target: Float[Array, "*f h w c"]) -> Float[Array, "*f"]:
    """Peak signal-to-noise ratio of images in [0, 1] in dB, at most 100."""
    error = jnp.mean(jnp.square(prediction - target), axis=(-3, -2, -1))
    return -10.0 * jnp.log10(jnp.maximum(error, 10 ** (-MAX_PSNR / 10)))


def ssim(prediction: Float[Array, "*f h w c"], target: Float[Array, "*f h w c"]) -> Float[Array, "*f"]:
    """Structural similarity of images in [0, 1] (Wang et al. 2004, equation 13), averaged over pixels and channels.

    Gaussian window of 11x11 pixels with sigma 1.5; only where the whole window lies inside the image.
    """
    # About 1/2, where squares and their rounding are smaller; c f h w.
    x, y = (jnp.moveaxis(jnp.asarray(images) - 0.5, -1, 0) for images in (prediction, target))
    mean_x, mean_y = _blur(x), _blur(y)
    variances = _blur(x * x + y * y) - (mean_x**2 + mean_y**2)
    covariance = _blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variances + SSIM_C2)
    return jnp.mean(luminance * structure, axis=(0, -2, -1))


def run_eval_orbit(config: EvalOrbitConfig, progress: Progress) -> dict[str, Any]:
    """The verb `eval orbit`: compare two orbit folders frame by frame. Raises InputError if they do not match."""
    progress.stage("load")
    prediction, target = read_orbit(config.pred), read_orbit(config.target)
    _check_comparable(prediction, target)
    measures = {"psnr": psnr, "ssim": ssim}
    if config.lpips is not None:
        measures["lpips"] = partial(lpips, params=read_lpips_weights(config.lpips))
    if config.dry_run:
        return {"dry_run": True, "frames": len(target.images)}
    progress.stage("compare")
    pairs = prediction.images, target.images
    novel = np.arange(len(target.images)) != target.input_frame
    result: dict[str, Any] = {"frames": len(novel)}
    for name, measure in measures.items():
        values = np.asarray(jax.lax.map(lambda pair, measure=measure: measure(*pair), pairs), np.float64)
        result |= {
            name: float(values.mean()),
            f"{name}_without_input": float(values[novel].mean()) if novel.any() else None,
            f"{name}_per_frame": [round(float(value), 4) for value in values],
        }
    if config.output is not None:
        write_json(config.output, result)
    return result


def _blur(images: Float[Array, "*n h w"]) -> Float[Array, "*n h2 w2"]:
    for _ in range(2):
        images = jnp.swapaxes(_blur_rows(images), -1, -2)
    return images


def _blur_rows(images: Float[Array, "*n w"]) -> Float[Array, "*n w2"]:
    """In blocks, each by matrix products with itself and with the start of the next one.

    On a CPU, forward and backward, this is many times as fast as sums of shifted images.
    """
    reach = SSIM_WINDOW - 1
    length = images.shape[-1] - reach
    count = -(-length // SSIM_BLOCK)
    padding = ((0, 0),) * (images.ndim - 1) + ((0, (count + 1) * SSIM_BLOCK - images.shape[-1]),)
    blocks = jnp.pad(images, padding).reshape(*images.shape[:-1], count + 1, SSIM_BLOCK)
    own, next_ = np.split(_window_matrix(), [SSIM_BLOCK])
    product = partial(jnp.matmul, precision="highest")
    blurred = product(blocks[..., :-1, :], own) + product(blocks[..., 1:, :reach], next_)
    return blurred.reshape(*images.shape[:-1], -1)[..., :length]


def _window_matrix() -> Float[np.ndarray, "b_plus_10 b"]:
    """Weights of a block and of the 10 pixels that follow it, for each pixel of the result's block."""
    offset = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-0.5 * (offset / SSIM_SIGMA) ** 2)
    matrix = np.zeros((SSIM_BLOCK, SSIM_BLOCK + SSIM_WINDOW - 1), np.float32)
    places = np.arange(SSIM_BLOCK)[:, None] + np.arange(SSIM_WINDOW)
    np.put_along_axis(matrix, places, weights / weights.sum(), axis=1)
    return matrix.T


def _check_comparable(prediction: OrbitFrames, target: OrbitFrames) -> None:
    if prediction.images.shape != target.images.shape:
        shapes = ["{} frames of {}x{}".format(*orbit.images.shape[:3]) for orbit in (prediction, target)]
        raise InputError(f"pred has {shapes[0]}, target {shapes[1]}", hint="render or sample both alike")
    if min(target.images.shape[1:3]) < SSIM_WINDOW:
        raise InputError(f"frames are smaller than SSIM's window of {SSIM_WINDOW} pixels")
    if not np.allclose(prediction.camera_to_world, target.camera_to_world, atol=1e-3):
        warnings.warn("the cameras of the two orbits differ", stacklevel=2)
