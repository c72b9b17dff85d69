"""Cameras of training orbits, and the views that a sample takes of them."""

import errno
import os

import numpy as np
import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.train.config import DataConfig
from sv3d_jax.train.data import orbits as module
from sv3d_jax.train.data.latents import EncodedOrbits, ViewIndices, draw_views, gather_views
from sv3d_jax.train.data.orbits import OrbitAngles, nth_orbit, render_objects, training_orbit

ORBITS = [training_orbit(seed, DataConfig()) for seed in range(400)]


def steps_deg(orbit: OrbitAngles) -> np.ndarray:
    return (np.diff(orbit.azimuths_deg) + 180.0) % 360.0 - 180.0


def test_every_orbit_goes_round_one_way():
    assert all(np.all(steps_deg(orbit) > 0) or np.all(steps_deg(orbit) < 0) for orbit in ORBITS)


def test_both_directions_are_equally_common():
    share = np.mean([steps_deg(orbit)[0] > 0 for orbit in ORBITS])
    assert abs(share - 0.5) < 0.075  # three deviations of 400 draws


def test_half_of_the_orbits_have_uneven_steps():
    share = np.mean([np.ptp(steps_deg(orbit)) > 1e-6 for orbit in ORBITS])
    assert abs(share - 0.5) < 0.075


def test_elevations_stay_in_range():
    elevations = np.concatenate([orbit.elevations_deg for orbit in ORBITS])
    assert elevations.min() >= -10.0 and elevations.max() <= 35.0


def encoded(count: int = 3, frames: int = 21) -> EncodedOrbits:
    """Latents and tokens that say which view they are: object + frame / 100."""
    names = np.arange(count)[:, None] + np.arange(frames) / 100
    return EncodedOrbits(names[:, :, None, None, None], names[:, :, None], ORBITS[:count])


def test_any_view_can_be_the_input_and_the_others_follow_it():
    batch = gather_views(encoded(), ViewIndices(np.array([1]), np.array([4]), np.array([[0, 19, 20]])))
    np.testing.assert_allclose(batch.latents[0, :, 0, 0, 0], [1.05, 1.03, 1.04])
    np.testing.assert_allclose(batch.input_latents[0, 0, 0, 0], 1.04)
    np.testing.assert_allclose(batch.tokens[0, 0], 1.04)


def test_azimuths_are_relative_to_the_input_view():
    batch = gather_views(encoded(), ViewIndices(np.array([1]), np.array([4]), np.array([[0, 19, 20]])))
    azimuths = ORBITS[1].azimuths_deg
    expected = np.deg2rad((azimuths[[5, 3, 4]] - azimuths[4]) % 360.0)
    np.testing.assert_allclose(batch.azimuth_rad[0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        batch.polar_rad[0], np.deg2rad(90.0 - ORBITS[1].elevations_deg[[5, 3, 4]]), rtol=1e-6
    )


def test_samples_hold_the_input_view_once_and_last():
    batch = gather_views(encoded(), draw_views(np.random.default_rng(0), 3, 21, 50, 7))
    assert np.all(batch.frame_index[:, -1] == 20)
    assert np.all(np.diff(batch.frame_index) > 0)
    np.testing.assert_array_equal(batch.latents[:, -1], batch.input_latents)
    np.testing.assert_array_equal(batch.azimuth_rad[:, -1], 0.0)


def test_the_last_view_is_the_input_where_asked():
    views = draw_views(np.random.default_rng(0), 3, 21, 50, 7, any_input=False)
    assert np.all(views.inputs == 20)


def test_orbits_of_one_object_stand_side_by_side_and_differ():
    data = DataConfig(first_seed=7, objects=2, orbits_per_object=3)
    seeds, orbits = zip(*(nth_orbit(data, index) for index in range(6)), strict=True)
    assert seeds == (7, 7, 7, 8, 8, 8)
    assert len({orbit.azimuths_deg[0] for orbit in orbits}) == 6


def test_the_first_orbit_of_an_object_does_not_depend_on_their_number():
    alone, first = DataConfig(), DataConfig(orbits_per_object=4)
    np.testing.assert_array_equal(nth_orbit(alone, 2)[1].azimuths_deg, nth_orbit(first, 8)[1].azimuths_deg)


@pytest.mark.slow
def test_a_mixed_object_is_seen_from_its_cameras():
    turned = OrbitAngles(ORBITS[0].azimuths_deg[[0, 7, 3]], ORBITS[0].elevations_deg[[0, 7, 3]])
    [pictures] = render_objects([5], [turned], 32, "mixed")
    [others] = render_objects([5], [OrbitAngles(*(angles[::-1] for angles in turned))], 32, "mixed")
    np.testing.assert_allclose(pictures[::-1].astype(int), others, atol=2)  # rounding moves a few edge pixels


class TestPool:
    """Two shards of two orbits, drawn as black pictures."""

    CONFIG = DataConfig(objects=4, size=8, num_frames=2)

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "SHARD_ORBITS", 2)
        monkeypatch.setattr(module, "RENDER_BATCH", 2)
        monkeypatch.setattr(module, "render_objects", lambda *_: np.zeros((2, 2, 8, 8, 3), np.uint8))
        module.render_pool(tmp_path, self.CONFIG)
        return tmp_path

    @pytest.mark.parametrize("content", [None, b"5", b"{", b"\xff"])
    def test_orbits_of_unknown_settings_are_not_taken(self, folder, content):
        index = folder / "orbits.json"
        index.unlink() if content is None else index.write_bytes(content)
        with pytest.raises(InputError, match=r"orbits\.json does not say with which settings") as refused:
            module.render_pool(folder, self.CONFIG)
        assert f"remove the folder {folder}" in refused.value.hint
        for shard in folder.glob("*.npy"):
            shard.unlink()
        assert len(module.render_pool(folder, self.CONFIG).shards()) == 2

    def test_a_damaged_shard_is_rendered_again(self, folder):
        shard = folder / "orbits-00000000.npy"
        whole = shard.read_bytes()
        for damaged in (b"", whole[:50], whole[:-1], b"x" + whole[1:]):
            shard.write_bytes(damaged)
            module.render_pool(folder, self.CONFIG)
            assert shard.read_bytes() == whole

    @pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
    def test_a_shard_that_the_system_does_not_give_out_now_is_kept(self, folder, number, monkeypatch):
        def refuse(*_, **__):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(np, "load", refuse)
            patch.setattr(module, "_render_shard", lambda *_: pytest.fail("it is rendered again"))
            with pytest.raises(InputError, match=rf"npy cannot be read: .*{os.strerror(number)}"):
                module.render_pool(folder, self.CONFIG)
