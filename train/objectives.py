"""The three things that are trained: what to initialise, minimise, feed and validate for each."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Params, PRNGKeyArray
from sv3d_jax.diffusion.denoiser import denoise
from sv3d_jax.errors import InputError
from sv3d_jax.models.clip_vision import init_tower
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.layers import Compute
from sv3d_jax.models.vae import decode, encode_moments, init_vae
from sv3d_jax.models.video_unet import init_unet
from sv3d_jax.progress import Progress
from sv3d_jax.train.config import EVALUATION_SEED, DataConfig, TrainConfig
from sv3d_jax.train.data.latents import EncodedOrbits, Encoder, encode_pool, gather_views, sample_views
from sv3d_jax.train.data.orbits import OrbitPool, render_objects, render_pool, training_orbit
from sv3d_jax.train.losses import (
    Loss,
    OrbitBatch,
    autoencoder_loss,
    orbit_conditioning,
    orbit_network,
    to_pixels,
    tower_loss,
    unet_loss,
    video_losses,
)
from sv3d_jax.train.samples import sheet_maker
from sv3d_jax.weights.hub import load_weights

Rows = Callable[[int], slice]
"""Which rows of a global batch of so many this process loads."""

Batches = Callable[[int, Rows], Iterator[tuple[int, Any]]]
"""(first step, rows) -> size of the global batch and this process's rows of it, for that step and all that follow."""

VALIDATION_OBJECTS = 32
VALIDATION_SIGMAS = (0.6, 2.0, 6.0, 30.0)


class Objective(NamedTuple):
    """One kind of training run."""

    model: ModelConfig
    fingerprint: str  # of the training data
    loss: Loss
    batches: Batches
    batch_images: Callable[[Any], int]
    validate: Callable[[Params], dict[str, float]]
    sheet: Callable[[Params], tuple[np.ndarray, float]] | None = None  # of a held-out orbit, and its PSNR


def make_objective(config: TrainConfig, progress: Progress) -> Objective:
    """What the settings name, with its data rendered and encoded."""
    model = read_model(config.model)
    pool = render_pool(config.data_dir or config.output / "data", config.data, progress)
    if config.objective == "autoencoder":
        return _autoencoder(config, model, pool)
    if config.objective == "tower":
        return _tower(config, model, pool)
    return _unet(config, model, pool, progress)


def read_model(name: str) -> ModelConfig:
    """The model of a name in configs/model, or of a file."""
    from importlib.resources import files

    path = Path(name) if name.endswith(".toml") else files("sv3d_jax.configs") / "model" / f"{name}.toml"
    if not path.is_file():
        raise InputError(f"there is no model {name}", hint="give a name in configs/model or a .toml file")
    return ModelConfig.from_toml(path.read_text(encoding="utf-8"))


