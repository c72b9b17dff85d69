"""What the denoiser is told besides the noisy latents: the picture, twice, and the camera of every frame."""

import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.diffusion.denoiser import Conditioning
from sv3d_jax.models.clip_vision import embed_image
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.embeddings import sinusoidal
from sv3d_jax.models.vae import encode_moments

NOISE_WIDTH, ANGLE_WIDTH = 256, 512  # of the embedded conditioning noise and of each embedded angle


def condition_on(
    params: Params,
    config: ModelConfig,
    pixels: Float[Array, "b h w 3"],
    noise: Float[Array, "b h w 3"],
    vector: Float[Array, "b f v"],
    compute: Compute = Compute(),
) -> Conditioning:
    """Conditioning of one orbit per picture in [-1, 1]; noise is standard normal.

    The image encoder sees the clean picture, the encoder one with cond_aug times the noise added. Its mean, without
    the latent factor, is every frame's conditioning latent. The encoder computes in float32, as published.
    """
    token = embed_image(params["image_tower"], config.image_encoder, pixels, compute)
    encoder_compute = Compute(reference=compute.reference)
    noisy = pixels + config.cond_aug * noise
    latent, _ = encode_moments(params["vae_encoder"], config.vae, noisy, encoder_compute)
    frames = vector.shape[1]
    concat = jnp.broadcast_to(latent[:, None], (len(latent), frames, *latent.shape[1:]))
    return Conditioning(context=token[:, None], concat=concat, vector=vector)


def camera_vector(config: ModelConfig, cameras: CameraPath) -> Float[Array, "f v"]:
    """The vector of every frame of an orbit."""
    return frame_vector(*frame_values(config, cameras))


def frame_values(config: ModelConfig, cameras: CameraPath) -> tuple[np.ndarray, ...]:
    """What `frame_vector` embeds of every frame of an orbit; sv3d_u knows the conditioning noise alone.

    The polar angle is 90 degrees minus the elevation, the azimuth is relative to the input view.
    """
    cond_aug = np.full(len(cameras), config.cond_aug, np.float32)
    if config.variant == "u":
        return (cond_aug,)
    angles = np.deg2rad(90.0 - cameras.elevations_deg), np.deg2rad(cameras.azimuths_deg)
    return cond_aug, *(angle.astype(np.float32) for angle in angles)


def frame_vector(
    cond_aug: Float[Array, "..."],
    polar_rad: Float[Array, "..."] | None = None,
    azimuth_rad: Float[Array, "..."] | None = None,
) -> Float[Array, "... v"]:
    """Sinusoids of the conditioning noise and, where given, of both angles as they are, not wrapped: 0 is not 2 pi."""
    parts = [sinusoidal(cond_aug, NOISE_WIDTH)]
    if polar_rad is not None:
        parts += [sinusoidal(polar_rad, ANGLE_WIDTH), sinusoidal(azimuth_rad, ANGLE_WIDTH)]
    return jnp.concatenate(parts, axis=-1)
