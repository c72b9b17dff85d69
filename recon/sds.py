"""Masked score distillation (SV3D, section 4): a gradient from the orbit model for views that the orbit does not show.

Nothing here knows a model: `encode` and `denoise` are functions, and their weights get no gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Int, PRNGKeyArray, Scalar
from sv3d_jax.cameras.orbit import (
    NUM_FRAMES,
    CameraPath,
    check_num_frames,
    smooth_cyclic,
    static_azimuths_deg,
)
from sv3d_jax.diffusion.denoiser import Denoise
from sv3d_jax.errors import CameraError

SIGMA_MIN = 0.3
SIGMA_MAX = (20.0, 5.0)  # at the first and at the last step
SEEN_COSINE = 0.5  # of the angle between normal and view; at this or more the mask is 0
MAX_ELEVATION_DEG = 89.0

Encode = Callable[[Array], Array]
"""pixels `1 h w 3` in [-1, 1] -> model latents `1 h8 w8 c`."""


def sds_gradient(
    images: Float[Array, "f h w 3"],
    mask: Float[Array, "f h w"],
    encode: Encode,
    denoise: Denoise,
    sigma: Scalar,
    key: PRNGKeyArray,
) -> Float[Array, "f h w 3"]:
    """The gradient mask * J^T (z - D) of rendered pictures in [0, 1], J being the Jacobian of the encoder.

    z are the latents, D is their denoised version at noise sigma: the score distillation gradient w (eps_D - eps)
    with w = sigma. Frames go through the encoder one by one, and again for the backward pass, so that the activations
    of only one frame are in memory at a time.
    """

    images = jax.lax.stop_gradient(images)

    def latent(image):
        return encode(2.0 * image[None] - 1.0)[0].astype(jnp.float32)

    def pull_back(frame):
        image, frame_mask, cotangent = frame
        (gradient,) = jax.vjp(latent, image)[1](cotangent)
        return jnp.where(frame_mask[..., None] > 0, frame_mask[..., None] * gradient, 0.0)

    latents = jax.lax.map(latent, images)
    noised = latents + sigma * jax.random.normal(key, latents.shape)
    denoised = denoise(noised[None], jnp.reshape(sigma, 1))[0]
    return jax.lax.stop_gradient(jax.lax.map(pull_back, (images, mask, latents - denoised)))


def sds_loss(images: Float[Array, "f h w 3"], cotangent: Float[Array, "f h w 3"]) -> Scalar:
    """A scalar whose gradient with respect to the images is the cotangent; the value itself has no meaning."""
    return jnp.sum(jax.lax.stop_gradient(cotangent) * images)


def visibility_mask(
    points: Float[Array, "*n 3"], normals: Float[Array, "*n 3"], camera_positions: Float[Array, "f 3"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"], Int[Array, "*n"]]:
    """The distillation mask of surface points, the cosine of the most direct reference view, and that view's index.

    1 where no reference camera stands before the surface, 0 where one sees it within 60 degrees of its unit normal,
    a smooth step between; occlusion is ignored (SV3D, section 4). 0 where the normal is 0, on the background.
    The mask carries no gradient.
    """
    points, normals = jax.lax.stop_gradient((points, normals))

    def nearer(best, camera):
        best_dot, best_camera = best
        index, position = camera
        view = position - points
        distance = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(view), axis=-1), 1e-12))
        dot = jnp.sum(view * normals, axis=-1) / distance
        return (jnp.maximum(best_dot, dot), jnp.where(dot > best_dot, index, best_camera)), None

    start = jnp.full(points.shape[:-1], -jnp.inf), jnp.zeros(points.shape[:-1], jnp.int32)
    cameras = jnp.arange(len(camera_positions)), jnp.asarray(camera_positions)
    (best_dot, best_camera), _ = jax.lax.scan(nearer, start, cameras)  # never all cameras at all pixels
    seen = jnp.clip(best_dot / SEEN_COSINE, 0.0, 1.0)
    mask = 1.0 - jnp.square(seen) * (3.0 - 2.0 * seen)
    return jnp.where(jnp.any(normals != 0, axis=-1), mask, 0.0), best_dot, best_camera


def random_orbit(
    rng: np.random.Generator, input_elevation_deg: float, num_frames: int = NUM_FRAMES
) -> CameraPath:
    """A smooth orbit like those of training, ending at the input view; with probability 1/2 it goes far up and down.

    Elevation is a sum of sines of one to five whole periods, kept within 89 degrees; azimuths increase in slightly
    uneven steps. Raises CameraError for an input view beyond 89 degrees.
    """
    check_num_frames(num_frames)
    if abs(input_elevation_deg) > MAX_ELEVATION_DEG:
        raise CameraError(f"input_elevation_deg must lie within 89 degrees, got {input_elevation_deg:g}")
    turn = np.arange(1, num_frames + 1) / num_frames
    periods = np.arange(1, 6)[:, None]
    amplitudes = rng.uniform(0.5, 10.0, (5, 1)) * rng.uniform(0.0, 1.0, (5, 1))
    waves = amplitudes * np.sin(2.0 * np.pi * (periods * turn + rng.uniform(0.0, 1.0, (5, 1))))
    elevations = waves.sum(axis=0)
    if rng.uniform() < 0.5:
        elevations += rng.choice([-1.0, 1.0]) * rng.uniform(30.0, 60.0) * np.sin(2.0 * np.pi * turn)
    elevations += input_elevation_deg - elevations[-1]
    # Within half a step before smoothing, so that neighbours never change places.
    uneven = smooth_cyclic(rng.uniform(-0.5, 0.5, num_frames), width=min(3, num_frames)) * 360.0 / num_frames
    azimuths = static_azimuths_deg(num_frames) + uneven
    return CameraPath(azimuths, np.clip(elevations, -MAX_ELEVATION_DEG, MAX_ELEVATION_DEG))


def sds_sigma_range(step: int | Array, num_steps: int) -> tuple[float, float | Array]:
    """Least and largest noise level of a step: [0.3, 20] at the first, falling linearly to [0.3, 5] at the last."""
    first, last = SIGMA_MAX
    return SIGMA_MIN, first + (last - first) * step / max(num_steps - 1, 1)


def sds_sigma_index(
    sigmas: Float[Array, "levels"], step: int | Array, num_steps: int, key: PRNGKeyArray
) -> Int[Array, ""]:
    """Index of a random one of the sampler's noise levels (decreasing), uniform among those in the step's range.

    Where no level lies in the range, the next lower one is taken.
    """
    low, high = sds_sigma_range(step, num_steps)
    first, end = jnp.sum(sigmas > high), jnp.sum(sigmas >= low)
    return jax.random.randint(key, (), first, jnp.maximum(end, first + 1))
