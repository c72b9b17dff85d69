"""The three training objectives: initial parameters, loss, batches and validation of each."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Params, PRNGKeyArray, UInt8
from sv3d_jax.diffusion.denoiser import denoise
from sv3d_jax.errors import InputError
from sv3d_jax.models.clip_vision import init_image_encoder
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.vae import decode, encode_moments, init_vae
from sv3d_jax.models.video_unet import init_unet
from sv3d_jax.parallel.devices import whole_on_host
from sv3d_jax.plan import checked_size
from sv3d_jax.precision import WORK_TRAINING, compute_in
from sv3d_jax.progress import Progress
from sv3d_jax.train.config import EVALUATION_SEED, DataConfig, TrainConfig
from sv3d_jax.train.data.latents import (
    EncodedOrbits,
    OrbitEncoder,
    ViewIndices,
    draw_views,
    encode_pool,
    gather_views,
    sample_shape,
    whole_orbits,
)
from sv3d_jax.train.data.orbits import OrbitAngles, OrbitPool, render_objects, render_pool, training_orbit
from sv3d_jax.train.data.shards import OrbitShards, Rows, ShardBatches, ShardSampler, check_encoder
from sv3d_jax.train.losses import (
    Loss,
    OrbitBatch,
    autoencoder_loss,
    batch_conditioning,
    image_encoder_loss,
    orbit_network,
    to_images,
    to_pixels,
    unet_loss,
    video_losses,
)
from sv3d_jax.train.samples import sheet_maker
from sv3d_jax.weights.hub import load_weights

Batches = Callable[[int, Rows], Iterator[tuple[int, Any]]]
"""(first step, rows) -> size of the global batch and this process's rows of it, for every step from the first on."""

VALIDATION_OBJECTS = 32
VALIDATION_SIGMAS = (0.6, 2.0, 6.0, 30.0)
NOISE_STREAM = 2  # random stream of the noise on input pictures, separate from the choice of views


class Objective(NamedTuple):
    """What a training run needs to know about its objective."""

    model: ModelConfig
    fingerprint: str  # of the training data
    loss: Loss
    batches: Batches
    batch_images: Callable[[Any], int]
    validate: Callable[[Params], dict[str, float]]
    data_report: Callable[[], dict[str, Any]] = dict  # records read and skipped so far
    sheet: Callable[[Params], tuple[np.ndarray, float]] | None = None  # of a held-out orbit, and its PSNR


def make_objective(config: TrainConfig, progress: Progress) -> Objective:
    """The objective of the settings; renders and encodes its data if needed."""
    model = read_model(config.model)
    if config.data.shards:
        return _packed_unet(config, model, config.data.shards, progress)
    check_picture_size(config, model)
    folder, data = config.data_dir or config.output / "data", config.data
    progress.note(
        f"no --data.shards: {data.objects} procedural objects ({data.family}) are rendered into {folder}"
    )
    pool = render_pool(folder, data, progress)
    if config.objective == "autoencoder":
        return _autoencoder(config, model, pool)
    if config.objective == "tower":
        return _image_encoder(config, model, pool)
    return _unet(config, model, pool, progress)


def read_model(name: str) -> ModelConfig:
    """The model configuration with a name in configs/model, or in a .toml file.

    Raises InputError if there is no such model, WeightsError if the file is not a valid model configuration.
    """
    from importlib.resources import files

    path = Path(name) if name.endswith(".toml") else files("sv3d_jax.configs") / "model" / f"{name}.toml"
    if not path.is_file():
        raise InputError(f"there is no model {name}", hint="give a name in configs/model or a .toml file")
    return ModelConfig.from_file(path)  # type: ignore[arg-type]


def check_picture_size(config: TrainConfig, model: ModelConfig) -> None:
    """Raise InputError for pictures of a size that the model's networks cannot halve."""
    if not config.data.shards:
        checked_size(model, config.data.size, "--data.size")


def init_params(objective: str, model: ModelConfig, key: PRNGKeyArray) -> Params:
    """Random initial parameters of the part of a model that an objective trains."""
    if objective == "autoencoder":
        return init_vae(model.vae, key)
    if objective == "tower":
        return {"image_tower": init_image_encoder(model.image_encoder, key)}
    return {"unet": init_unet(model.unet, key)}


def make_loss(config: TrainConfig, model: ModelConfig, compute: Compute | None = None) -> Loss:
    """The loss of an objective; by default computed as the config's dtype is on this device."""
    if config.objective == "autoencoder":
        return autoencoder_loss(model.vae)
    if config.objective == "tower":
        return image_encoder_loss(model.image_encoder)
    compute = compute or compute_in(config.dtype, WORK_TRAINING, remat=config.remat)
    return unet_loss(model, config.diffusion, compute)


def _batches(
    batch: Callable[[int, Rows], tuple[int, Any]], first: int, rows: Rows
) -> Iterator[tuple[int, Any]]:
    """Batches from step `first` on; each depends on its step alone, so a resumed run sees the same data."""
    return (batch(step, rows) for step in itertools.count(first))