def init_params(objective: str, model: ModelConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters of what an objective trains."""
    if objective == "autoencoder":
        return init_vae(model.vae, key)
    if objective == "tower":
        return {"image_tower": init_tower(model.tower, key)}
    return {"unet": init_unet(model.unet, key)}


def make_loss(config: TrainConfig, model: ModelConfig) -> Loss:
    """What an objective minimises."""
    if config.objective == "autoencoder":
        return autoencoder_loss(model.vae)
    if config.objective == "tower":
        return tower_loss(model.tower)
    compute = Compute(dtype=jnp.dtype(config.dtype), remat=config.remat)
    return unet_loss(model, config.diffusion, compute)


def _batches(
    batch: Callable[[int, Rows], tuple[int, Any]], first: int, rows: Rows
) -> Iterator[tuple[int, Any]]:
    """Each batch is a function of its step alone, so that a resumed run sees the same data."""
    return (batch(step, rows) for step in itertools.count(first))


def step_rng(config: TrainConfig, step: int) -> np.random.Generator:
    """Random numbers of the batch of a step."""
    return np.random.default_rng([config.seed, step])


def _autoencoder(config: TrainConfig, model: ModelConfig, pool: OrbitPool) -> Objective:
    def batch(step: int, rows: Rows) -> tuple[int, np.ndarray]:
        rng, count = step_rng(config, step), config.batch_size
        objects = rng.integers(0, config.data.objects, count)
        views = rng.integers(0, config.data.num_frames, count)
        return count, pool.images(objects[rows(count)], views[rows(count)])

    held_out = validation_images(config.data)[:, 0]

    @jax.jit
    def reconstruct(params):
        pixels = to_pixels(held_out)
        mean, _ = encode_moments(params["vae_encoder"], model.vae, pixels)
        return psnr(decode(params["vae_decoder"], model.vae, mean), pixels).mean()

    return Objective(
        model=model,
        fingerprint=pool.fingerprint(),
        loss=make_loss(config, model),
        batches=partial(_batches, batch),
        batch_images=len,
        validate=lambda params: {"val_psnr": float(reconstruct(params))},
    )


def _tower(config: TrainConfig, model: ModelConfig, pool: OrbitPool) -> Objective:
    def batch(step: int, rows: Rows) -> tuple[int, np.ndarray]:
        rng, count = step_rng(config, step), config.batch_size
        objects = rng.choice(config.data.objects, count, replace=False)[rows(count)]
        views = rng.integers(0, config.data.num_frames, (2, count))[:, rows(count)]
        return count, np.stack([pool.images(objects, view) for view in views], axis=1)

    held_out = validation_images(config.data)
    loss = make_loss(config, model)
    validate = jax.jit(lambda params: loss(params, held_out, jax.random.key(0)))
    return Objective(
        model=model,
        fingerprint=pool.fingerprint(),
        loss=loss,
        batches=partial(_batches, batch),
        batch_images=lambda views: 2 * len(views),
        validate=lambda params: {"val_loss": float(validate(params))},
    )


def _unet(config: TrainConfig, model: ModelConfig, pool: OrbitPool, progress: Progress) -> Objective:
    """The autoencoder and the tower are those of `config.weights`, and so is the scale of the latents."""
    trained, trained_model, _ = load_weights(config.weights, dtype="float32")
    model = dataclasses.replace(model, latent_factor=trained_model.latent_factor)
    encoder = Encoder(trained, model)
    encoded = encode_pool(config.data_dir or config.output / "data", pool, encoder, progress)
    validate, sheet = _unet_validation(model, config.data, encoder, trained["vae_decoder"])
    whole_from = round(config.max_steps * (1.0 - config.diffusion.full_orbit_share))

    def batch(step: int, rows: Rows) -> tuple[int, OrbitBatch]:
        whole = step >= whole_from
        frames = config.data.num_frames if whole else config.diffusion.frames_per_sample
        # About as many frames a step, and so as much noise in the gradient, whether orbits are whole or not.
        videos = config.batch_size
        if whole:
            videos = max(1, round(videos * config.diffusion.frames_per_sample / frames))
        return videos, sample_views(step_rng(config, step), encoded, videos, frames, rows(videos))

    return Objective(
        model=model,
        fingerprint=f"{pool.fingerprint()} encoded by {encoder.fingerprint()}",
        loss=make_loss(config, model),
        batches=partial(_batches, batch),
        batch_images=lambda views: views.frame_index.size,
        validate=validate,
        sheet=sheet,
    )


def _unet_validation(
    model: ModelConfig, data: DataConfig, encoder: Encoder, decoder: Params
) -> tuple[Callable[[Params], dict[str, float]], Callable[[Params], tuple[np.ndarray, float]]]:
    """Loss at four noise levels and PSNR of one step from pure noise, on whole orbits of held-out objects.

    And a sheet of the first of these orbits, sampled.
    """
    count = VALIDATION_OBJECTS // 2
    seeds = np.arange(EVALUATION_SEED, EVALUATION_SEED + count)
    orbits = [training_orbit(int(seed), data) for seed in seeds]
    images = render_objects(seeds, orbits, data.size)
    last = np.full(count, data.num_frames - 1)
    places = np.tile(np.arange(data.num_frames), (count, 1))
    batch = gather_views(EncodedOrbits(*encoder(images), orbits), np.arange(count), last, places)
    noise = jax.random.normal(jax.random.key(1), batch.latents.shape)
    shown = {"first": 0, "opposite": data.num_frames // 2, "last": data.num_frames - 2}

    @jax.jit
    def losses(params, batch, sigma):
        levels = jnp.full(count, sigma)
        return video_losses(model, params, batch, orbit_conditioning(model, batch), levels, noise).mean()

    @jax.jit
    def one_step(params, decoder, batch, pixels):
        network = orbit_network(model, params["unet"], batch.frame_index)
        sigma = jnp.full(batch.latents.shape[:2], model.sigma_max)
        latents = denoise(network, noise * model.sigma_max, sigma, orbit_conditioning(model, batch))
        latents = latents[:, list(shown.values())] / jnp.asarray(model.latent_factor)
        decoded = decode(decoder, model.vae, latents.reshape(-1, *latents.shape[2:]))
        return psnr(decoded.reshape(pixels.shape), pixels).mean(0)

    pixels = to_pixels(images[:, list(shown.values())])

    def validate(params: Params) -> dict[str, float]:
        report = {f"val_loss_{sigma:g}": float(losses(params, batch, sigma)) for sigma in VALIDATION_SIGMAS}
        values = one_step(params, decoder, batch, pixels)
        return report | {f"val_psnr_{name}": float(v) for name, v in zip(shown, values, strict=True)}

    first = jax.tree.map(lambda leaf: leaf[:1], batch)
    return validate, sheet_maker(model, decoder, first, images[0])


def validation_images(data: DataConfig) -> np.ndarray:
    """Pictures uint8 `n 2 h w 3`: two views of objects that are never trained on."""
    seeds = np.arange(EVALUATION_SEED, EVALUATION_SEED + VALIDATION_OBJECTS)
    images = render_objects(seeds, [training_orbit(int(seed), data) for seed in seeds], data.size)
    return images[:, [0, data.num_frames // 3]]


def psnr(pixels: Array, target: Array) -> Array:
    """Peak signal to noise ratio in dB of each picture in [-1, 1], as it is shown: clipped."""
    squared = jnp.square((jnp.clip(pixels, -1.0, 1.0) - target) / 2.0)
    return -10.0 * jnp.log10(jnp.maximum(squared.mean((-3, -2, -1)), 1e-10))
