"""Whole orbits sampled from the model: latents, and contact sheets of their pictures above the true views."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Params, UInt8
from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.diffusion.denoiser import guided_denoiser
from sv3d_jax.diffusion.guidance import guidance_scale
from sv3d_jax.diffusion.sampler import sample
from sv3d_jax.diffusion.schedule import model_sigmas
from sv3d_jax.io.video import contact_sheet, frame_labels
from sv3d_jax.metrics.images import psnr
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.vae import decode
from sv3d_jax.parallel.devices import whole_on_host
from sv3d_jax.train.losses import OrbitBatch, batch_conditioning, orbit_network, to_images

NOISE_SEED = 2  # every sheet of a run starts from the same noise, so that sheets can be compared


def sample_latents(
    model: ModelConfig,
    params: Params,
    batch: OrbitBatch,
    noise: Float[Array, "b f h w c"],
    sampling: SamplingConfig = SamplingConfig(),
) -> Float[Array, "b f h w c"]:
    """Guided samples of the orbits of a batch; params holds the `unet` tree."""
    sampling = sampling.resolve(model)
    network = orbit_network(model, params["unet"], jnp.concatenate([batch.frame_index] * 2))
    scale = guidance_scale(sampling.guidance, noise.shape[1], sampling.cfg_min, sampling.cfg_max)
    if model.family.input_frame == "first":
        scale = jnp.roll(scale, -1)  # a batch has the input view last, whatever the model's order
    denoiser = guided_denoiser(network, batch_conditioning(model, batch), scale)
    return sample(denoiser, noise, model_sigmas(model, sampling.num_steps), sampling)


def sheet_maker(
    model: ModelConfig, decoder: Params, orbit: OrbitBatch, truth: UInt8[np.ndarray, "f h w 3"]
) -> Callable[[Params], tuple[np.ndarray, float]]:
    """A function from the UNet's weights to a sheet of one orbit, sampled above true views, and its PSNR in dB.

    `orbit` is a batch of one whose last frame is the input view; the PSNR leaves that frame out.
    """
    noise = np.asarray(jax.random.normal(jax.random.key(NOISE_SEED), orbit.latents.shape))
    labels = frame_labels(
        np.rad2deg(np.asarray(orbit.azimuth_rad[0])), 90.0 - np.rad2deg(np.asarray(orbit.polar_rad[0]))
    )

    @jax.jit
    def frames(params, decoder):
        latents = sample_latents(model, params, orbit, noise)[0]
        latents = latents / jnp.asarray(model.latent_factor)
        # One frame at a time: a decoder at full size needs gigabytes for each.
        return to_images(jax.lax.map(lambda frame: decode(decoder, model.vae, frame[None])[0], latents))

    def make(params: Params) -> tuple[np.ndarray, float]:
        sampled = whole_on_host(frames(params, decoder))
        score = psnr(sampled[:-1] / np.float32(255), truth[:-1] / np.float32(255)).mean()
        return contact_sheet(np.concatenate([sampled, truth], axis=1), labels), float(score)

    return make
