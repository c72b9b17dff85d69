"""How an orbit is sampled: noise, solvers, intervals of guidance, cached features, layers in 8 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.cameras.orbit import custom_orbit
from sv3d_jax.diffusion.config import Churn, SamplingConfig, StepKind
from sv3d_jax.diffusion.denoiser import guide
from sv3d_jax.diffusion.guidance import triangular_scale
from sv3d_jax.diffusion.sampler import Sampler, levels_at, sample
from sv3d_jax.diffusion.schedule import karras_sigmas
from sv3d_jax.errors import InputError
from sv3d_jax.models.fast.quantize import FORMATS
from tests.tiny_model import SIZE, picture, tiny_pipeline


def test_noise_depends_on_seed_and_shape_alone(pipe):
    alone, together = pipe.noise([7], 5, SIZE), pipe.noise([3, 7], 5, SIZE)
    for one, two in zip(alone[:2], together[:2], strict=True):
        assert (np.asarray(one[0]) == np.asarray(two[1])).all()


def test_churn_draws_the_same_noise_in_a_batch(pipe):
    noise, _, keys = pipe.noise([3, 7], 5, SIZE)
    method, sigmas = SamplingConfig(churn=2.0), pipe.sigmas(4)
    batch = sample(lambda x, sigma: 0.5 * x, noise, sigmas, method, keys)
    alone = sample(lambda x, sigma: 0.5 * x, noise[1:], sigmas, method, keys[1:])
    quiet = sample(lambda x, sigma: 0.5 * x, noise[1:], sigmas)
    np.testing.assert_allclose(batch[1], alone[0], rtol=1e-5)
    assert np.abs(alone - quiet).max() > 0.1


def gaussian(x, sigma):
    """The denoiser of data that are normal with deviation 0.5."""
    return x * 0.25 / (0.25 + jnp.square(sigma)[:, None, None, None, None])


def test_second_order_needs_fewer_steps():
    """Against the ODE's solution for normal data: the error falls with the square of the number of steps."""
    noise = jnp.full((1, 1, 1, 1, 1), 0.7)
    exact = 0.7 * np.sqrt(1 + 700.0**2) * 0.5 / np.sqrt(0.25 + 700.0**2)

    def error(solver, num_steps):
        sigmas = karras_sigmas(num_steps, 0.002, 700.0, 7.0)
        return abs(float(sample(gaussian, noise, sigmas, SamplingConfig(solver=solver)).item()) - exact)

    assert error("dpmpp_2m", 1) == pytest.approx(error("euler", 1), rel=1e-4)  # float32, of values up to 700
    assert error("dpmpp_2m", 80) < error("dpmpp_2m", 40) / 3.5
    assert error("euler", 80) > error("euler", 40) / 2.5
    assert error("dpmpp_2m", 40) < 0.3 * error("euler", 40)


def test_guidance_in_an_interval_leaves_the_other_steps_without():
    sigmas = np.array([8.0, 4.0, 2.0, 1.0, 0.0], np.float32)
    kinds = SamplingConfig(guidance_interval=(2.0, 4.0)).step_kinds(sigmas)
    assert [kind.is_guided for kind in kinds] == [False, True, True, False]


@pytest.mark.parametrize("callback", [None, lambda info: None])
def test_guidance_in_an_interval_is_that_of_a_loop(pipe, callback):
    """Programs take turns by the noise level; with and without a callback the same."""
    options = SamplingConfig(num_steps=4, guidance_interval=(1.0, 10.0))
    orbit = pipe(picture(), options, seed=7, output_type="latent", callback=callback)
    x, sigmas, condition, scale = start_of(pipe, orbit, 4)
    kinds = options.step_kinds(sigmas)
    assert {kind.is_guided for kind in kinds} == {True, False}
    for index, kind in enumerate(kinds):
        denoise = pipe.unet.denoiser(pipe.params["unet"], condition, scale if kind.is_guided else None)
        denoised = denoise(x, sigmas[index : index + 1])
        x = x + (sigmas[index + 1] - sigmas[index]) * (x - denoised) / sigmas[index]
    np.testing.assert_allclose(orbit.latents, x[0], atol=5e-4)


def start_of(pipe, orbit, steps):
    """First latents, noise levels, condition and guidance scale of an orbit with seed 7."""
    noise, pixel_noise, _ = pipe.noise([7], 5, SIZE)
    pixels = orbit.picture[None] / np.float32(255) * 2 - 1
    condition = pipe.condition(pixels, pixel_noise, custom_orbit(None, 10.0, 5))
    sigmas = pipe.sigmas(steps)
    return noise * np.sqrt(1 + sigmas[0] ** 2), sigmas, condition, triangular_scale(5, 1.0, 2.5)


