"""What the orbit model is asked: its orbits in box coordinates, and the picture that it is given."""

from dataclasses import replace

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import CameraPath, sine_orbit
from sv3d_jax.conditioning import camera_vector
from sv3d_jax.errors import CameraError, WeightsError
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.recon.guide import check_model, input_view, make_guide
from sv3d_jax.recon.sds import random_orbit
from sv3d_jax.recon.views import prepare_views
from tests.recon.scenes import ball_orbit
from tests.tiny_model import CONFIG, SIZE, tiny_pipeline

ORBITS, SEED = 3, 11


@pytest.fixture(scope="module")
def frames():
    """An orbit whose input view, not the last, is at azimuth 40 of a world that is moved and scaled."""
    frames = ball_orbit(size=SIZE, num_frames=6, center=(5.0, -3.0, 2.0), scale=10.0)
    cos, sin = np.cos(np.deg2rad(40)), np.sin(np.deg2rad(40))
    turn = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    order = np.roll(np.arange(6), 2)
    return replace(
        frames,
        images=frames.images[order],
        alphas=frames.alphas[order],
        camera_to_world=turn @ frames.camera_to_world[order],
        input_frame=1,
    )


@pytest.fixture(scope="module")
def views(frames):
    return prepare_views(frames)[0]


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def guide(pipeline, views):
    return make_guide(pipeline, views, 1, ORBITS, SEED)


def test_the_input_view_is_read_off_its_pose(views):
    azimuth, elevation, _, fov = input_view(views, 1)
    assert (azimuth, elevation, fov) == pytest.approx((40.0, 10.0, 33.8), abs=1e-3)


def test_every_orbit_ends_at_the_input_view(guide, views):
    last = np.asarray(guide.arrays.cameras.camera_to_box[:, -1])
    np.testing.assert_allclose(last, np.tile(views.camera_to_box[1], (ORBITS, 1, 1)), atol=1e-3)


def test_orbits_turn_from_there_as_the_model_is_told(guide, pipeline):
    """Seen from the box's centre; the model is told azimuths relative to the input view."""
    rng = np.random.default_rng(SEED)
    for poses, vector in zip(guide.arrays.cameras.camera_to_box, guide.arrays.condition.vector, strict=True):
        path = random_orbit(rng, input_elevation_deg=10.0, num_frames=CONFIG.num_frames)
        x, y, z = np.asarray(poses, np.float64)[:, :3, 3].T
        seen = CameraPath(np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arctan2(z, np.hypot(x, y))))
        np.testing.assert_allclose(seen.azimuths_deg, path.azimuths_deg, atol=1e-2)
        np.testing.assert_allclose(seen.elevations_deg, path.elevations_deg, atol=1e-2)
        np.testing.assert_allclose(vector, camera_vector(CONFIG, path), atol=1e-3)


def test_the_model_is_given_the_picture_of_the_input_view(guide, pipeline, views):
    pixels = np.rint(255 * views.images[1]) / 255 * 2 - 1
    _, noise, _ = pipeline.noise([SEED], CONFIG.num_frames, SIZE)
    expected = pipeline.condition(pixels[None].astype(np.float32), noise, sine_orbit(CONFIG.num_frames))
    np.testing.assert_allclose(guide.arrays.condition.concat, expected.concat, atol=1e-5)
    np.testing.assert_allclose(guide.arrays.condition.context, expected.context, atol=1e-5)


def test_a_picture_of_another_size_is_resized(pipeline):
    views, _ = prepare_views(ball_orbit(size=3 * SIZE // 2, num_frames=4))
    guide = make_guide(pipeline, views, 3, 1, SEED)
    np.testing.assert_allclose(guide.arrays.cameras.focal_px, views.focal_px[0, 0] * 2 / 3, rtol=1e-5)
    assert guide.arrays.condition.concat.shape[2] * CONFIG.vae.downsampling == SIZE


def test_latents_are_those_that_the_decoder_takes(guide, pipeline, views):
    """The mean of the encoder, times the latent factor, which decoding divides by."""
    pixels = 2 * views.images[:1] - 1
    latents = guide.encode(guide.arrays.params, pixels)
    _, noise, _ = pipeline.noise([SEED], 1, SIZE)
    unscaled = pipeline.condition(pixels, 0 * noise, sine_orbit(2)).concat[:, 0]
    np.testing.assert_allclose(latents, unscaled * np.array(CONFIG.latent_factor), atol=1e-5)


def test_a_model_without_cameras_is_refused():
    with pytest.raises(WeightsError, match="not told any cameras"):
        check_model(ModelConfig.published("u"))


@pytest.mark.parametrize("fault", ["tilted", "beside", "wide"])
def test_an_input_view_that_the_model_does_not_know_is_refused(views, fault):
    pose, images, masks = views.camera_to_box.copy(), views.images, views.masks
    if fault == "tilted":
        pose[1, :3, :2] = pose[1, :3, :2] @ np.array([[0.8, -0.6], [0.6, 0.8]])
    elif fault == "beside":
        pose[1, :3, 3] += 0.5 * pose[1, :3, 0]
    else:
        images, masks = images[:, 4:-4], masks[:, 4:-4]
    with pytest.raises(CameraError, match="frame 1, the input view"):
        input_view(views._replace(camera_to_box=pose, images=images, masks=masks), 1)
