"""The coarse stage beyond what whole reconstructions show."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sv3d_jax import programs
from sv3d_jax.recon.config import NerfConfig, ReconstructConfig
from sv3d_jax.recon.methods import find_method
from sv3d_jax.recon.nerf import stage
from sv3d_jax.recon.nerf.field import albedo, density, density_normals, init_field
from sv3d_jax.recon.nerf.occupancy import visual_hull
from sv3d_jax.recon.nerf.stage import fit_field
from sv3d_jax.recon.runner import compile_ahead
from sv3d_jax.recon.views import prepare_views
from tests.recon.scenes import ball_orbit

TINY = NerfConfig(
    num_levels=2,
    table_size=2**10,
    base_resolution=4,
    finest_resolution=8,
    hidden_width=8,
    num_steps=16,
    rays_per_step=64,
    candidates_per_ray=16,
    samples_per_ray=8,
    occupancy_resolution=8,
    refresh_cells=64,
    opaque_weight=0.005,
    orientation_weight=0.01,
)


def test_normals_point_against_the_gradient_of_density():
    params = init_field(TINY, jax.random.key(0))
    params["tables"] = jax.random.normal(jax.random.key(1), params["tables"].shape)
    # Inside cells of both levels (of 4 and 8 to the box of 4) the field is smooth, up to the kinks of ReLU.
    points = 0.25 + 0.1 * jax.random.uniform(jax.random.key(2), (64, 3))
    gradient = jax.grad(lambda x: density(TINY, params, x).sum())(points)
    expected = -gradient / np.linalg.norm(gradient, axis=-1, keepdims=True)
    cosine = np.sum(expected * density_normals(TINY, params, points), axis=-1)
    assert np.median(cosine) > 0.999


def test_albedo_is_a_half_at_first():
    params = init_field(TINY, jax.random.key(0))
    points = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    np.testing.assert_allclose(albedo(TINY, params, points), 0.5, atol=0.01)


def test_a_paint_that_is_brighter_than_the_light_keeps_its_hue():
    """A yellow where darker paints have set the light to 0.55: what is seen is the product."""
    params, points = init_field(TINY, jax.random.key(0)), jnp.zeros((1, 3))
    target, light = jnp.array([1.0, 0.855, 0.286]), 0.55
    optimizer = optax.adam(0.02)

    def error(params):
        return jnp.sum(jnp.square(light * albedo(TINY, params, points) - target))

    def step(carry, _):
        params, moments = carry
        updates, moments = optimizer.update(jax.grad(error)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    fitted = jax.lax.scan(step, (params, optimizer.init(params)), length=200)[0][0]
    np.testing.assert_allclose(light * albedo(TINY, fitted, points)[0], target, atol=0.01)


def test_optional_losses_are_fitted_and_logged():
    views, _ = prepare_views(ball_orbit(size=16, num_frames=4))
    hull = visual_hull(views, TINY.occupancy_resolution, TINY.hull_tolerance)
    _, log = fit_field(TINY, views, hull, seed=0)
    assert {"opaque", "orientation"} <= log[-1].losses.keys()
    assert log[-1].losses["opaque"] > 0
    total = sum(
        getattr(TINY, f"{name}_weight") * value for name, value in log[-1].losses.items() if name != "loss"
    )
    assert np.isclose(log[-1].losses["loss"], total, rtol=1e-4)


def test_a_fit_of_another_object_finds_the_programs_of_the_first(program_folder, compilations, monkeypatch):
    monkeypatch.setattr(stage, "_PROGRAMS", programs.Programs())

    def fitted(radius: float):
        views, _ = prepare_views(ball_orbit(size=16, num_frames=4, radius=radius))
        hull = visual_hull(views, TINY.occupancy_resolution, TINY.hull_tolerance)
        return fit_field(TINY, views, hull, seed=0)[0]

    first = fitted(0.4)
    assert compilations
    compilations.clear()
    monkeypatch.setattr(stage, "_PROGRAMS", programs.Programs())
    fitted(0.3)
    jax.tree.map(np.testing.assert_array_equal, first, fitted(0.4))
    assert not compilations


def test_a_fit_finds_what_was_compiled_before_there_were_views(monkeypatch):
    config = replace(TINY, rays_per_step=TINY.rays_per_step + 2)
    monkeypatch.setattr("sv3d_jax.recon.runner.in_background", lambda call: call())
    before = len(stage._PROGRAMS.items())
    compile_ahead(find_method("sv3d").stages, replace(ReconstructConfig().resolve(), nerf=config), 4, 16, 16)
    assert len(stage._PROGRAMS.items()) == before + 1
    views, _ = prepare_views(ball_orbit(size=16, num_frames=4))
    fit_field(config, views, visual_hull(views, config.occupancy_resolution, config.hull_tolerance), seed=0)
    assert len(stage._PROGRAMS.items()) == before + 1
