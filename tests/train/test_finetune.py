"""From given weights to published files: what was to change has changed, and nothing else."""

import numpy as np
import pytest

from sv3d_jax.errors import CheckpointError
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.progress import NullProgress
from sv3d_jax.weights.config import ConvertConfig
from sv3d_jax.weights.convert import run_convert
from sv3d_jax.weights.hub import load_weights, write_shipped
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG, picture
from tests.train.test_trainable import choose, named
from tests.train.tiny_run import train

OPTIONS = {
    "objective": "unet",
    "max_steps": 3,
    "optimizer": {"warmup_steps": 1, "learning_rate": 1e-2},
    "diffusion": {"frames_per_sample": 3, "cond_aug_mean": -3.0, "near_weight": 0.5},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["temporal", "lora"])
def run(request, tmp_path_factory):
    """Which layers were trained, and a folder with `given`, weights that a run started from, and `tuned`."""
    folder = tmp_path_factory.mktemp(request.param)
    write_shipped(reference_params(CONFIG), CONFIG, folder / "given")
    options = given(folder, request.param)
    train(folder, **options)
    train(folder, **options, export=folder / "tuned")
    return request.param, folder


def given(folder, layers):
    weights = str(folder / "given")
    return {**OPTIONS, "initial": weights, "weights": weights, "trainable": {"layers": layers, "rank": 2}}


def test_other_parameters_keep_their_bits_from_file_to_file(run):
    layers, folder = run
    before, after = (named(load_weights(folder / name)[0]) for name in ("given", "tuned"))
    trained = set(named(choose({"unet": load_weights(folder / "given")[0]["unet"]}, layers).initial))
    if layers == "lora":
        trained = {f"{name.rsplit('/', 1)[0]}/kernel" for name in trained}
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed and changed <= trained
    # One token makes the choice of keys moot, so nothing pulls at these, and the network has no other tokens.
    idle = {
        name
        for name in trained - changed
        if "/attn2/to_q/" in name or "/attn2/to_k/" in name or "/norm2/" in name
    }
    assert changed | idle == trained


def test_an_exported_folder_converts_to_a_file_that_gives_the_same_orbit(run):
    _, folder = run
    file = folder / "tuned.safetensors"
    report = run_convert(ConvertConfig(input=folder / "tuned", output=file, verify=True), NullProgress())
    assert report["verified"]
    orbits = []
    for source in (folder / "tuned", file):
        params, model, _ = load_weights(source, dtype="float32")
        orbits.append(Pipeline(params, model)(picture(), num_steps=2).frames_uint8())
    np.testing.assert_array_equal(*orbits)


def test_export_refuses_another_start(run):
    layers, folder = run
    other = reference_params(CONFIG, base_seed=1)
    write_shipped(other, CONFIG, folder / "other")
    with pytest.raises(CheckpointError, match="is not what .* started from"):
        train(folder, **{**given(folder, layers), "initial": str(folder / "other")}, export=folder / "tuned")
