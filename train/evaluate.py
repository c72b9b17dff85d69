"""Quality of a model on held-out figures: sampled orbits against rendered ones, and against trivial baselines."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Params
from sv3d_jax.cameras.orbit import static_azimuths_deg
from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.diffusion.denoiser import denoise
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.vae import decode
from sv3d_jax.progress import Progress
from sv3d_jax.train.config import EVALUATION_SEED, DataConfig
from sv3d_jax.train.data.latents import EncodedOrbits, OrbitEncoder, whole_orbits
from sv3d_jax.train.data.orbits import OrbitAngles, render_objects
from sv3d_jax.train.losses import OrbitBatch, batch_conditioning, orbit_network, to_pixels
from sv3d_jax.train.objectives import psnr
from sv3d_jax.train.samples import sample_latents

BATCH = 8
RETRIEVAL_OBJECTS = 24
WRONG_AZIMUTH_DEG, WRONG_ELEVATION_DEG = 90.0, 20.0
# What a model trained on a CPU must reach. `..._over_baseline`: dB above the better of two trivial
# baselines, a copy of the input view and the mean image.
MUST = {
    "autoencoder": 25.0,
    "one_step_over_baseline": 6.0,
    "sampled_over_baseline": 5.0,
    "opposite_view": 16.5,
    "direction_gap": 4.0,
    "reversed_pose_costs": 3.5,
    "own_object": 0.95,
    "right_frame": 0.85,
}


class HeldOut(NamedTuple):
    """Orbits of objects that are not in the training data; half are clockwise, each at one elevation."""

    images: np.ndarray  # uint8 n f h w 3
    orbits: list[OrbitAngles]


def held_out_orbits(count: int, num_frames: int, size: int) -> HeldOut:
    """Orbits of even steps from a random azimuth, each at one random elevation within the training range."""
    data = DataConfig()
    rng = np.random.default_rng(EVALUATION_SEED)
    orbits = [
        OrbitAngles(
            (rng.uniform(0.0, 360.0) + direction * static_azimuths_deg(num_frames)) % 360.0,
            np.full(num_frames, rng.uniform(data.elevation_min_deg, data.elevation_max_deg)),
        )
        for direction in np.resize([1.0, -1.0], count)
    ]
    seeds = np.arange(EVALUATION_SEED, EVALUATION_SEED + count)
    parts = [
        render_objects(seeds[i : i + BATCH], orbits[i : i + BATCH], size) for i in range(0, count, BATCH)
    ]
    return HeldOut(np.concatenate(parts), orbits)


def evaluate(
    params: Params, model: ModelConfig, held_out: HeldOut, num_steps: int, progress: Progress
) -> tuple[dict[str, float], np.ndarray]:
    """The metrics in `MUST` and others, and the sampled frames, uint8 (n f h w 3).

    PSNR is averaged over all frames except the input view. Raises ValueError if the number of objects is not a
    multiple of `BATCH`.
    """
    images, orbits = held_out
    count = len(images)
    size = min(BATCH, count)
    if count % size:
        raise ValueError(f"the number of objects must be a multiple of {BATCH}, got {count}")
    truth = np.asarray(to_pixels(images))
    whole = whole_orbits(EncodedOrbits(*OrbitEncoder(params, model)(images), orbits))
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i : i + size], whole) for i in range(0, count, size)]
    key = jax.random.key(0)

    def run(name: str, generate, change=lambda batch: batch) -> np.ndarray:
        progress.stage(name, total=len(batches))
        parts = []
        for i, batch in enumerate(batches):
            noise = jax.random.normal(jax.random.fold_in(key, i), batch.latents.shape)
            parts.append(np.asarray(generate(params, change(batch), noise)))
            progress.advance()
        return np.concatenate(parts)

    one_step = jax.jit(partial(_one_step, model))
    sampled_orbit = jax.jit(partial(_sampled, model, num_steps))
    direct = run("one step", one_step)
    sampled = run("sample", sampled_orbit)
    reconstructed = run("autoencoder", jax.jit(partial(_reconstruct, model)))
    wrong_cameras = {
        "reversed_pose_costs": run("reversed pose", one_step, _reverse),
        "azimuth_plus_90_costs": run("azimuth + 90", one_step, _turn),
        "wrong_elevation_costs": run("wrong elevation", one_step, _raise),
    }
    report = _measures(truth, direct, sampled, reconstructed, wrong_cameras)
    return report, np.round((np.clip(sampled, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def _measures(
    truth: np.ndarray,
    direct: np.ndarray,
    sampled: np.ndarray,
    reconstructed: np.ndarray,
    wrong_cameras: dict[str, np.ndarray],
) -> dict[str, float]:
    """All metrics of pictures (n f h w 3) in [-1, 1]; `wrong_cameras` are one-step results given a wrong camera.

    A cost is the loss of PSNR, in dB, of the one-step result under the wrong camera.
    """
    views = truth.shape[1] - 1

    def score(pictures, frames=slice(0, views)) -> float:
        return float(psnr(pictures[:, frames], truth[:, frames]).mean())

    copy = score(np.broadcast_to(truth[:, -1:], truth.shape))
    mean = score(np.broadcast_to(truth[:, :views].mean((0, 1)), truth.shape))
    reversed_truth = np.concatenate([truth[:, :views][:, ::-1], truth[:, views:]], axis=1)
    frame = truth.shape[1] // 2
    return {
        "copy": copy,
        "mean_image": mean,
        "autoencoder": score(reconstructed),
        "one_step": score(direct),
        "sampled": score(sampled),
        "one_step_over_baseline": score(direct) - max(copy, mean),
        "sampled_over_baseline": score(sampled) - max(copy, mean),
        "opposite_view": score(sampled, slice(frame, frame + 1)),
        "first_view": score(sampled, slice(0, 1)),
        "last_view": score(sampled, slice(views - 1, views)),
        "direction_gap": score(sampled) - float(psnr(sampled[:, :views], reversed_truth[:, :views]).mean()),
        **{name: score(direct) - score(pictures) for name, pictures in wrong_cameras.items()},
        "own_object": own_object(sampled[:RETRIEVAL_OBJECTS], truth[:RETRIEVAL_OBJECTS]),
        "right_frame": right_frame(sampled[:, :views], truth[:, :views]),
    }


def own_object(sampled: np.ndarray, truth: np.ndarray) -> float:
    """Share of sampled frames, without the input view, whose nearest true frame of that index is their own object's."""
    frames = truth.shape[1] - 1
    difference = sampled[:, None, :frames] - truth[None, :, :frames]
    nearest = np.square(difference).mean((-3, -2, -1)).argmin(1)
    return float((nearest == np.arange(len(truth))[:, None]).mean())


