"""The loss of each objective: autoencoder, image encoder and UNet."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sv3d_jax.arrays import Array, Float, Params, PRNGKeyArray, Scalar, UInt8
from sv3d_jax.conditioning import FrameValues, orbit_conditioning
from sv3d_jax.diffusion.denoiser import Conditioning, Network
from sv3d_jax.diffusion.loss import WEIGHTINGS, denoising_loss, v_weighting
from sv3d_jax.diffusion.schedule import log_normal_sigmas
from sv3d_jax.models.clip_vision import embed_image
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ImageEncoderConfig, ModelConfig, VAEConfig
from sv3d_jax.models.vae import decode, encode_moments
from sv3d_jax.models.video_unet import VideoUNet
from sv3d_jax.train.config import DiffusionConfig

Loss = Callable[[Params, Any, PRNGKeyArray], Scalar]
"""(params, batch, key) -> loss."""

KL_WEIGHT = 1e-6
CONTRAST_TEMPERATURE = 0.1


class OrbitBatch(NamedTuple):
    """Views of orbits, one input view each."""

    latents: Float[Array, "b f h w c"]  # encoder means of the views
    input_latents: Float[Array, "b h w c"]  # encoder means of the input views
    tokens: Float[Array, "b d"]  # image tokens of the input views
    polar_rad: Float[Array, "b f"]
    azimuth_rad: Float[Array, "b f"]  # relative to the input view
    frame_index: Float[Array, "b f"]  # place in the orbit
    cond_aug: Float[Array, "b"] | None = None  # noise level on the input views; None: model.cond_aug


def autoencoder_loss(config: VAEConfig) -> Loss:
    """L1 and squared error of pictures, L1 error of their finite differences, and a weak KL term on the latents."""

    def loss(params: Params, images: UInt8[Array, "n h w 3"], key: PRNGKeyArray) -> Scalar:
        pixels = to_pixels(images)
        mean, log_variance = encode_moments(params["vae_encoder"], config, pixels)
        latents = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        error = decode(params["vae_decoder"], config, latents) - pixels
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).sum((1, 2, 3)).mean()
        edges = (
            jnp.abs(error[:, 1:] - error[:, :-1]).mean() + jnp.abs(error[:, :, 1:] - error[:, :, :-1]).mean()
        )
        return jnp.abs(error).mean() + 2.0 * jnp.square(error).mean() + 0.5 * edges + KL_WEIGHT * kl

    return loss


def image_encoder_loss(config: ImageEncoderConfig) -> Loss:
    """InfoNCE (arXiv 1807.03748, equation 4) between two views of each object, in both directions."""

    def loss(params: Params, views: UInt8[Array, "n two h w 3"], key: PRNGKeyArray) -> Scalar:
        del key  # the loss is deterministic
        n = len(views)
        tokens = embed_image(params["image_tower"], config, to_pixels(views.reshape(2 * n, *views.shape[2:])))
        unit = (tokens * jax.lax.rsqrt(jnp.square(tokens).sum(-1, keepdims=True) + 1e-6)).reshape(n, 2, -1)
        scores = unit[:, 0] @ unit[:, 1].T / CONTRAST_TEMPERATURE
        own = jnp.arange(n)
        forth = optax.softmax_cross_entropy_with_integer_labels(scores, own)
        back = optax.softmax_cross_entropy_with_integer_labels(scores.T, own)
        # The UNet takes tokens without normalisation, so their mean square should be about 1.
        length = jnp.square(jnp.square(tokens).mean(-1) - 1.0)
        return (0.5 * (forth + back)).mean() + 0.1 * length.mean()

    return loss


def unet_loss(model: ModelConfig, config: DiffusionConfig, compute: Compute = Compute()) -> Loss:
    """Denoising loss at log-normal noise levels; token and conditioning latent are each dropped per video."""
    weighting = WEIGHTINGS[config.weighting]

    def loss(params: Params, batch: OrbitBatch, key: PRNGKeyArray) -> Scalar:
        level_key, noise_key, drop_key = jax.random.split(key, 3)
        videos, frames = batch.frame_index.shape
        drawn = (videos, 1) if config.levels == "video" else (videos, frames)
        sigma = log_normal_sigmas(jax.random.normal(level_key, drawn), config.p_mean, config.p_std)
        sigma = jnp.broadcast_to(sigma, (videos, frames))
        noise = jax.random.normal(noise_key, batch.latents.shape)
        dropped = jnp.array([[config.token_dropout], [config.latent_dropout]])
        keep_token, keep_latent = jax.random.uniform(drop_key, (2, videos)) >= dropped
        condition = drop_image(batch_conditioning(model, batch), keep_token, keep_latent)
        losses = video_losses(model, params, batch, condition, sigma, noise, weighting, compute)
        return (frame_weights(config, batch.azimuth_rad) * losses).mean()

    return loss


def video_losses(
    model: ModelConfig,
    params: Params,
    batch: OrbitBatch,
    condition: Conditioning,
    sigma: Float[Array, "b f"],
    noise: Float[Array, "b f h w c"],
    weighting: Callable[[Array], Array] = v_weighting,
    compute: Compute = Compute(),
) -> Float[Array, "b f"]:
    """Denoising loss of every frame; params holds the `unet` tree."""
    network = orbit_network(model, params["unet"], batch.frame_index, compute)
    latents = batch.latents * jnp.asarray(model.latent_factor)
    return denoising_loss(network, latents, noise, sigma, condition, weighting)


def frame_weights(config: DiffusionConfig, azimuth_rad: Float[Array, "b f"]) -> Float[Array, "b f"]:
    """Weights of the frames, smaller near the input view, of mean one in each video.

    SV3D weights frames by their distance from the input view but gives no formula. Here the weight is near_weight at
    azimuth 0 and rises with ((1 - cos azimuth) / 2)^near_power to 1 half way round, then divided by the video's mean.
    """
    distance = 0.5 * (1.0 - jnp.cos(azimuth_rad))
    weights = config.near_weight + (1.0 - config.near_weight) * distance**config.near_power
    return weights / jnp.maximum(weights.mean(-1, keepdims=True), 1e-6)


def orbit_network(
    model: ModelConfig, params: Params, frame_index: Float[Array, "b f"], compute: Compute = Compute()
) -> Network:
    """The UNet as a network for `denoise`, for frames with the given indices in the orbit that ends at the input view.

    A model whose orbits begin with the input view, as V3D's, is given the same frames in that order.
    """
    network = VideoUNet(model.unet, compute)
    begins_with_input = model.family.input_frame == "first"

    def run(x, c_noise, context, vector):
        index = frame_index
        if begins_with_input:
            num_frames = frame_index[:, -1:] + 1.0  # the last frame given is the last of the orbit
            index = (frame_index + 1.0) % num_frames
            x, c_noise, vector, index = (jnp.roll(leaf, 1, axis=1) for leaf in (x, c_noise, vector, index))
        output = network.apply({"params": params}, x, c_noise, context, vector, frame_index=index)
        return jnp.roll(output, -1, axis=1) if begins_with_input else output

    return run


def batch_conditioning(model: ModelConfig, batch: OrbitBatch) -> Conditioning:
    """The picture's token and latent, and the camera of every frame."""
    cond_aug = jnp.full(len(batch.polar_rad), model.cond_aug) if batch.cond_aug is None else batch.cond_aug
    cond_aug = jnp.broadcast_to(cond_aug[:, None], batch.polar_rad.shape)
    values = FrameValues(cond_aug, batch.polar_rad, batch.azimuth_rad)
    return orbit_conditioning(model, batch.tokens, batch.input_latents, values)


def drop_image(
    condition: Conditioning, keep_token: Float[Array, "b"], keep_latent: Float[Array, "b"]
) -> Conditioning:
    """Zero the token, or the conditioning latent, of whole videos; the vector stays, as it does in guidance."""
    return Conditioning(
        context=condition.context * keep_token[:, None, None],
        concat=condition.concat * keep_latent[:, None, None, None, None],
        vector=condition.vector,
    )


def to_pixels(images: UInt8[Array, "... 3"]) -> Float[Array, "... 3"]:
    """8-bit values as pixels in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def to_images(pixels: Float[Array, "... 3"]) -> UInt8[Array, "... 3"]:
    """Pixels in [-1, 1], clipped, as 8-bit values."""
    return jnp.round((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