def test_features_are_stored_every_so_often_and_where_guidance_begins_or_ends():
    sigmas = np.array([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], np.float32)
    kinds = SamplingConfig(cache_interval=3, guidance_interval=(2.0, 6.0)).step_kinds(sigmas)
    assert [kind.cache for kind in kinds] == [
        *("store", "reuse"),
        *("store", "reuse", "reuse", "store", "reuse"),
        "store",
    ]
    assert {kind.cache for kind in SamplingConfig().step_kinds(sigmas)} == {"off"}


@pytest.mark.parametrize(
    ("options", "callback"),
    [
        ({}, None),
        ({"guidance_interval": (0.5, 100.0)}, lambda info: None),
        ({"guidance_interval": (0.5, 100.0), "solver": "dpmpp_2m"}, None),
    ],
)
def test_steps_reuse_the_features_that_the_last_full_step_stored(pipe, callback, options):
    """Against a loop that keeps the features itself."""
    sampling, steps = SamplingConfig(cache_interval=3, num_steps=6, **options), 6
    orbit = pipe(picture(), sampling, seed=7, output_type="latent", callback=callback)
    x, sigmas, condition, scale = start_of(pipe, orbit, steps)
    sampler, features = Sampler.from_config(sampling, steps), None
    memory = sampler.solver.init(x)
    for index, kind in enumerate(sampling.step_kinds(sigmas)):
        levels = levels_at(jnp.asarray(sigmas), index)
        branches, features = pipe.unet.branches(
            kind, pipe.params["unet"], condition, x, levels.current[None], features
        )
        denoised = guide(*branches, scale) if kind.is_guided else branches[0]
        x, memory = sampler.solver.update(x, denoised, levels, memory)
    np.testing.assert_allclose(orbit.latents, x[0], atol=5e-4)
    exact = pipe(picture(), seed=7, num_steps=steps, output_type="latent").latents
    assert np.abs(orbit.latents - exact).max() > 5e-3


def test_stored_features_are_those_of_the_network(pipe):
    """Reusing what a step stored at its own input gives its own output."""
    condition = start_of(pipe, pipe(picture(), seed=7, num_steps=1), 1)[2]
    x = jax.random.normal(jax.random.key(0), condition.concat.shape)
    inputs = (pipe.params["unet"], condition, x, jnp.ones(1))
    whole, _ = pipe.unet.branches(StepKind(), *inputs)
    stored, features = pipe.unet.branches(StepKind(cache="store"), *inputs)
    reused, _ = pipe.unet.branches(StepKind(cache="reuse"), *inputs, features)
    for one, two, three in zip(whole, stored, reused, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
        np.testing.assert_allclose(one, three, atol=1e-5)


def test_cached_features_do_not_go_with_sequential_guidance():
    with pytest.raises(InputError, match="sequential classifier-free guidance"):
        tiny_pipeline(low_memory=True)(picture(), cache_interval=2)


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("fp8", 0.08)])
def test_linear_layers_in_8_bits_give_nearly_the_same_orbit(pipe, kind, error):
    """Kernels are rounded once, before the first step, or in every step with low memory."""

    def latents(pipe):
        return pipe(picture(), seed=7, callback=lambda info: None, output_type="latent").latents

    exact, rounded = latents(pipe), tiny_pipeline(quantize=kind)
    for each in (rounded, tiny_pipeline(quantize=kind, low_memory=True)):
        assert error / 4 < np.abs(latents(each) - exact).mean() < error
    prepared = next(program for key, program in rounded.runner.programs.items() if "prepare" in str(key[0]))
    kinds = [leaf.dtype for leaf in jax.tree.leaves(prepared.out_info)]
    assert kinds.count(FORMATS[kind][0]) >= 8 * 2  # of two blocks of two transformers, four kernels each


@pytest.mark.parametrize(("solver", "callback"), [("euler", lambda info: None), ("dpmpp_2m", None)])
def test_guidance_nowhere_is_a_scale_of_one(pipe, solver, callback):
    def latents(**options):
        return pipe(
            picture(), seed=7, num_steps=3, output_type="latent", callback=callback, **options
        ).latents

    never = latents(solver=solver, guidance_interval=(1e4, 1e5))
    one = latents(solver=solver, cfg_min=1.0, cfg_max=1.0)
    np.testing.assert_allclose(never, one, atol=2e-4)
    late = latents(solver=solver, guidance_interval=(0.0, 10.0))
    always = latents(solver=solver)
    assert np.abs(late - never).max() > 1e-3 and np.abs(late - always).max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"solver": "heun"}, "euler or dpmpp_2m"),
        ({"solver": "dpmpp_2m", "churn": Churn(s_churn=1.0)}, "churn goes with"),
        (
            {"guidance_interval": (3.0, 1.0)},
            r"guidance_interval=\(3, 1\): expected LOW HIGH with 0 <= LOW <= HIGH",
        ),
        ({"cache_interval": 0}, "cache_interval=0: must lie between 1"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong, expected):
    with pytest.raises(InputError, match=expected):
        SamplingConfig(**wrong)
