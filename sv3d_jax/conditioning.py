"""What the denoiser is told besides the noisy latents: the picture, twice, and the camera of every frame."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.diffusion.denoiser import Conditioning
from sv3d_jax.models.clip_vision import embed_image
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.embeddings import sinusoidal
from sv3d_jax.models.families import ModelFamily, VectorField
from sv3d_jax.models.vae import encode_moments


def condition_on(
    params: Params,
    config: ModelConfig,
    pixels: Float[Array, "b h w 3"],
    noise: Float[Array, "b h w 3"],
    values: "FrameValues",
    compute: Compute = Compute(),
) -> Conditioning:
    """Conditioning of one orbit per picture in [-1, 1]; noise is standard normal.

    The image encoder sees the clean picture, the autoencoder's encoder one with cond_aug times the noise added. Its
    mean, without the latent factor, is every frame's conditioning latent; it computes in float32, as published.
    """
    token = embed_image(params["image_tower"], config.image_encoder, pixels, compute)
    encoder_compute = Compute(reference=compute.reference)
    noisy = pixels + config.cond_aug * noise
    latent, _ = encode_moments(params["vae_encoder"], config.vae, noisy, encoder_compute)
    return orbit_conditioning(config, token, latent, values)


def orbit_conditioning(
    config: ModelConfig, tokens: Float[Array, "b d"], latents: Float[Array, "b h w c"], values: "FrameValues"
) -> Conditioning:
    """Conditioning of orbits, given the token and the latent of each input picture; values are `f`, or `b f`."""
    vector = frame_vector(config.family, values)
    b, f = len(latents), vector.shape[-2]
    return Conditioning(
        context=tokens[:, None],
        concat=jnp.broadcast_to(latents[:, None], (b, f, *latents.shape[1:])),
        vector=jnp.broadcast_to(vector, (b, f, vector.shape[-1])),
    )


def camera_vector(config: ModelConfig, cameras: CameraPath) -> Float[Array, "f v"]:
    """The vector of every frame of an orbit."""
    return frame_vector(config.family, frame_values(config, cameras))


class FrameValues(NamedTuple):
    """Per frame, what vectors are made of; a family embeds some of it."""

    cond_aug: Float[Array, "..."]  # deviation of the noise on the conditioning picture
    polar_rad: Float[Array, "..."]  # 90 degrees minus the elevation
    azimuth_rad: Float[Array, "..."]  # relative to the input frame


def frame_values(config: ModelConfig, cameras: CameraPath) -> FrameValues:
    """What `frame_vector` embeds of every frame of an orbit, float32 (f,)."""
    return FrameValues(
        np.full(len(cameras), config.cond_aug, np.float32),
        np.deg2rad(90.0 - cameras.elevations_deg).astype(np.float32),
        np.deg2rad(cameras.azimuths_deg).astype(np.float32),
    )


def frame_vector(family: ModelFamily, values: FrameValues) -> Float[Array, "... v"]:
    """Vector conditioning: the family's fields as sinusoids, joined in its order.

    Angles are embedded as they are, not wrapped: 0 is not 2 pi.
    """

    def embedded(field: VectorField) -> Array:
        if field.source == "constant":
            return sinusoidal(jnp.full_like(values.cond_aug, field.value), field.width)
        return sinusoidal(getattr(values, field.source), field.width)

    return jnp.concatenate([embedded(field) for field in family.vector], axis=-1)
