"""Conditioning against the tensors of the published modules."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sv3d_jax.cameras.orbit import CameraPath, static_orbit
from sv3d_jax.conditioning import FrameValues, camera_vector, condition_on, frame_vector
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.families import FAMILIES
from tests.reference_weights import reference_params, tiny_config

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    return load_file(REFERENCE / "cond_vector.safetensors")


@pytest.mark.parametrize("orbit", ["static", "static_last_2pi", "dynamic", "cond_aug_0.02"])
def test_frame_vector_equals_the_published_one(vectors, orbit):
    cond_aug, polar, azimuth = (
        vectors[f"{orbit}.{name}"] for name in ("cond_aug", "polars_rad", "azimuths_rad")
    )
    values = FrameValues(cond_aug, polar, azimuth)
    np.testing.assert_allclose(frame_vector(FAMILIES["u"], values), vectors[f"{orbit}.vector_u"], atol=1e-6)
    np.testing.assert_allclose(frame_vector(FAMILIES["p"], values), vectors[f"{orbit}.vector_p"], atol=1e-6)


@pytest.mark.parametrize("variant", ["u", "p"])
def test_camera_vector_of_a_static_orbit_equals_the_published_one(vectors, variant):
    got = camera_vector(ModelConfig.published(variant), static_orbit())
    np.testing.assert_allclose(got, vectors[f"static.vector_{variant}"], atol=1e-6)


def test_camera_vector_sees_azimuths_relative_to_the_last_frame():
    config = ModelConfig.published("p")
    turned = CameraPath(np.array([100.0, 220.0, 340.0]), np.zeros(3))
    straight = CameraPath(np.array([120.0, 240.0, 0.0]), np.zeros(3))
    np.testing.assert_allclose(camera_vector(config, turned), camera_vector(config, straight), atol=1e-6)


@pytest.fixture(scope="module")
def published():
    return load_file(REFERENCE / "sampler_p.safetensors")


@pytest.fixture(scope="module")
def condition(published):
    config = tiny_config("p")
    params = reference_params(config, parts=["image_tower", "vae_encoder"])
    image, noise = (published[name].transpose(0, 2, 3, 1) for name in ("image", "cond_aug_noise"))
    values = FrameValues(np.full(5, 1e-5, np.float32), published["polars_rad"], published["azimuths_rad"])
    return jax.jit(lambda params: condition_on(params, config, image, noise, values))(params)


def test_token_of_the_picture_equals_the_published_one(published, condition):
    stored = published["c.crossattn"]
    got = np.broadcast_to(condition.context, stored.shape)
    np.testing.assert_allclose(got, stored, atol=2e-5 * np.abs(stored).max())


def test_conditioning_latent_equals_the_published_one(published, condition):
    stored = published["c.concat"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(condition.concat[0], stored, atol=2e-5 * np.abs(stored).max())


def test_unconditional_branch_keeps_the_vector_and_nothing_else(published, condition):
    blind = condition.without_image()
    np.testing.assert_allclose(blind.vector[0], published["uc.vector"], atol=1e-6)
    assert not np.any(blind.context) and not np.any(blind.concat)
    assert not published["uc.crossattn"].any() and not published["uc.concat"].any()
