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
    x, y = prediction, target
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


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


def _blur(images: Float[Array, "*f h w c"]) -> Float[Array, "*f h2 w2 c"]:
    # Matrix products are several times as fast on a CPU, forward and backward, as sums of shifted images.
    rows, columns = (_window_matrix(size) for size in images.shape[-3:-1])
    return jnp.einsum("ih,jw,...hwc->...ijc", rows, columns, images, precision="highest")


def _window_matrix(size: int) -> Float[np.ndarray, "size2 size"]:
    offset = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-0.5 * (offset / SSIM_SIGMA) ** 2)
    places = np.arange(size - SSIM_WINDOW + 1)[:, None] + np.arange(SSIM_WINDOW)
    matrix = np.zeros((len(places), size), np.float32)
    np.put_along_axis(matrix, places, weights / weights.sum(), axis=1)
    return matrix


def _check_comparable(prediction: OrbitFrames, target: OrbitFrames) -> None:
    if prediction.images.shape != target.images.shape:
        shapes = ["{} frames of {}x{}".format(*orbit.images.shape[:3]) for orbit in (prediction, target)]
        raise InputError(f"pred has {shapes[0]}, target {shapes[1]}", hint="render or sample both alike")
    if min(target.images.shape[1:3]) < SSIM_WINDOW:
        raise InputError(f"frames are smaller than SSIM's window of {SSIM_WINDOW} pixels")
    if not np.allclose(prediction.camera_to_world, target.camera_to_world, atol=1e-3):
        warnings.warn("the cameras of the two orbits differ", stacklevel=2)
