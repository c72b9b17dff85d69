"""What feeds and validates a run."""

import numpy as np
import pytest

from sv3d_jax.progress import NullProgress
from sv3d_jax.train import objectives
from sv3d_jax.train.config import EVALUATION_SEED, DataConfig, TrainConfig
from sv3d_jax.train.data.latents import EncodedOrbits, OrbitEncoder, whole_orbits
from sv3d_jax.train.data.orbits import nth_orbit, training_orbit
from sv3d_jax.train.objectives import noisy_inputs, validation_orbits
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG, SIZE

OWN = DataConfig(first_seed=50, objects=3, orbits_per_object=2, validation="orbits")


def test_validation_on_other_objects_uses_seeds_that_are_kept_for_it():
    seeds, orbits = validation_orbits(DataConfig(), 4)
    assert seeds == [EVALUATION_SEED + i for i in range(4)]
    np.testing.assert_array_equal(orbits[1].azimuths_deg, training_orbit(seeds[1], DataConfig()).azimuths_deg)


def test_validation_on_the_same_objects_uses_orbits_that_no_step_sees():
    seeds, orbits = validation_orbits(OWN, 7)
    assert seeds == [50, 51, 52, 50, 51, 52, 50]
    seen = {nth_orbit(OWN, index)[1].azimuths_deg[0] for index in range(6)}
    validated = {orbit.azimuths_deg[0] for orbit in orbits}
    assert len(validated) == 7 and not seen & validated


@pytest.fixture(scope="module")
def encoder():
    return OrbitEncoder(reference_params(CONFIG), CONFIG)


@pytest.fixture(scope="module")
def drawn(encoder):
    """A batch of whole orbits, the input pictures, and the rows' seeds."""
    images = np.random.default_rng(0).integers(0, 256, (3, 5, SIZE, SIZE, 3), np.uint8)
    data = DataConfig(num_frames=5)
    batch = whole_orbits(EncodedOrbits(*encoder(images), [training_orbit(i, data) for i in range(3)]))
    return batch, images[:, -1], [[0, 4, row] for row in range(3)]


def test_noise_on_the_input_picture_reaches_its_latent_alone(encoder, drawn):
    batch, images, seeds = drawn
    noisy = noisy_inputs(batch, images, seeds, encoder, -3.0, 0.5)
    assert np.all(noisy.cond_aug > 0) and len(set(noisy.cond_aug)) == 3
    assert np.abs(noisy.input_latents - batch.input_latents).max() > 1e-3
    assert noisy.latents is batch.latents and noisy.tokens is batch.tokens


def test_one_level_for_all_pictures_where_asked(encoder, drawn):
    batch, images, seeds = drawn
    noisy = noisy_inputs(batch, images, seeds, encoder, np.log(0.02), 0.0)
    np.testing.assert_allclose(noisy.cond_aug, 0.02, rtol=1e-6)


def test_a_row_has_the_same_noise_whoever_loads_it(encoder, drawn):
    batch, images, seeds = drawn
    whole = noisy_inputs(batch, images, seeds, encoder, -3.0, 0.5)
    part = noisy_inputs(batch._replace(latents=batch.latents[2:]), images[2:], seeds[2:], encoder, -3.0, 0.5)
    np.testing.assert_array_equal(part.cond_aug, whole.cond_aug[2:])
    np.testing.assert_allclose(part.input_latents, whole.input_latents[2:], atol=1e-5)  # another batch size


def test_training_without_shards_says_at_the_start_where_its_data_go(tmp_path, monkeypatch):
    class Kept(NullProgress):
        def note(self, text: str) -> None:
            notes.append(text)

    notes = []
    monkeypatch.setattr(objectives, "render_pool", lambda *_: pytest.fail(notes[0]))
    config = TrainConfig(output=tmp_path / "run", model="mini", objective="autoencoder")
    with pytest.raises(pytest.fail.Exception) as caught:
        objectives.make_objective(config, Kept())
    assert "no --data.shards: 6144 procedural objects (figures) are rendered into" in str(caught.value)
    assert str(tmp_path / "run" / "data") in str(caught.value)
