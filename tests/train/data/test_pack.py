"""The verb `data pack`, and training from what it wrote."""

import itertools
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cameras.orbit import CameraWarning
from sv3d_jax.errors import InputError
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.progress import NullProgress
from sv3d_jax.train.data import pack as module
from sv3d_jax.train.data.check import shard_defects
from sv3d_jax.train.data.config import PackConfig
from sv3d_jax.train.data.latents import OrbitEncoder
from sv3d_jax.train.data.pack import over_color, run_pack
from sv3d_jax.train.data.records import read_index
from sv3d_jax.train.data.shards import OrbitShards
from sv3d_jax.train.objectives import init_params, make_objective
from sv3d_jax.weights.hub import load_weights, write_shipped
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG
from tests.train.data.packed import write_colored_orbit, write_masked_orbit
from tests.train.tiny_run import tiny_config, train


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    write_shipped(reference_params(CONFIG), CONFIG, folder)
    return str(folder)


@pytest.fixture(scope="module")
def orbits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbits")
    for seed in range(4):
        write_colored_orbit(folder / f"object{seed}", seed)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory, orbits, weights):
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack(folder, orbits, weights)
    return folder


def pack(folder, orbits, weights, **options):
    values = {"orbits": (orbits,), "shard_orbits": 2, "batch_size": 10, **options}
    return run_pack(PackConfig(output=folder, weights=weights, **values), NullProgress())


def test_records_hold_what_the_encoder_makes_of_the_frames(packed, orbits, weights):
    params, model, _ = load_weights(weights, dtype="float32")
    orbit = read_orbit(orbits / "object2")
    latents, tokens = OrbitEncoder(params, model, 10)(np.round(255 * orbit.images).astype(np.uint8)[None])
    record = OrbitShards(packed)[2]
    np.testing.assert_array_equal(record.latents, latents[0])
    np.testing.assert_array_equal(record.tokens, tokens[0])
    np.testing.assert_array_equal(record.orbit.azimuths_deg, orbit.azimuths_deg)
    np.testing.assert_array_equal(record.orbit.elevations_deg, orbit.elevations_deg)


def test_a_packed_folder_has_no_defect(packed):
    assert list(shard_defects(packed, NullProgress())) == []
    assert [shard.records for shard in read_index(packed).shards] == [2, 2]


def test_packing_again_gives_the_same_bytes(packed, orbits, weights, tmp_path):
    pack(tmp_path / "again", orbits, weights)
    for file in ("index.json", "orbits-00000.arrayrecord", "orbits-00001.arrayrecord"):
        assert (tmp_path / "again" / file).read_bytes() == (packed / file).read_bytes()


def test_a_run_that_was_cut_short_goes_on_from_its_last_shard(packed, orbits, weights, tmp_path, monkeypatch):
    original, written = module.write_shard, []

    def failing(path, records):
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        original(path, records)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", failing)
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path / "cut", orbits, weights)
    assert not (tmp_path / "cut" / "index.json").exists()
    before = (tmp_path / "cut" / "orbits-00000.arrayrecord").stat().st_mtime_ns
    pack(tmp_path / "cut", orbits, weights)
    assert (tmp_path / "cut" / "orbits-00000.arrayrecord").stat().st_mtime_ns == before
    assert read_index(tmp_path / "cut").fingerprint == read_index(packed).fingerprint


def test_other_orbits_in_the_same_folder_are_refused(packed, orbits, weights, tmp_path):
    shutil.copytree(orbits, tmp_path / "orbits")
    write_colored_orbit(tmp_path / "orbits" / "object9", 5)
    shutil.copytree(packed, tmp_path / "shards")
    with pytest.raises(InputError, match="other settings: orbits was"):
        pack(tmp_path / "shards", tmp_path / "orbits", weights)


def test_bad_orbits_are_named_and_left_out(orbits, weights, tmp_path):
    shutil.copytree(orbits, tmp_path / "orbits")
    (tmp_path / "orbits" / "object0" / "frames" / "003.png").unlink()
    write_colored_orbit(tmp_path / "orbits" / "object3", 3, views=6)
    result = pack(tmp_path / "shards", tmp_path / "orbits", weights)
    assert result["records"] == 2
    reasons = "\n".join(result["left_out"])
    assert (
        "003.png does not exist" in reasons
        and "object3: it has 6 views, but the first orbit has 10" in reasons
    )


def test_orbits_of_which_none_can_be_packed_leave_no_folder(orbits, weights, tmp_path):
    shutil.copytree(orbits / "object0", tmp_path / "object0")
    for frame in (tmp_path / "object0" / "frames").iterdir():
        frame.write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of 1 orbits can be packed") as error:
        pack(tmp_path / "out", tmp_path / "object0", weights)
    assert "object0" in error.value.hint and not (tmp_path / "out").exists()


