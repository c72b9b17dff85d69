"""The steps of a sampler against loops in NumPy: solvers, corrections on the guided estimate and on branches."""

import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.diffusion.sampler import Correction, sample
from sv3d_jax.errors import InputError
from tests.tiny_model import picture

STEPS = 5
SOLVERS = ("euler", "dpmpp_2m")


def latents(pipe, **options):
    orbit = pipe(picture(), seed=7, num_steps=STEPS, output_type="latent", **options)
    return np.asarray(orbit.latents)


@pytest.fixture(scope="module")
def plain(pipe):
    return {solver: latents(pipe, solver=solver) for solver in SOLVERS}


def identity(denoised, sigma, index):
    return denoised


@pytest.mark.parametrize(
    ("solver", "correct"),
    [
        ("euler", identity),
        ("dpmpp_2m", Correction(identity, on="branches")),
        ("euler", Correction(identity, steps=[1, -1])),
    ],
)
def test_an_identity_gives_the_same_bits(pipe, plain, solver, correct):
    assert (latents(pipe, solver=solver, correct=correct) == plain[solver]).all()


@pytest.mark.parametrize(("solver", "on"), [("euler", "branches"), ("dpmpp_2m", "guided")])
def test_an_identity_on_the_host_changes_nothing_but_rounding(pipe, plain, solver, on):
    """The step is two programs then, and the compiler joins products and sums within one."""
    got = latents(pipe, solver=solver, correct=Correction(identity, on=on, on_host=True))
    np.testing.assert_allclose(got, plain[solver], atol=2e-6 * np.abs(plain[solver]).max())


@pytest.mark.parametrize(("solver", "on_host"), [("euler", False), ("dpmpp_2m", True)])
def test_what_is_returned_at_the_last_step_is_where_sampling_ends(pipe, solver, on_host):
    given = jnp.linspace(-2.0, 2.0, 5 * 8 * 8 * 4).reshape(1, 5, 8, 8, 4)
    correct = Correction(lambda denoised, sigma, index: given, steps=[-1], on_host=on_host)
    ended = latents(pipe, solver=solver, correct=correct)
    np.testing.assert_allclose(ended, given[0], atol=2e-6)


def test_a_host_function_is_called_at_the_chosen_steps_alone(pipe):
    seen = []

    def correct(denoised, sigma, index):
        seen.append((index, round(float(sigma), 3), denoised.shape))
        return np.asarray(denoised) * 0.5

    corrected = latents(pipe, correct=Correction(correct, steps=[1, 3], on_host=True))
    sigmas = pipe.sigmas(STEPS)
    assert seen == [(index, round(float(sigmas[index]), 3), (1, 5, 8, 8, 4)) for index in (1, 3)]
    pure = latents(pipe, correct=Correction(lambda x, *_: x * 0.5, steps=[1, 3]))
    np.testing.assert_allclose(corrected, pure, atol=1e-5)


def numpy_loop(pipe, solver, correct, on, steps):
    """Latents by a loop over the denoiser's branches; correct is a function of arrays."""
    from sv3d_jax.cameras.orbit import custom_orbit
    from sv3d_jax.diffusion.config import StepKind
    from sv3d_jax.diffusion.guidance import triangular_scale

    noise, pixel_noise, _ = pipe.noise([7], 5, 32)
    seen = pipe(picture(), seed=7, num_steps=1, output_type="latent").picture
    pixels = seen[None] / np.float32(255) * 2 - 1
    condition = pipe.condition(pixels, pixel_noise, custom_orbit(None, 10.0, 5))
    scale = np.asarray(triangular_scale(5, 1.0, 2.5))[:, None, None, None]
    sigmas = pipe.sigmas(STEPS).astype(np.float64)
    x, before = np.asarray(noise, np.float64) * np.sqrt(1 + sigmas[0] ** 2), None
    for index in range(STEPS):
        sigma, following = sigmas[index], sigmas[index + 1]
        given = jnp.asarray(x, jnp.float32), jnp.asarray([sigma], jnp.float32)
        branches, _ = pipe.unet.branches(StepKind(), pipe.params["unet"], condition, *given)
        uncond, cond = (np.asarray(branch, np.float64) for branch in branches)
        is_due = steps is None or index in steps
        if on == "branches" and is_due:
            uncond, cond = correct(uncond), correct(cond)
        denoised = uncond + scale * (cond - uncond)
        if on == "guided" and is_due:
            denoised = correct(denoised)
        if solver == "euler" or before is None or following == 0:
            extrapolated = denoised
        else:
            last, now = (
                np.log(sigmas[index - 1]) - np.log(sigma),
                np.log(sigma) - np.log(following),
            )
            extrapolated = denoised + now / (2 * last) * (denoised - before)
        x = following / sigma * x + (1 - following / sigma) * extrapolated
        before = denoised
    return x[0]


@pytest.mark.parametrize(
    ("solver", "on", "steps"),
    [
        ("dpmpp_2m", "guided", None),
        ("euler", "branches", (0, 2)),
        ("dpmpp_2m", "branches", (0, 2)),
        ("euler", "guided", (1, 4)),
    ],
)
def test_corrections_are_those_of_a_plain_loop(pipe, solver, on, steps):
    correction = Correction(lambda x, sigma, index: jnp.clip(x, -0.4, 0.7), on=on, steps=steps)
    expected = numpy_loop(pipe, solver, lambda x: np.clip(x, -0.4, 0.7), on, steps)
    np.testing.assert_allclose(latents(pipe, solver=solver, correct=correction), expected, atol=2e-4)
    if on == "branches":
        host = Correction(lambda x, sigma, index: np.clip(x, -0.4, 0.7), on=on, steps=steps, on_host=True)
        np.testing.assert_allclose(latents(pipe, solver=solver, correct=host), expected, atol=2e-4)


def test_a_correction_knows_the_step_and_its_noise_level():
    """In `sample` alone: the denoiser is replaced altogether."""
    sigmas = np.array([4.0, 2.0, 1.0, 0.0], np.float32)

    def correct(denoised, sigma, index):
        return denoised + sigma + 10.0 * index

    x = sample(lambda x, sigma: 0.0 * x, jnp.ones((1, 1, 1, 1, 1)), sigmas, correct=correct)
    expected = np.sqrt(17.0)
    for index in range(3):
        ratio = sigmas[index + 1] / sigmas[index]
        expected = ratio * expected + (1 - ratio) * (sigmas[index] + 10.0 * index)
    assert float(x.item()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Correction(3), "a function of denoised latents"),  # type: ignore[arg-type]
        (lambda: Correction(identity, on="both"), '"guided" or "branches"'),  # type: ignore[arg-type]
        (lambda: Correction(identity, steps=[5]).for_steps(5), "steps has 5, but there are 5 steps"),
        (
            lambda: sample(
                identity, jnp.ones((1,) * 5), np.ones(2), correct=Correction(identity, "branches")
            ),
            "supports only Correction",
        ),
        (
            lambda: sample(identity, jnp.ones((1,) * 5), np.ones(2), SamplingConfig(churn=1.0)),
            "it needs keys",
        ),
    ],
)
def test_corrections_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        wrong()


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [(lambda x, *_: x[:1, :1], r"got the shape \(1, 1, "), (lambda *_: None, "got None")],
    ids=["one frame", "nothing"],
)
def test_a_correction_that_returns_no_latents_of_the_same_shape_is_refused(pipe, on_host, wrong, says):
    with pytest.raises(InputError, match=f"correct must return latents of the shape .*{says}"):
        pipe(picture(), num_steps=1, output_type="latent", correct=Correction(wrong, on_host=on_host))
