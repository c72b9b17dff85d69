"""The table of model families, against the published models and against what reads it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.cameras.orbit import custom_orbit
from sv3d_jax.conditioning import camera_vector
from sv3d_jax.diffusion.config import GUIDANCE_NAMES, SOLVER_NAMES
from sv3d_jax.diffusion.guidance import CURVES
from sv3d_jax.diffusion.solvers import SOLVERS
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.embeddings import sinusoidal
from sv3d_jax.models.families import FAMILIES, family_of_width
from sv3d_jax.models.video_unet import VideoUNet, init_unet
from sv3d_jax.train.losses import orbit_network
from sv3d_jax.train.objectives import read_model
from sv3d_jax.weights.convert import convert
from sv3d_jax.weights.hub import load_weights, write_shipped
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG


@pytest.mark.parametrize("variant", FAMILIES)
def test_configurations_in_the_folder_are_the_published_models(variant):
    published = ModelConfig.published(variant)
    assert read_model(published.name) == published
    assert ModelConfig.named(published.name) == published
    assert published.family is FAMILIES[variant]


def test_files_are_recognised_by_the_width_of_their_vector():
    assert [family_of_width(width) for width in (256, 1280, 768, 100)] == ["u", "p", None, None]


def test_v3d_has_the_constants_of_its_published_configuration():
    """Frame rate 1, motion 300 and noise .02, 256 sinusoids each, for every frame; no cameras."""
    cameras = custom_orbit(None, 0.0, 18, "first")
    vector = camera_vector(ModelConfig.published("v3d"), cameras)
    expected = jnp.concatenate([sinusoidal(jnp.float32(value), 256) for value in (1.0, 300.0, 0.02)])
    np.testing.assert_array_equal(vector, jnp.tile(expected, (18, 1)))
    assert not FAMILIES["v3d"].has_cameras and FAMILIES["c"].has_cameras


def test_weights_of_a_family_that_no_width_tells_are_read_in_every_form(tmp_path):
    """V3D's vector is as wide as that of Stable Video Diffusion: the description decides."""
    model = replace(CONFIG, name="v3d", variant="v3d", unet=replace(CONFIG.unet, vector_width=768))
    params = reference_params(model)
    write_shipped(params, model, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "v3d.safetensors")
    convert(tmp_path / "v3d.safetensors", tmp_path / "again")
    for place in ("folder", "v3d.safetensors", "again"):
        read, config, _ = load_weights(tmp_path / place, "v3d")
        assert config == model
        got, expected = (np.asarray(tree["unet"]["out_2"]["bias"], np.float32) for tree in (read, params))
        np.testing.assert_allclose(got, expected, rtol=4e-3)  # folders are written in bfloat16


def test_names_of_guidance_and_solvers_are_those_of_their_tables():
    assert set(GUIDANCE_NAMES) == set(CURVES) and set(SOLVER_NAMES) == set(SOLVERS)
    assert {family.guidance for family in FAMILIES.values()} <= set(CURVES)


def test_training_gives_a_model_its_frames_in_the_order_that_it_has_them(monkeypatch):
    """Batches end at the input view; V3D's orbits begin there."""
    monkeypatch.setitem(
        FAMILIES, "p", FAMILIES["p"].__class__(**vars(FAMILIES["p"]) | {"input_frame": "first"})
    )
    params = init_unet(CONFIG.unet, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.02, params)  # output layers begin at zero
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = ((2, 5, 8, 8, 8), (2, 5), (2, 1, 8), (2, 5, 1280))
    x, noise, context, vector = (
        jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)
    )
    places = jnp.tile(jnp.arange(5.0), (2, 1))
    got = jax.jit(orbit_network(CONFIG, params, places))(x, noise, context, vector)

    order = jnp.array([4, 0, 1, 2, 3])  # the input view first, the others in the same direction
    expected = jax.jit(VideoUNet(CONFIG.unet).apply)(
        {"params": params}, x[:, order], noise[:, order], context, vector[:, order]
    )
    np.testing.assert_allclose(got[:, order], expected, atol=1e-5)
    monkeypatch.undo()
    last = jax.jit(orbit_network(CONFIG, params, places))(x, noise, context, vector)
    assert np.abs(last - got).max() > 1e-3
