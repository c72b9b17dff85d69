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
from sv3d_jax.models.vae import decode, encode_moments, init_vae
from sv3d_jax.models.video_unet import init_unet
from sv3d_jax.progress import Progress
from sv3d_jax.train.config import EVALUATION_SEED, DataConfig, TrainConfig
from sv3d_jax.train.data.latents import (
    EncodedOrbits,
    Encoder,
    encode_pool,
    gather_views,
    sample_shape,
    sample_views,
)
from sv3d_jax.train.data.orbits import OrbitPool, render_objects, render_pool, training_orbit
from sv3d_jax.train.data.shards import OrbitShards, ShardBatches, check_encoder
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
from sv3d_jax.weights.hub import load_weights

VALIDATION_OBJECTS = 32
VALIDATION_SIGMAS = (0.6, 2.0, 6.0, 30.0)


class Objective(NamedTuple):
    """One kind of training run."""

    model: ModelConfig
    fingerprint: str  # of the training data
    loss: Loss
    batches: Callable[[int, slice], Iterator[Any]]  # of the steps from one on; some rows of each global batch
    batch_images: Callable[[Any], int]
    validate: Callable[[Params], dict[str, float]]


def make_objective(config: TrainConfig, progress: Progress) -> Objective:
    """What the settings name, with its data rendered and encoded."""
    model = read_model(config.model)
    if config.data.shards:
        return _packed_unet(config, model, config.data.shards, progress)
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


def _batches(batch: Callable[[int, slice], Any], first: int, rows: slice) -> Iterator[Any]:
    """Each batch is a function of its step alone, so that a resumed run sees the same data."""
    return (batch(step, rows) for step in itertools.count(first))


def step_rng(config: TrainConfig, step: int) -> np.random.Generator:
    """Random numbers of the batch of a step."""
    return np.random.default_rng([config.seed, step])


def _autoencoder(config: TrainConfig, model: ModelConfig, pool: OrbitPool) -> Objective:
    def batch(step: int, rows: slice) -> np.ndarray:
        rng = step_rng(config, step)
        objects = rng.integers(0, config.data.objects, config.batch_size)
        views = rng.integers(0, config.data.num_frames, config.batch_size)
        return pool.images(objects[rows], views[rows])

    held_out = validation_images(config.data)[:, 0]

    @jax.jit
    def reconstruct(params):
        pixels = to_pixels(held_out)
        mean, _ = encode_moments(params["vae_encoder"], model.vae, pixels)
        return psnr(decode(params["vae_decoder"], model.vae, mean), pixels).mean()

    return Objective(
        model=model,
        fingerprint=pool.fingerprint(),
        loss=autoencoder_loss(model.vae),
        batches=partial(_batches, batch),
        batch_images=len,
        validate=lambda params: {"val_psnr": float(reconstruct(params))},
    )


def _tower(config: TrainConfig, model: ModelConfig, pool: OrbitPool) -> Objective:
    def batch(step: int, rows: slice) -> np.ndarray:
        rng = step_rng(config, step)
        objects = rng.choice(config.data.objects, config.batch_size, replace=False)[rows]
        views = rng.integers(0, config.data.num_frames, (2, config.batch_size))[:, rows]
        return np.stack([pool.images(objects, view) for view in views], axis=1)

    held_out = validation_images(config.data)
    loss = tower_loss(model.tower)
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

    def batch(step: int, rows: slice) -> OrbitBatch:
        return sample_views(step_rng(config, step), encoded, *sample_shape(config, step), rows)

    return Objective(
        model=model,
        fingerprint=f"{pool.fingerprint()} encoded by {encoder.fingerprint()}",
        loss=unet_loss(model, config.diffusion),
        batches=partial(_batches, batch),
        batch_images=lambda views: views.frame_index.size,
        validate=_unet_validation(model, *_held_out_figures(config.data, encoder), trained["vae_decoder"]),
    )


