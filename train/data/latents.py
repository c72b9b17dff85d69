"""Latents and image tokens of orbits, encoded once and cached on disk, and the choice of views for UNet training."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from sv3d_jax.arrays import Params
from sv3d_jax.io.scratch import read_arrays, write_arrays
from sv3d_jax.models.clip_vision import embed_image
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.vae import encode_moments
from sv3d_jax.progress import Progress
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.data.orbits import OrbitAngles, OrbitPool, pool_lock, relative_angles
from sv3d_jax.train.losses import OrbitBatch, to_pixels

ENCODE_BATCH = 168


class EncodedOrbits(NamedTuple):
    """VAE encoder means and image tokens of every view of every orbit, and the cameras."""

    latents: np.ndarray  # objects f h w c
    tokens: np.ndarray  # objects f d
    orbits: list[OrbitAngles]


class OrbitEncoder:
    """Encodes the views of orbits with a model's VAE encoder and image encoder, in batches of a fixed size."""

    def __init__(self, params: Params, model: ModelConfig, batch_size: int = ENCODE_BATCH):
        self._batch_size = batch_size
        self.params = {name: params[name] for name in ("vae_encoder", "image_tower")}

        def run(params, images):
            pixels = to_pixels(images)
            mean, _ = encode_moments(params["vae_encoder"], model.vae, pixels)
            return mean, embed_image(params["image_tower"], model.image_encoder, pixels)

        self._run = jax.jit(run)
        self._encode = jax.jit(
            lambda params, pixels: encode_moments(params["vae_encoder"], model.vae, pixels)[0]
        )

    def fingerprint(self) -> str:
        """SHA-256 of the parameters."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.asarray(leaf, np.float32).tobytes())
        return digest.hexdigest()

    def noisy_latents(self, images: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Latents `n h w c` of pictures uint8 `n h w 3` with noise added to their pixels in [-1, 1]."""
        return np.asarray(self._encode(self.params, to_pixels(images) + noise))

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latents `objects f h w c` and tokens `objects f d` of pictures uint8 `objects f h w 3`."""
        flat = images.reshape(-1, *images.shape[2:])
        size = self._batch_size
        padded = np.concatenate([flat, flat[: -len(flat) % size]])
        parts = [
            jax.device_get(self._run(self.params, padded[i : i + size])) for i in range(0, len(padded), size)
        ]
        return tuple(
            np.concatenate(column)[: len(flat)].reshape(*images.shape[:2], *column[0].shape[1:])
            for column in zip(*parts, strict=True)
        )


def encode_pool(directory: Path, pool: OrbitPool, encoder: OrbitEncoder, progress: Progress) -> EncodedOrbits:
    """Latents of all shards: those in the folder, and the others, which are missing or damaged, encoded now."""
    with pool_lock(directory):
        parts = _encode_missing(directory, pool, encoder, progress)
    latents, tokens = (np.concatenate([part[key] for part in parts]) for key in ("latents", "tokens"))
    count = len(pool.orbits)
    return EncodedOrbits(latents[:count], tokens[:count], pool.orbits)


def _encode_missing(
    directory: Path, pool: OrbitPool, encoder: OrbitEncoder, progress: Progress
) -> list[dict[str, np.ndarray]]:
    name = encoder.fingerprint()[:12]
    shards = pool.shards()
    paths = [directory / f"latents-{name}-{index:05d}.npz" for index in range(len(shards))]
    parts = [read_arrays(path) for path in paths]
    progress.stage("encode", total=parts.count(None))
    for index, part in enumerate(parts):
        if part is None:
            latents, tokens = encoder(np.asarray(shards[index]))
            parts[index] = {"latents": latents, "tokens": tokens}
            write_arrays(paths[index], parts[index])
            progress.advance()
    return parts


class ViewIndices(NamedTuple):
    """Which views a batch takes, as indices."""

    orbits: np.ndarray  # (b,)
    inputs: np.ndarray  # (b,), the input view of each orbit
    places: np.ndarray  # (b, f), index of each frame in the orbit rotated so that the input view is last


def sample_shape(config: TrainConfig, step: int) -> tuple[int, int]:
    """Numbers of videos in a step's global batch and of frames in each: whole orbits in the last steps, else parts."""
    frames, videos = config.diffusion.frames_per_sample, config.batch_size
    if step < round(config.max_steps * (1.0 - config.diffusion.full_orbit_share)):
        return videos, frames
    # About the same number of frames per step as before, for a similar gradient noise.
    return max(1, round(videos * frames / config.data.num_frames)), config.data.num_frames


def draw_views(
    rng: np.random.Generator,
    num_orbits: int,
    num_frames: int,
    batch_size: int,
    frames: int,
    any_input: bool = True,
) -> ViewIndices:
    """Random orbits, each with an input view, random or the last, and `frames` views.

    Orbits are cyclic, so each is rotated to end with its input view. The input view is always among the frames, and the
    frame index is the index in the whole rotated orbit.
    """
    orbits = rng.integers(0, num_orbits, batch_size)
    inputs = rng.integers(0, num_frames, batch_size) if any_input else np.full(batch_size, num_frames - 1)
    places = np.stack(
        [
            np.append(np.sort(rng.choice(num_frames - 1, frames - 1, replace=False)), num_frames - 1)
            for _ in range(batch_size)
        ]
    )
    return ViewIndices(orbits, inputs, places)


def gather_views(encoded: EncodedOrbits, views: ViewIndices) -> OrbitBatch:
    """The training batch of the chosen views."""
    orbits, inputs, places = views
    num_frames = encoded.latents.shape[1]
    shown = (inputs[:, None] + 1 + places) % num_frames
    angles = [relative_angles(encoded.orbits[o], v, i) for o, v, i in zip(orbits, shown, inputs, strict=True)]
    polar_rad, azimuth_rad = (np.stack(column).astype(np.float32) for column in zip(*angles, strict=True))
    return OrbitBatch(
        latents=encoded.latents[orbits[:, None], shown],
        input_latents=encoded.latents[orbits, inputs],
        tokens=encoded.tokens[orbits, inputs],
        polar_rad=polar_rad,
        azimuth_rad=azimuth_rad,
        frame_index=places.astype(np.float32),
    )


def whole_orbits(encoded: EncodedOrbits) -> OrbitBatch:
    """All frames of all orbits, the last view of each its input."""
    count, num_frames = encoded.latents.shape[:2]
    last = np.full(count, num_frames - 1)
    return gather_views(
        encoded, ViewIndices(np.arange(count), last, np.tile(np.arange(num_frames), (count, 1)))
    )


def measure_latent_factor(params: Params, model: ModelConfig, pool: OrbitPool) -> tuple[float, ...]:
    """1 / standard deviation of each latent channel over the first shard of the pool; params is `vae_encoder`."""
    images = np.asarray(pool.shards()[0])
    encode = jax.jit(lambda images: encode_moments(params, model.vae, to_pixels(images))[0])
    latents = np.concatenate([encode(orbit) for orbit in images])
    return tuple(round(float(1.0 / deviation), 4) for deviation in latents.std((0, 1, 2)))