def step_rng(config: TrainConfig, step: int) -> np.random.Generator:
    """Random generator for the batch of a step."""
    return np.random.default_rng([config.seed, step])


def _autoencoder(config: TrainConfig, model: ModelConfig, pool: OrbitPool) -> Objective:
    def batch(step: int, rows: Rows) -> tuple[int, np.ndarray]:
        rng, count = step_rng(config, step), config.batch_size
        orbits = rng.integers(0, len(pool.orbits), count)
        views = rng.integers(0, config.data.num_frames, count)
        return count, pool.images(orbits[rows(count)], views[rows(count)])

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


def _image_encoder(config: TrainConfig, model: ModelConfig, pool: OrbitPool) -> Objective:
    def batch(step: int, rows: Rows) -> tuple[int, np.ndarray]:
        rng, count = step_rng(config, step), config.batch_size
        objects = rng.choice(config.data.objects, count, replace=False)[rows(count)]
        views = rng.integers(0, config.data.num_frames, (2, count))[:, rows(count)]
        first_orbits = objects * config.data.orbits_per_object
        return count, np.stack([pool.images(first_orbits, view) for view in views], axis=1)

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
    """Autoencoder, image encoder and scale of the latents come from `config.weights`."""
    trained, trained_model, _ = load_weights(config.weights, dtype="float32")
    model = dataclasses.replace(model, latent_factor=trained_model.latent_factor)
    encoder = OrbitEncoder(trained, model)
    encoded = encode_pool(config.data_dir or config.output / "data", pool, encoder, progress)
    validate, sheet = _unet_validation(model, *_held_out(config.data, encoder), trained["vae_decoder"])

    def batch(step: int, rows: Rows) -> tuple[int, OrbitBatch]:
        videos, frames = sample_shape(config, step)
        drawn = draw_views(
            step_rng(config, step),
            len(encoded.orbits),
            config.data.num_frames,
            videos,
            frames,
            config.data.any_input,
        )
        local = rows(videos)
        views = ViewIndices(*(part[local] for part in drawn))
        batch = gather_views(encoded, views)
        if (mean := config.diffusion.cond_aug_mean) is None:
            return videos, batch
        images = pool.images(views.orbits, views.inputs)
        seeds = [[config.seed, step, row] for row in range(videos)[local]]
        return videos, noisy_inputs(batch, images, seeds, encoder, mean, config.diffusion.cond_aug_std)

    return Objective(
        model=model,
        fingerprint=f"{pool.fingerprint()} encoded by {encoder.fingerprint()}",
        loss=make_loss(config, model),
        batches=partial(_batches, batch),
        batch_images=lambda views: views.frame_index.size,
        validate=validate,
        sheet=sheet,
    )


def _packed_unet(config: TrainConfig, model: ModelConfig, directory: Path, progress: Progress) -> Objective:
    """As `_unet`, on packed orbits; the validation targets are the decoded latents, as shards hold no pictures."""
    trained, trained_model, _ = load_weights(config.weights, dtype="float32")
    model = dataclasses.replace(model, latent_factor=trained_model.latent_factor)
    shards = OrbitShards(directory)
    check_encoder(shards, OrbitEncoder(trained, model).fingerprint())
    sampler = ShardSampler(
        shards,
        partial(sample_shape, config),
        num_frames=config.data.num_frames,
        batch_size=config.batch_size,
        seed=config.seed,
        any_input=config.data.any_input,
    )
    source = ShardBatches(sampler, config.data_workers, progress)
    held_out = source.validation()
    images = _decoded(model, trained["vae_decoder"], held_out.latents)
    validate, sheet = _unet_validation(model, held_out, images, trained["vae_decoder"])
    return Objective(
        model=model,
        fingerprint=source.fingerprint,
        loss=make_loss(config, model),
        batches=source.batches,
        batch_images=lambda views: views.frame_index.size,
        validate=validate,
        sheet=sheet,
        data_report=source.report,
    )


def _decoded(
    model: ModelConfig, decoder: Params, latents: Float[np.ndarray, "n f h w c"]
) -> UInt8[np.ndarray, "n f h w 3"]:
    """Pictures of unscaled latents, one at a time on the device."""
    one = jax.jit(lambda decoder, frame: to_images(decode(decoder, model.vae, frame[None])[0]))
    pictures = np.stack([one(decoder, frame) for frame in latents.reshape(-1, *latents.shape[2:])])
    return pictures.reshape(*latents.shape[:2], *pictures.shape[1:])