def test_each_background_is_a_record_of_its_own(orbits, weights, tmp_path):
    pack(tmp_path / "both", orbits, weights, backgrounds=("white", "random"))
    index, shards = read_index(tmp_path / "both"), OrbitShards(tmp_path / "both")
    assert [entry.name for entry in index.records[:2]] == ["object0 white", "object0 random"]
    assert not np.array_equal(shards[0].latents, shards[1].latents)


def test_a_color_shows_where_the_object_does_not(orbits):
    orbit = read_orbit(orbits / "object1")
    color = np.array([0.2, 0.4, 0.6])
    images = over_color(orbit, color)
    np.testing.assert_allclose(images[0, 0, 0], color, atol=1e-6)
    np.testing.assert_array_equal(images[0, 16, 16], orbit.images[0, 16, 16])


def test_a_color_takes_the_place_of_white_by_the_alphas_beside_the_frames(tmp_path):
    write_masked_orbit(tmp_path)
    color = np.array([0.2, 0.4, 0.6])
    images = over_color(read_orbit(tmp_path), color)
    own = np.array([20, 40, 60]) / 255
    np.testing.assert_allclose(images[0, 0, 0], color, atol=1e-6)
    np.testing.assert_allclose(images[0, 20, 16], 1.0)  # white, and object
    # Frames are rounded to 8 bits.
    soft = 100 / 255
    np.testing.assert_allclose(images[0, 10, 8], soft * own + (1 - soft) * color, atol=0.6 / 255)


def test_other_alphas_are_another_pack(orbits, weights, tmp_path):
    write_masked_orbit(tmp_path / "orbits" / "object0")
    before = module._digest({"object0": tmp_path / "orbits" / "object0"})
    Image.new("L", (32, 32), 255).save(tmp_path / "orbits" / "object0" / "alphas" / "003.png")
    assert module._digest({"object0": tmp_path / "orbits" / "object0"}) != before


def test_given_orbits_validate(orbits, weights, tmp_path):
    write_colored_orbit(tmp_path / "later" / "object7", 6)
    pack(tmp_path / "shards", orbits, weights, validation=(tmp_path / "later",))
    held_out = [entry.name for entry in read_index(tmp_path / "shards").records if entry.validation]
    assert held_out == ["object7 white"]


def test_one_orbit_in_ten_validates_where_none_is_given():
    names = {f"object{n}": None for n in range(40)}
    held_out = module._held_out(names, 0)
    assert len(held_out) == 4 and held_out != module._held_out(names, 1)


SHARD_RUN = {
    "objective": "unet",
    "max_steps": 3,
    "diffusion": {"frames_per_sample": 3, "full_orbit_share": 0.3},
    "data": {"objects": 4, "size": 32, "num_frames": 5},
    "log_every": 1,
}


def shard_run(packed, weights, **changes):
    return SHARD_RUN | {"weights": weights, "data": SHARD_RUN["data"] | {"shards": str(packed)}} | changes


def test_the_objective_feeds_on_shards(packed, weights, tmp_path):
    objective = make_objective(tiny_config(tmp_path, **shard_run(packed, weights)), NullProgress())
    assert objective.fingerprint == read_index(packed).fingerprint
    (_, first), (videos, second) = itertools.islice(objective.batches(1, slice), 2)
    assert first.latents.shape[:2] == (2, 3)
    assert second.latents.shape[:2] == (videos, 5) == (1, 5)  # the last step: a whole orbit
    params = jax.eval_shape(partial(init_params, "unet", CONFIG), jax.random.key(0))
    assert jax.eval_shape(objective.loss, params, first, jax.random.key(0)).shape == ()
    assert not (tmp_path / "data").exists()  # no figures are rendered


@pytest.mark.slow  # compiles the UNet for three kinds of batches
def test_a_run_trains_on_shards_and_refuses_others_when_it_goes_on(packed, orbits, weights, tmp_path):
    train(tmp_path, **shard_run(packed, weights))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).all()
    assert "val_psnr_opposite" in lines[-1] and np.isfinite(list(lines[-1].values())).all()

    other = tmp_path / "other"
    pack(other, orbits, weights, dtype="float16")
    with pytest.raises(InputError, match="data_fingerprint"):
        train(tmp_path, **shard_run(other, weights))


def test_shards_are_refused_by_objectives_that_need_pictures(packed, weights, tmp_path):
    with pytest.raises(InputError, match="the image encoder is trained on pictures"):
        tiny_config(tmp_path, **shard_run(packed, weights, objective="tower"))


def test_cameras_that_the_model_does_not_know_are_said_with_their_orbit(tmp_path, weights):
    write_colored_orbit(tmp_path / "orbits" / "cropped")
    cameras = tmp_path / "orbits" / "cropped" / "cameras.json"
    document = json.loads(cameras.read_text())
    for frame in document["frames"]:
        frame |= {"fl_x": 50.0, "fl_y": 60.0, "cx": 20.0, "cy": 16.0}
    cameras.write_text(json.dumps(document))
    with pytest.warns(CameraWarning, match="cropped: .* 12.5% off the middle .* 20.0% off square"):
        pack(tmp_path / "shards", tmp_path / "orbits", weights)