def right_frame(sampled: np.ndarray, truth: np.ndarray) -> float:
    """Share of sampled frames whose nearest true frame of the object has the same index or a neighbouring one."""
    count = truth.shape[1]
    errors = np.stack(
        [np.square(s[:, None] - t[None]).mean((-3, -2, -1)) for s, t in zip(sampled, truth, strict=True)]
    )
    distance = np.abs(errors.argmin(2) - np.arange(count))
    return float((distance <= 1).mean())


def write_contact_sheet(path: Path, sampled: np.ndarray, truth: np.ndarray, objects: int = 8) -> None:
    """Write a PNG with two rows per object, sampled above true, of every second frame; last is the input view."""
    from sv3d_jax.io.images import write_png

    shown = [*range(0, truth.shape[1] - 1, 2), truth.shape[1] - 1]
    rows = [np.concatenate(orbit[shown], axis=1) for i in range(objects) for orbit in (sampled[i], truth[i])]
    write_png(path, np.concatenate(rows))


def _one_step(model: ModelConfig, params: Params, batch: OrbitBatch, noise: Array) -> Array:
    """The orbit that one denoiser call predicts from pure noise, at sigma_max."""
    network = orbit_network(model, params["unet"], batch.frame_index)
    sigma = jnp.full(noise.shape[:2], model.sigma_max)
    return _pictures(
        model, params, denoise(network, noise * model.sigma_max, sigma, batch_conditioning(model, batch))
    )


def _sampled(model: ModelConfig, num_steps: int, params: Params, batch: OrbitBatch, noise: Array) -> Array:
    return _pictures(
        model, params, sample_latents(model, params, batch, noise, SamplingConfig(num_steps=num_steps))
    )


def _reconstruct(model: ModelConfig, params: Params, batch: OrbitBatch, noise: Array) -> Array:
    """The true views, encoded and decoded: an upper bound for sampled ones."""
    del noise
    return _pictures(model, params, batch.latents * jnp.asarray(model.latent_factor))


def _pictures(model: ModelConfig, params: Params, latents: Array) -> Array:
    flat = (latents / jnp.asarray(model.latent_factor)).reshape(-1, *latents.shape[2:])
    decoded = decode(params["vae_decoder"], model.vae, flat)
    return decoded.reshape(*latents.shape[:2], *decoded.shape[1:])


def _reverse(batch: OrbitBatch) -> OrbitBatch:
    return batch._replace(azimuth_rad=-batch.azimuth_rad % np.float32(2 * np.pi))


def _turn(batch: OrbitBatch) -> OrbitBatch:
    turned = batch.azimuth_rad + np.float32(np.deg2rad(WRONG_AZIMUTH_DEG))
    return batch._replace(azimuth_rad=turned % np.float32(2 * np.pi))


def _raise(batch: OrbitBatch) -> OrbitBatch:
    return batch._replace(polar_rad=batch.polar_rad - np.float32(np.deg2rad(WRONG_ELEVATION_DEG)))