def noisy_inputs(
    batch: OrbitBatch,
    images: np.ndarray,
    seeds: Sequence[Sequence[int]],
    encoder: OrbitEncoder,
    mean: float,
    std: float,
) -> OrbitBatch:
    """The batch with noise of log-normal level on its input pictures uint8 `b h w 3`; one seed per row."""
    rngs = [np.random.default_rng([NOISE_STREAM, *seed]) for seed in seeds]
    levels = [np.exp(mean + std * rng.standard_normal()) for rng in rngs]
    cond_aug = np.array(levels, np.float32)
    noise = np.stack([rng.standard_normal(images.shape[1:], np.float32) for rng in rngs])
    latents = encoder.noisy_latents(images, cond_aug[:, None, None, None] * noise)
    return batch._replace(input_latents=latents, cond_aug=cond_aug)


def _held_out(data: DataConfig, encoder: OrbitEncoder) -> tuple[OrbitBatch, UInt8[np.ndarray, "n f h w 3"]]:
    """Whole held-out orbits, and their pictures."""
    seeds, orbits = validation_orbits(data, VALIDATION_OBJECTS // 2)
    images = render_objects(seeds, orbits, data.size, data.family)
    return whole_orbits(EncodedOrbits(*encoder(images), orbits)), images


def _unet_validation(
    model: ModelConfig, batch: OrbitBatch, images: UInt8[np.ndarray, "n f h w 3"], decoder: Params
) -> tuple[Callable[[Params], dict[str, float]], Callable[[Params], tuple[np.ndarray, float]]]:
    """Two functions of the weights: validation metrics on whole orbits, and a sheet of the first orbit, sampled.

    The metrics are the loss at four noise levels, with their mean `val_loss`, and the PSNR of one denoising step from
    pure noise, with its mean `val_psnr` over all frames except the input view.
    """
    num_frames = batch.latents.shape[1]
    noise = jax.random.normal(jax.random.key(1), batch.latents.shape)
    # A program cannot combine arrays of one process with arrays sharded over all; numpy arrays can go with either.
    noise, pixels, decoder = jax.device_get((noise, to_pixels(images), decoder))
    shown = {"first": 0, "opposite": num_frames // 2, "last": num_frames - 2}

    def judge(params, decoder, video):
        """Losses at the levels, and PSNR of every frame, of one orbit."""
        batch, noise, pixels = jax.tree.map(lambda leaf: leaf[None], video)
        condition = batch_conditioning(model, batch)

        def loss(sigma):
            levels = jnp.full(noise.shape[:2], sigma)
            return video_losses(model, params, batch, condition, levels, noise).mean()

        network = orbit_network(model, params["unet"], batch.frame_index)
        sigma = jnp.full(noise.shape[:2], model.sigma_max)
        latents = denoise(network, noise * model.sigma_max, sigma, condition)[0] / jnp.asarray(
            model.latent_factor
        )
        losses = jax.lax.map(loss, jnp.array(VALIDATION_SIGMAS))
        return losses, psnr(decode(decoder, model.vae, latents), pixels[0])

    # Sequentially: all orbits at once would need many times the memory of a training step.
    judge_all = jax.jit(
        lambda params, decoder, videos: jax.tree.map(
            lambda values: values.mean(0), jax.lax.map(partial(judge, params, decoder), videos)
        )
    )

    def validate(params: Params) -> dict[str, float]:
        losses, values = whole_on_host(judge_all(params, decoder, (batch, noise, pixels)))
        report = {"val_loss": losses.mean(), "val_psnr": values[:-1].mean()}
        report |= {f"val_loss_{sigma:g}": loss for sigma, loss in zip(VALIDATION_SIGMAS, losses, strict=True)}
        report |= {f"val_psnr_{name}": values[frame] for name, frame in shown.items()}
        return {name: float(value) for name, value in report.items()}

    first = jax.tree.map(lambda leaf: leaf[:1], batch)
    return validate, sheet_maker(model, decoder, first, images[0])


def validation_orbits(data: DataConfig, count: int) -> tuple[list[int], list[OrbitAngles]]:
    """Seeds and cameras held out of training: orbits of other objects, or additional orbits of the same objects."""
    if data.validation == "objects":
        seeds = [EVALUATION_SEED + index for index in range(count)]
        return seeds, [training_orbit(seed, data) for seed in seeds]
    places = [divmod(index, data.objects) for index in range(count)]
    seeds = [data.first_seed + place for _, place in places]
    numbers = [data.orbits_per_object + further for further, _ in places]
    return seeds, [training_orbit(s, data, n) for s, n in zip(seeds, numbers, strict=True)]


def validation_images(data: DataConfig) -> np.ndarray:
    """Pictures uint8 `n 2 h w 3`: two views of held-out objects."""
    images = render_objects(*validation_orbits(data, VALIDATION_OBJECTS), data.size, data.family)
    return images[:, [0, data.num_frames // 3]]


def psnr(pixels: Array, target: Array) -> Array:
    """Peak signal to noise ratio in dB of each picture in [-1, 1], after clipping to that range."""
    squared = jnp.square((jnp.clip(pixels, -1.0, 1.0) - target) / 2.0)
    return -10.0 * jnp.log10(jnp.maximum(squared.mean((-3, -2, -1)), 1e-10))
