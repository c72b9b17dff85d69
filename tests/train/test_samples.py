"""Sheets of sampled orbits."""

import dataclasses

import numpy as np
import pytest

from sv3d_jax.train.losses import OrbitBatch
from sv3d_jax.train.samples import sheet_maker
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG


@pytest.mark.slow
def test_a_sheet_shows_samples_above_the_truth_and_repeats_itself():
    frames, side = 3, CONFIG.native_size // CONFIG.vae.downsampling
    model = dataclasses.replace(CONFIG, num_steps=2)
    params = reference_params(CONFIG)
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    orbit = OrbitBatch(
        latents=normal(1, frames, side, side, 4),
        input_latents=normal(1, side, side, 4),
        tokens=normal(1, CONFIG.unet.context_width),
        polar_rad=np.full((1, frames), np.pi / 2, np.float32),
        azimuth_rad=np.array([[1.0, 2.0, 0.0]], np.float32),
        frame_index=np.arange(frames, dtype=np.float32)[None],
    )
    truth = np.full((frames, 32, 32, 3), 200, np.uint8)
    make = sheet_maker(model, params["vae_decoder"], orbit, truth)
    sheet, score = make({"unet": params["unet"]})
    again, score_again = make({"unet": params["unet"]})
    assert sheet.dtype == np.uint8 and np.array_equal(sheet, again) and score == score_again
    # Cells of 32 pixels are enlarged to 128, the true view under the sampled one.
    cell = sheet[2 : 2 + 256, 2 : 2 + 128]
    assert np.all(cell[128 + 4 : 256 - 4, 4:-4] == 200) and cell[4:124, 4:-4].std() > 0
    assert 0.0 < score < 60.0
