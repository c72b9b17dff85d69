"""Sheets of sampled orbits."""

import dataclasses

import numpy as np
import pytest

from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.models.families import FAMILIES
from sv3d_jax.train import samples
from sv3d_jax.train.losses import OrbitBatch
from sv3d_jax.train.samples import sheet_maker
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG


def orbit_batch(frames: int) -> OrbitBatch:
    side, rng = CONFIG.native_size // CONFIG.vae.downsampling, np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return OrbitBatch(
        latents=normal(1, frames, side, side, 4),
        input_latents=normal(1, side, side, 4),
        tokens=normal(1, CONFIG.unet.context_width),
        polar_rad=np.full((1, frames), np.pi / 2, np.float32),
        azimuth_rad=np.linspace(1.0, 0.0, frames, dtype=np.float32)[None],
        frame_index=np.arange(frames, dtype=np.float32)[None],
    )


def test_the_guidance_of_a_family_that_begins_with_its_input_follows_its_frames(monkeypatch):
    """Batches end at the input view, so a curve over V3D's frames ends where it begins in the model."""
    scales = []

    def denoiser(network, condition, scale):
        scales.append(np.asarray(scale).tolist())
        return lambda x, sigma: x

    monkeypatch.setattr(samples, "guided_denoiser", denoiser)
    sampling = SamplingConfig(num_steps=1, guidance="linear", cfg_min=1.0, cfg_max=3.0)
    for place in ("last", "first"):
        family = dataclasses.replace(FAMILIES["p"], input_frame=place)
        monkeypatch.setitem(FAMILIES, "p", family)
        batch = orbit_batch(frames=5)
        samples.sample_latents(CONFIG, {"unet": {}}, batch, batch.latents, sampling)
    assert scales == [[1.0, 1.5, 2.0, 2.5, 3.0], [1.5, 2.0, 2.5, 3.0, 1.0]]


@pytest.mark.slow
def test_a_sheet_shows_samples_above_the_truth_and_repeats_itself():
    frames = 3
    model = dataclasses.replace(CONFIG, num_steps=2)
    params = reference_params(CONFIG)
    orbit = orbit_batch(frames)
    truth = np.full((frames, 32, 32, 3), 200, np.uint8)
    make = sheet_maker(model, params["vae_decoder"], orbit, truth)
    sheet, score = make({"unet": params["unet"]})
    again, score_again = make({"unet": params["unet"]})
    assert sheet.dtype == np.uint8 and np.array_equal(sheet, again) and score == score_again
    # Cells of 32 pixels are enlarged to 128, the true view under the sampled one.
    cell = sheet[2 : 2 + 256, 2 : 2 + 128]
    assert np.all(cell[128 + 4 : 256 - 4, 4:-4] == 200) and cell[4:124, 4:-4].std() > 0
    assert 0.0 < score < 60.0
