"""What is added from outside, without touching another file: a family of models, a solver, a guidance curve."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.cameras.orbit import static_orbit
from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.errors import CameraError
from sv3d_jax.models.families import FAMILIES, ModelFamily, VectorField
from sv3d_jax.pipeline import Pipeline
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG, picture

TINY = ModelFamily(
    name="tiny_elevation",
    vector=(VectorField("polar_rad", 32), VectorField("constant", 16, value=7.0)),
    input_frame="first",
    num_frames=4,
    guidance="constant",
)


@dataclass(frozen=True)
class Midpoint:
    """Two half steps with one denoised estimate, which is Euler's whole step in other arithmetic."""

    def init(self, x):
        return jnp.zeros((), jnp.int32)

    def update(self, x, denoised, levels, calls):
        middle = 0.5 * (levels.current + levels.next)
        for now, then in ((levels.current, middle), (middle, levels.next)):
            x = jnp.where(then > 0, x + (then - now) * (x - denoised) / now, denoised)
        return x, calls + 1


@pytest.fixture
def pipe(monkeypatch):
    monkeypatch.setitem(FAMILIES, "tiny", TINY)
    config = replace(
        CONFIG, name="tiny", variant="tiny", unet=replace(CONFIG.unet, vector_width=TINY.vector_width)
    )
    return Pipeline(reference_params(config), config)


def test_a_family_and_a_solver_are_sampled_with(pipe):
    orbit = pipe(picture(), solver=Midpoint(), seed=7, output_type="np")
    assert orbit.frames.shape == (5, 32, 32, 3) and np.isfinite(orbit.frames).all()
    assert orbit.cameras.input_frame == 0
    np.testing.assert_allclose(orbit.cameras.azimuths_deg, [0, 72, 144, 216, 288])
    assert (orbit.frames_uint8()[0] == orbit.picture).all()
    assert (orbit.frames_uint8()[1] != orbit.picture).any()
    euler = pipe(picture(), seed=7, output_type="np")
    np.testing.assert_allclose(orbit.frames, euler.frames, atol=1e-3)
    assert SamplingConfig().resolve(pipe.config).guidance == "constant"


def test_the_vector_is_that_of_the_family(pipe):
    level = pipe(picture(), seed=7, output_type="latent").latents
    raised = pipe(picture(), seed=7, elevations_deg=40.0, output_type="latent").latents
    turned = pipe(picture(), seed=7, azimuths_deg=[0, 50, 140, 210, 280], output_type="latent").latents
    assert np.abs(raised - level).max() > 1e-3
    assert (np.asarray(turned) == np.asarray(level)).all()  # it is not told azimuths


def test_cameras_with_the_input_elsewhere_are_refused_with_what_to_do(pipe):
    path = static_orbit(5)
    with pytest.raises(CameraError, match="input view first") as caught:
        pipe(picture(), cameras=path)
    assert 'with_input("first")' in caught.value.hint
    orbit = pipe(picture(), cameras=path.with_input("first"), seed=7, output_type="latent")
    np.testing.assert_allclose(orbit.cameras.azimuths_deg, [0, 72, 144, 216, 288])


def test_a_guidance_curve_may_be_a_function(pipe):
    def curve(num_frames, cfg_min, cfg_max):
        return jnp.full(num_frames, 2.5)

    ours = pipe(picture(), guidance=curve, seed=7, output_type="latent").latents
    theirs = pipe(picture(), guidance="constant", cfg_max=2.5, seed=7, output_type="latent").latents
    assert (np.asarray(ours) == np.asarray(theirs)).all()
