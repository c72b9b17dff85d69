"""From nothing to a model folder by the shipped commands, on tiny networks."""

import json

import numpy as np
import pytest

from sv3d_jax.arrays import named_leaves
from sv3d_jax.errors import InputError
from sv3d_jax.progress import NullProgress
from sv3d_jax.train.checkpoints import read_checkpoint
from sv3d_jax.train.convert import run_convert
from sv3d_jax.train.evaluate import evaluate, held_out_orbits
from sv3d_jax.weights.config import ConvertConfig
from sv3d_jax.weights.hub import load_weights
from tests.train.tiny_run import train

OBJECTIVES = ("autoencoder", "tower", "unet")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder with a run of each objective, each exported into `mini` before the next one starts."""
    folder = tmp_path_factory.mktemp("chain")
    for objective in OBJECTIVES:
        options = {"objective": objective, "weights": str(folder / "mini"), "max_steps": 3}
        train(folder, objective, **options)
        train(folder, objective, **options, export=folder / "mini")
    return folder


@pytest.mark.slow
def test_exported_parts_are_the_averaged_weights_in_bfloat16(chain):
    params, _, _ = load_weights(str(chain / "mini"), dtype="float32")
    for objective, part in zip(OBJECTIVES, ("vae_encoder", "image_tower", "unet"), strict=True):
        arrays, _ = read_checkpoint(chain / objective / "checkpoints", 3)
        for name, leaf in named_leaves(params[part]).items():
            np.testing.assert_allclose(leaf, arrays[f"ema/{part}/{name}"], rtol=2**-8, atol=1e-30)


@pytest.mark.slow
def test_a_run_converts_to_published_names_without_rounding(chain, tmp_path):
    file = tmp_path / "model.safetensors"
    run_convert(ConvertConfig(input=chain / "unet", output=file, verify=True), NullProgress())
    params, model, _ = load_weights(str(file), dtype="float32")
    arrays, settings = read_checkpoint(chain / "unet" / "checkpoints", 3)
    assert model.to_dict()["latent_factor"] == settings["model"]["latent_factor"]
    for name, leaf in named_leaves(params["unet"]).items():
        np.testing.assert_array_equal(leaf, arrays[f"ema/unet/{name}"])
    with pytest.raises(InputError, match="only the image encoder"):
        run_convert(ConvertConfig(input=chain / "tower", output=tmp_path / "tower"), NullProgress())


@pytest.mark.slow
def test_model_says_how_each_part_was_trained(chain):
    _, model, _ = load_weights(str(chain / "mini"))
    assert set(model.training) == set(OBJECTIVES)
    for objective, record in model.training.items():
        assert record["step"] == 3 and record["seconds"] > 0
        assert record["settings"]["objective"] == objective
        assert len(record["settings"]["data_fingerprint"]) >= 64
        log = (chain / "mini" / f"{objective}_log.jsonl").read_text().splitlines()
        assert json.loads(log[0])["step"] == 1


@pytest.mark.slow
def test_unet_trains_on_latents_of_unit_deviation(chain):
    _, model, _ = load_weights(str(chain / "mini"))
    unet = model.training["unet"]["settings"]["model"]
    assert tuple(unet["latent_factor"]) == model.latent_factor
    assert len(set(model.latent_factor)) == 4


@pytest.mark.slow
def test_evaluation_of_the_exported_model(chain):
    params, model, _ = load_weights(str(chain / "mini"), dtype="float32")
    held_out = held_out_orbits(8, model.num_frames, model.native_size)
    report, pictures = evaluate(params, model, held_out, 2, NullProgress())
    assert pictures.shape == held_out.images.shape
    assert report["one_step_over_baseline"] == report["one_step"] - max(report["copy"], report["mean_image"])
    assert all(np.isfinite(value) for value in report.values())


@pytest.mark.slow
def test_a_run_can_start_from_exported_weights(chain):
    params, _, _ = load_weights(str(chain / "mini"), dtype="float32")
    options = {"objective": "tower", "initial": str(chain / "mini"), "max_steps": 1}
    train(chain, "further", **options)
    arrays, _ = read_checkpoint(chain / "further" / "checkpoints", 1)
    # The rate of the first step of a warm-up is zero.
    np.testing.assert_array_equal(arrays["params/image_tower/proj"], params["image_tower"]["proj"])
