"""What the UNet is trained to minimise."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sv3d_jax.diffusion.denoiser import Conditioning
from sv3d_jax.diffusion.loss import WEIGHTINGS, denoising_loss
from sv3d_jax.models.embeddings import sinusoidal
from sv3d_jax.train import losses
from sv3d_jax.train.config import DiffusionConfig
from sv3d_jax.train.losses import OrbitBatch, batch_conditioning, frame_weights, unet_loss, video_losses
from sv3d_jax.weights.key_map import model_parameters
from tests.parity.families.networks import channels_last, model_config, params_of, videos
from tests.test_imports import ROOT
from tests.tiny_model import CONFIG

VIDEOS, FRAMES = 64, 5


def batch(**changes) -> OrbitBatch:
    values = {
        "latents": jnp.zeros((VIDEOS, FRAMES, 2, 2, 4)),
        "input_latents": jnp.ones((VIDEOS, 2, 2, 4)),
        "tokens": jnp.ones((VIDEOS, 8)),
        "polar_rad": jnp.ones((VIDEOS, FRAMES)),
        "azimuth_rad": jnp.broadcast_to(jnp.linspace(0.0, 2 * jnp.pi, FRAMES), (VIDEOS, FRAMES)),
        "frame_index": jnp.broadcast_to(jnp.arange(5.0), (VIDEOS, FRAMES)),
    }
    return OrbitBatch(**values | changes)


@pytest.fixture
def asked(monkeypatch):
    """What the loss asks of the denoiser, whose loss is 1 for every frame."""
    seen = {}

    def record(model, params, batch, condition, sigma, noise, weighting, compute):
        seen.update(condition=condition, sigma=sigma, noise=noise, weighting=weighting)
        return jnp.ones(sigma.shape)

    monkeypatch.setattr(losses, "video_losses", record)
    return seen


def value(**changes) -> float:
    loss = unet_loss(CONFIG, DiffusionConfig(**changes))
    return float(loss({}, batch(), jax.random.key(3)))


def test_all_frames_of_a_video_have_one_level(asked):
    value()
    np.testing.assert_array_equal(asked["sigma"], np.tile(asked["sigma"][:, :1], FRAMES))
    assert len(np.unique(asked["sigma"])) == VIDEOS


def test_every_frame_has_its_own_level_where_asked(asked):
    value(levels="frame")
    assert len(np.unique(asked["sigma"])) == VIDEOS * FRAMES


def test_levels_are_log_normal(asked):
    value(levels="frame", p_mean=1.5, p_std=2.0)
    logarithms = np.log(asked["sigma"])
    assert (
        abs(logarithms.mean() - 1.5) < 0.35 and abs(logarithms.std() - 2.0) < 0.25
    )  # three deviations of 320 draws


def test_token_and_latent_are_dropped_at_their_own_rates(asked):
    value(token_dropout=1.0, latent_dropout=0.0)
    assert not asked["condition"].context.any() and asked["condition"].concat.all()
    value(token_dropout=0.0, latent_dropout=1.0)
    assert asked["condition"].context.all() and not asked["condition"].concat.any()


def test_token_and_latent_are_dropped_independently(asked):
    value(token_dropout=0.5, latent_dropout=0.5)
    kept = np.stack([asked["condition"].context[:, 0, 0], asked["condition"].concat[:, 0, 0, 0, 0]])
    assert {tuple(pair) for pair in kept.T} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_weighting_is_the_one_that_is_named(asked, name):
    value(weighting=name)
    assert asked["weighting"] is WEIGHTINGS[name]


def test_weighting_multiplies_the_squared_error():
    def network(x, c_noise, context, vector):
        return jnp.zeros((*x.shape[:-1], 4))

    latents, sigma = jnp.ones((1, 1, 2, 2, 4)), jnp.full((1, 1), 2.0)
    condition = Conditioning(jnp.zeros((1, 1, 8)), jnp.zeros_like(latents), jnp.zeros((1, 1, 256)))
    by_name = {
        name: float(
            denoising_loss(network, latents, jnp.zeros_like(latents), sigma, condition, weighting)[0, 0]
        )
        for name, weighting in WEIGHTINGS.items()
    }
    # The skip path alone leaves 1 - 1 / (1 + 4) of the latents.
    assert by_name == pytest.approx(
        {"v": 0.64 * 1.25, "edm": 0.64 * 4.25, "eps": 0.64 / 4, "unit": 0.64}, rel=1e-5
    )


def test_frames_weigh_alike_by_default():
    np.testing.assert_array_equal(frame_weights(DiffusionConfig(), batch().azimuth_rad), 1.0)


def test_frames_near_the_input_view_weigh_less_and_the_mean_is_one():
    weights = frame_weights(DiffusionConfig(near_weight=0.5), batch().azimuth_rad)
    np.testing.assert_allclose(weights.mean(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights[0] / weights[0, 2], [0.5, 0.75, 1.0, 0.75, 0.5], rtol=1e-5)


def test_frame_weights_do_not_change_a_loss_that_is_even(asked):
    assert value(near_weight=0.2, near_power=2.0) == pytest.approx(1.0, rel=1e-5)  # float32


def test_conditioning_noise_of_a_picture_is_told_to_the_network():
    levels = jnp.linspace(0.01, 0.1, VIDEOS)
    given = batch_conditioning(CONFIG, batch(cond_aug=levels)).vector
    np.testing.assert_array_equal(given[:, 0, :256], sinusoidal(levels, 256))
    own = batch_conditioning(CONFIG, batch()).vector
    np.testing.assert_array_equal(own[0, 0, :256], sinusoidal(jnp.float32(CONFIG.cond_aug), 256))


@pytest.mark.slow
def test_loss_and_gradients_equal_the_published_ones():
    folder = ROOT / "tests" / "reference"
    given, tensors = json.loads((folder / "loss.json").read_text()), load_file(folder / "loss.safetensors")
    frames = given["num_frames"]
    model = model_config(given["config"], tensors["c.vector"].shape[-1], latent_factor=[1.0])
    params = {"unet": params_of(model, given["base_seed"], "unet")}
    latents, noise, concat = (
        videos(channels_last(tensors[name]), frames) for name in ("x0", "noise", "c.concat")
    )
    context, vector = (videos(tensors[name], frames) for name in ("c.crossattn", "c.vector"))
    condition = Conditioning(context, concat, vector)
    index = jnp.broadcast_to(jnp.arange(frames, dtype=jnp.float32), latents.shape[:2])
    orbit = OrbitBatch(latents, concat[:, 0], context[:, 0, 0], index, index, index)

    def loss(params):
        per_frame = video_losses(model, params, orbit, condition, videos(tensors["sigma"], frames), noise)
        return per_frame.mean(), per_frame

    (mean, per_frame), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(per_frame.reshape(-1), tensors["loss_per_frame"].reshape(-1), rtol=1e-5)
    np.testing.assert_allclose(mean, tensors["loss_mean"].item(), rtol=1e-5)
    compared = 0
    for parameter in model_parameters(model, ["unet"]):
        if (name := f"grad.{parameter.name}") in tensors:
            leaf = gradients
            for key in parameter.path:
                leaf = leaf[key]
            difference = parameter.to_published(np.asarray(leaf)) - tensors[name]
            assert np.linalg.norm(difference) <= 1e-4 * np.linalg.norm(tensors[name]), name
            compared += 1
    assert compared == sum(name.startswith("grad.") for name in tensors)