def _packed_unet(config: TrainConfig, model: ModelConfig, directory: Path, progress: Progress) -> Objective:
    """As `_unet`, on packed orbits; they are validated against what the decoder makes of their latents."""
    trained, trained_model, _ = load_weights(config.weights, dtype="float32")
    model = dataclasses.replace(model, latent_factor=trained_model.latent_factor)
    shards = OrbitShards(directory)
    check_encoder(shards, Encoder(trained, model).fingerprint())
    source = ShardBatches(
        shards,
        partial(sample_shape, config),
        num_frames=config.data.num_frames,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.data_workers,
        progress=progress,
    )
    return Objective(
        model=model,
        fingerprint=source.fingerprint,
        loss=unet_loss(model, config.diffusion),
        batches=source.batches,
        batch_images=lambda views: views.frame_index.size,
        validate=_unet_validation(model, source.validation(), None, trained["vae_decoder"]),
    )


def _held_out_figures(data: DataConfig, encoder: Encoder) -> tuple[OrbitBatch, Array]:
    """Whole orbits of figures that are never trained on, and their pixels."""
    count = VALIDATION_OBJECTS // 2
    seeds = np.arange(EVALUATION_SEED, EVALUATION_SEED + count)
    orbits = [training_orbit(int(seed), data) for seed in seeds]
    images = render_objects(seeds, orbits, data.size)
    last = np.full(count, data.num_frames - 1)
    places = np.tile(np.arange(data.num_frames), (count, 1))
    batch = gather_views(EncodedOrbits(*encoder(images), orbits), np.arange(count), last, places)
    return batch, to_pixels(images)


def _unet_validation(
    model: ModelConfig, batch: OrbitBatch, pixels: Array | None, decoder: Params
) -> Callable[[Params], dict[str, float]]:
    """Loss at four noise levels and PSNR of one step from pure noise, on whole orbits of held-out objects.

    Without pixels, the truth is what the decoder makes of the latents.
    """
    count, num_frames = batch.latents.shape[:2]
    noise = jax.random.normal(jax.random.key(1), batch.latents.shape)
    shown = {"first": 0, "opposite": num_frames // 2, "last": num_frames - 2}
    places = np.array(list(shown.values()))

    @jax.jit
    def decoded(decoder, latents):
        frames = decode(decoder, model.vae, latents.reshape(-1, *latents.shape[2:]))
        return frames.reshape(*latents.shape[:2], *frames.shape[1:])

    truth = decoded(decoder, batch.latents[:, places]) if pixels is None else pixels[:, places]

    @jax.jit
    def losses(params, batch, sigma):
        levels = jnp.full(count, sigma)
        return video_losses(model, params, batch, orbit_conditioning(model, batch), levels, noise).mean()

    @jax.jit
    def one_step(params, decoder, batch, truth):
        network = orbit_network(model, params["unet"], batch.frame_index)
        sigma = jnp.full(batch.latents.shape[:2], model.sigma_max)
        latents = denoise(network, noise * model.sigma_max, sigma, orbit_conditioning(model, batch))
        latents = latents[:, places] / jnp.asarray(model.latent_factor)
        return psnr(decoded(decoder, latents), truth).mean(0)

    def validate(params: Params) -> dict[str, float]:
        report = {f"val_loss_{sigma:g}": float(losses(params, batch, sigma)) for sigma in VALIDATION_SIGMAS}
        values = one_step(params, decoder, batch, truth)
        return report | {f"val_psnr_{name}": float(v) for name, v in zip(shown, values, strict=True)}

    return validate


def validation_images(data: DataConfig) -> np.ndarray:
    """Pictures uint8 `n 2 h w 3`: two views of objects that are never trained on."""
    seeds = np.arange(EVALUATION_SEED, EVALUATION_SEED + VALIDATION_OBJECTS)
    images = render_objects(seeds, [training_orbit(int(seed), data) for seed in seeds], data.size)
    return images[:, [0, data.num_frames // 3]]


def psnr(pixels: Array, target: Array) -> Array:
    """Peak signal to noise ratio in dB of each picture in [-1, 1], as it is shown: clipped."""
    squared = jnp.square((jnp.clip(pixels, -1.0, 1.0) - target) / 2.0)
    return -10.0 * jnp.log10(jnp.maximum(squared.mean((-3, -2, -1)), 1e-10))
