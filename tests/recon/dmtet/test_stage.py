"""The fine stage on a ball, from a coarse surface that is known."""

import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sv3d_jax.cameras.orbit import static_orbit
from sv3d_jax.diffusion.denoiser import Conditioning
from sv3d_jax.diffusion.schedule import karras_sigmas
from sv3d_jax.errors import SV3DError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.metrics.geometry import is_closed
from sv3d_jax.recon import fit as fit_module
from sv3d_jax.recon.capacity import grow_on_overflow
from sv3d_jax.recon.config import LossWeights, MeshConfig, NerfConfig, SDSConfig
from sv3d_jax.recon.dmtet import levels, stage
from sv3d_jax.recon.dmtet.surface import Capacity, Surface, extract
from sv3d_jax.recon.fit import FitHooks
from sv3d_jax.recon.guide import Guide, GuideArrays, make_guide
from sv3d_jax.recon.nerf.field import albedo, init_field
from sv3d_jax.recon.sds import visibility_mask
from sv3d_jax.recon.views import Cameras, Views, prepare_views
from sv3d_jax.render.antialias import mesh_edges
from sv3d_jax.render.lighting import SoftLight
from tests.geometry.test_decimate import ball
from tests.recon.scenes import ball_orbit
from tests.tiny_model import tiny_pipeline

NERF = NerfConfig(num_levels=2, table_size=2**10, finest_resolution=32)
COLOR = partial(albedo, NERF)
CONFIG = MeshConfig(num_steps=48, cells=12, num_lobes=0)
RADIUS = 0.4


@pytest.fixture(scope="module")
def views():
    return prepare_views(ball_orbit(num_frames=4, radius=RADIUS))


@pytest.fixture(scope="module")
def coarse(views):
    """A ball a tenth too large."""
    mesh = ball(resolution=24, radius=9.0)
    return Mesh(1.1 * RADIUS / 9.0 / views[1].scale * mesh.vertices, mesh.faces)


def fit(config, views, coarse, **options):
    """Surface, parameters and log."""
    field = init_field(NERF, jax.random.key(0))
    return stage.fit_surface(config, COLOR, coarse, field, views[0], seed=0, **options)


def test_the_surface_shrinks_to_the_silhouettes_and_is_closed(views, coarse):
    surface, params, log = fit(CONFIG, views, coarse)
    mesh = stage.surface_mesh(surface, min_component=0.01)
    radius = views[1].scale * np.linalg.norm(mesh.vertices, axis=1).mean()
    assert is_closed(mesh) and abs(radius - RADIUS) < 0.05 * RADIUS
    assert params["light"] is None and "illumination" not in log[-1].losses


def test_a_later_fit_finds_its_programs(views, coarse, program_folder, compilations):
    first, _, _ = fit(CONFIG, views, coarse)
    assert compilations
    compilations.clear()
    again, _, _ = fit(CONFIG, views, coarse)
    assert not compilations
    np.testing.assert_array_equal(first.vertices, again.vertices)


def test_a_coarse_surface_between_the_vertices_of_the_grid_is_an_empty_one(views, coarse):
    half_a_cell = 2.0 / CONFIG.cells  # of the box, whose sides are 4
    flat = Mesh(coarse.vertices * [1.0, 1.0, 0.01] + [0.0, 0.0, half_a_cell], coarse.faces)
    with pytest.raises(SV3DError, match="the surface is empty: .* so thin"):
        fit(CONFIG, views, flat)


@pytest.fixture(scope="module")
def seen(views):
    """What the views show of the ball itself, lit evenly."""
    masks = views[0].masks
    poses = views[0].camera_to_box
    normals = np.where(masks[..., None] > 0.99, (views[0].images - 0.5) / 0.4, 0.0)  # as the ball is coloured
    depth = np.linalg.norm(poses[:, :3, 3], axis=1)[:, None, None] * masks
    return stage.Rendered(
        0.9 * views[0].images,
        masks,
        masks,
        normals,
        normals,
        normals,
        depth,
        np.round(masks),
        np.bool_(False),
    )


def test_the_estimated_normals_are_those_of_the_cameras_axes(views, seen):
    assert "normal" not in stage.view_losses(seen, views[0])
    towards = np.linalg.inv(views[0].camera_to_box)[:, :3, :3]
    in_camera = np.einsum("fij,fhwj->fhwi", towards, seen.normals)
    assert in_camera[:, 16, 16, 2].min() > 0.9  # towards the viewer
    same = stage.view_losses(seen, views[0]._replace(normals=in_camera))["normal"]
    other = stage.view_losses(seen, views[0]._replace(normals=in_camera * np.float32([1, 1, -1])))["normal"]
    assert abs(same) < 0.01 and other > 0.5


def test_losses_that_are_asked_for_take_part_in_the_fit(views, coarse, monkeypatch):
    monkeypatch.setattr(stage, "lpips", lambda rendered, target, vgg: vgg["far"] * np.ones(len(rendered)))
    given = views[0]._replace(normals=np.zeros_like(views[0].images))
    field, vgg = init_field(NERF, jax.random.key(0)), {"far": np.float32(3.0)}
    config = replace(CONFIG, num_steps=16, weights=LossWeights(laplacian=0.1))
    _, _, log = stage.fit_surface(config, COLOR, coarse, field, given, 0, vgg=vgg)
    assert log[-1].losses["normal"] == pytest.approx(1.0)  # of normals that are 0
    assert log[-1].losses["perceptual"] == 3.0
    assert log[-1].losses["laplacian"] > 0


def test_steps_that_overflow_are_repeated(views, coarse, monkeypatch):
    monkeypatch.setattr(stage, "_object_pixels", lambda views, count: 512)  # two views of the ball have more
    config = replace(CONFIG, num_steps=16)
    _, params, log = fit(config, views, coarse)
    moved = np.abs(params["sdf"] - stage.start_lattice(config, coarse).sdf).max()
    assert moved > 0.01 and len(log) == 1


def test_a_fit_in_two_levels_has_one_log_and_goes_on_from_the_first(views, coarse, monkeypatch):
    monkeypatch.setattr(levels, "MIN_HALF_SIZE", 16)
    config = replace(CONFIG, cells=24, half_share=0.7)
    surface, _, log = fit(config, views, coarse)
    assert [(info.step, info.total) for info in log] == [(16, 48), (32, 48), (48, 48)]
    mesh = stage.surface_mesh(surface, 0.01)
    radius = np.linalg.norm(mesh.vertices, axis=1).mean() * views[1].scale
    assert is_closed(mesh) and radius == pytest.approx(RADIUS, rel=0.05)  # from 1.1 of it
    halves_alone, _, _ = fit(replace(config, half_share=1.0), views, coarse)
    assert int(surface.num_faces) > 2.5 * int(halves_alone.num_faces)


@pytest.mark.parametrize("killed_at", [16, 32])
def test_killed_after_it_grew_a_fit_goes_on_to_the_same_result(
    views, coarse, tmp_path, monkeypatch, killed_at
):
    """Vertices, faces and pixels all overflow in the first call."""
    monkeypatch.setattr(fit_module, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(stage, "shared_size", lambda count: 1024)
    monkeypatch.setattr(stage, "_object_pixels", lambda views, count: 512)
    grown = []

    def grow(before, after):
        if (again := grow_on_overflow(before, after)) is not None:
            grown.append(again.capacity.static())
        return again

    monkeypatch.setattr(stage, "grow_on_overflow", grow)
    save, kept = tmp_path / "fit.npz", tmp_path / "kept.npz"

    def keep(info):
        if info.step == 16:
            shutil.copy(save, kept)

    config = replace(CONFIG, num_steps=32)
    _, whole, log = fit(config, views, coarse, hooks=FitHooks(callback=keep), save=save)
    assert grown and all(size > start for size, start in zip(grown[-1], (1024, 1024, 512), strict=False))
    grown.clear()
    _, resumed, resumed_log = fit(config, views, coarse, save=kept)
    assert not grown and resumed_log == log
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_surface_that_the_first_level_loses_ends_the_fit(views, coarse, monkeypatch):
    monkeypatch.setattr(levels, "MIN_HALF_SIZE", 16)
    nothing = np.zeros((), np.int32)
    lost = Surface(*[np.zeros((1, 3))] * 3, num_vertices=nothing, num_faces=nothing, overflow=nothing)
    monkeypatch.setattr(stage, "_fit_level", lambda level, *_: (lost, {}, [level.first]))
    surface, _, log = fit(replace(CONFIG, cells=24, half_share=0.7), views, coarse)
    assert surface is lost and log == [0]


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [16, 48])
def test_killed_in_either_level_a_fit_goes_on_to_the_same_result(
    views, coarse, tmp_path, monkeypatch, killed_at
):
    monkeypatch.setattr(fit_module, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(levels, "MIN_HALF_SIZE", 16)
    config = replace(CONFIG, cells=24, num_steps=64, half_share=0.5)
    save = tmp_path / "fine_fit.npz"
    told = []

    def kill(info):
        if info.step == killed_at:
            raise Killed

    _, whole, log = fit(config, views, coarse)
    with pytest.raises(Killed):
        fit(config, views, coarse, hooks=FitHooks(callback=kill), save=save)
    _, resumed, resumed_log = fit(config, views, coarse, hooks=FitHooks(callback=told.append), save=save)
    assert resumed_log == log and [info.step for info in told] == list(range(killed_at + 16, 65, 16))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


# Light and albedo


def fitted_shading(normals, colors, steps=200):
    """Shading (f h w) by the light that the losses alone find for pictures of these normals and colours (f h w 3)."""
    shape = normals.shape[:3]
    ones, nothing, weights = np.ones(shape, np.float32), np.zeros(shape, np.float32), LossWeights()
    views = Views(
        colors, ones, ones, np.zeros((shape[0], 4, 4)), np.ones((shape[0], 2)), np.ones((shape[0], 2))
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, steps, alpha=0.1))

    def loss(light, key):
        shading = light.shade(normals)
        seen = stage.Rendered(colors, ones, shading, normals, normals, colors, nothing, ones, np.bool_(False))
        illumination = stage.losses.illumination_loss(shading, colors, ones)
        parts = stage.light_losses(seen, views, illumination, key)
        return sum(getattr(weights, name) * value for name, value in parts.items())

    @jax.jit
    def run(light):
        def step(carry, key):
            light, moments = carry
            updates, moments = optimizer.update(jax.grad(loss)(light, key), moments)
            return (optax.apply_updates(light, updates), moments), None

        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(step, (light, optimizer.init(light)), keys)[0][0].shade(normals)

    return np.asarray(run(stage.start_light(MeshConfig())))


def two_sides(front, back):
    """Pictures of the two sides of a sheet: normals and colours."""
    normals = np.zeros((2, 16, 16, 3), np.float32)
    normals[0, ..., 1], normals[1, ..., 1] = -1.0, 1.0
    colors = np.broadcast_to(np.float32([front, back])[:, None, None] / 255, (2, 16, 16, 3))
    return normals, colors


@pytest.mark.parametrize(
    "front,back",
    [
        ((255, 219, 73), (192, 181, 73)),
        ((90, 160, 235), (70, 110, 150)),
        ((230, 120, 120), (150, 90, 95)),
        ((220, 90, 40), (40, 40, 205)),
    ],
    ids=["yellows", "blues", "reds", "red and blue"],
)
def test_the_darker_of_two_sides_of_a_sheet_is_not_taken_for_its_shade(front, back):
    shading = fitted_shading(*two_sides(front, back))
    assert shading[1].mean() / shading[0].mean() == pytest.approx(1.0, abs=0.03)


def test_a_side_of_the_same_paint_is_in_the_shade():
    shading = fitted_shading(*two_sides((240, 160, 80), (120, 80, 40)))
    assert shading[1].mean() / shading[0].mean() == pytest.approx(0.5, abs=0.03)


def test_the_light_on_one_paint_is_found_although_even_light_is_preferred():
    """To 5 per cent: 24 lobes do not make every light."""
    normals = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    light = SoftLight(np.float32([0.6, 0.0, 0.8]), 0.35).shade(normals)
    shading = fitted_shading(normals, light[..., None] * np.float32([0.9, 0.5, 0.2]))
    ratio = shading / light
    np.testing.assert_allclose(ratio / np.median(ratio), 1.0, atol=0.05)


# Score distillation

MATRIX = (
    np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
)  # of the encoder: each pixel by itself
DENOISED = 0.3  # whatever the noise


def pixel_guide(views, size):
    """A model that sees each pixel by itself, and the views' own cameras as its only orbit."""
    orbit = Cameras(*(jnp.asarray(leaf[None]) for leaf in views.cameras))
    condition = Conditioning(jnp.zeros((1, 1, 1)), jnp.zeros((1, 4, 4, 4, 1)), jnp.zeros((1, 4, 1)))
    return Guide(
        GuideArrays({"matrix": jnp.asarray(MATRIX)}, orbit, condition, jnp.asarray(karras_sigmas(10))),
        size,
        encode=lambda params, pixels: pixels @ params["matrix"],
        denoise=lambda params, condition, noisy, sigma: jnp.full_like(noisy, DENOISED),
    )


@pytest.fixture(scope="module")
def distilled(views, coarse):
    """From positions of the reference cameras: gradient of the surface's parameters, as it is and by the formula."""
    lattice, (views, _) = stage.start_lattice(CONFIG, coarse), views
    params = {
        "sdf": lattice.sdf,
        "offsets": jnp.zeros_like(lattice.grid.vertices),
        "field": init_field(NERF, jax.random.key(0)),
        "light": None,
    }
    _, capacity = extract(lattice.grid, 2.0 * lattice.grid.vertices, lattice.sdf, Capacity(2**10, 2**11))
    guide = pixel_guide(views, 32)

    def render(params, cameras, size, max_pixels):
        surface = stage.marching_tets(lattice.grid, *stage.displaced(CONFIG, lattice, params), capacity)
        edges = mesh_edges(surface.faces)
        return stage.render_surface(
            COLOR, params, surface.vertices, surface.faces, edges, cameras, size, max_pixels
        )

    @jax.jit
    def both(params, reference):
        data = stage.Data(lattice, views._replace(camera_to_box=reference), None, guide.arrays)

        def loss(params):
            drawn = partial(render, params)
            return stage.distillation(CONFIG, guide, drawn, 2**11, 40, data, jax.random.key(1))[0]

        seen = render(params, views.cameras, (32, 32), 2**11)
        mask, _, _ = visibility_mask(seen.points, seen.normals, reference[:, :3, 3])
        latents = (2 * seen.image - 1) @ MATRIX
        cotangent = mask[..., None] * ((latents - DENOISED) @ (2 * MATRIX.T))
        _, pull_back = jax.vjp(lambda params: render(params, views.cameras, (32, 32), 2**11).image, params)
        return jax.grad(loss)(params), pull_back(cotangent)[0]

    def from_positions(positions):
        reference = np.tile(np.eye(4, dtype=np.float32), (len(positions), 1, 1))
        reference[:, :3, 3] = positions
        return both(params, reference)

    return from_positions


def test_gradient_of_the_surface_is_that_of_masked_pictures(distilled):
    got, expected = distilled(6.0 * np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    assert np.any(expected["sdf"]) and np.any(expected["offsets"])
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * np.abs(other).max())


def test_gradient_is_0_where_the_orbit_shows_everything(distilled):
    """From afar on all axes some camera sees every normal within 55 degrees."""
    got, _ = distilled(1e3 * np.concatenate([np.eye(3), -np.eye(3)]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize("masked", [True, False])
def test_naive_distillation_changes_what_the_orbit_shows_as_well(views, masked):
    """Normals look straight at a reference camera; every other pixel is background."""
    rng, flat = np.random.default_rng(0), jnp.zeros((4, 8, 8))
    covered = jnp.asarray(np.indices((4, 8, 8)).sum(0) % 2, jnp.float32)
    position = views[0].camera_to_box[0, :3, 3]
    normals = covered[..., None] * position / np.linalg.norm(position)

    def loss(image):
        seen = stage.Rendered(
            image, flat, flat, 0 * normals, normals, normals, flat, covered, jnp.zeros((), bool)
        )
        config = replace(CONFIG, sds=SDSConfig(masked=masked))
        data, key = stage.Data(None, views[0], None, guide.arrays), jax.random.key(1)
        return stage.distillation(config, guide, lambda *_: seen, 0, 40, data, key)[0]

    guide = pixel_guide(views[0], 8)
    gradient = jax.grad(loss)(jnp.asarray(rng.random((4, 8, 8, 3)), jnp.float32))
    changed = np.zeros_like(covered) if masked else covered
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), changed > 0)


@pytest.mark.parametrize(
    ("num_steps", "share", "first", "last"), [(1008, 0.2, 800, 1007), (192, 0.2, 144, 191), (10, 0.2, 0, 15)]
)
def test_distillation_takes_the_last_calls(num_steps, share, first, last):
    steps = stage.sds_steps(MeshConfig(num_steps=num_steps, sds=SDSConfig(share=share)))
    assert (steps[0], steps[-1]) == (first, last)


@pytest.fixture(scope="module")
def around():
    """A ball seen from its equator alone, and a model with random weights that knows a view of it."""
    views = prepare_views(ball_orbit(radius=RADIUS, cameras=static_orbit(6, elevation_deg=0.0)))
    return views, make_guide(tiny_pipeline(), views[0], 5, num_orbits=4, seed=0)


@pytest.mark.slow
def test_a_model_changes_what_no_view_shows(around, coarse):
    views, guide = around
    config = replace(CONFIG, sds=SDSConfig(share=0.3, weight=0.01))
    lattice = stage.start_lattice(config, coarse)
    _, without, _ = fit(config, views, coarse)
    _, guided, log = fit(config, views, coarse, guide=guide)
    assert ["sds" in info.losses for info in log] == [False, False, True]
    change = np.abs(guided["sdf"] - without["sdf"])
    # Normals less than 54 degrees up are seen within 60 degrees.
    height = np.abs(lattice.grid.vertices[:, 2]) / np.linalg.norm(lattice.grid.vertices, axis=1)
    seen, unseen = height < 0.7, height > 0.9
    assert change[unseen].mean() > 20 * change[seen].mean()


@pytest.mark.slow
def test_a_guided_fit_that_was_cut_short_goes_on_to_the_same_result(around, coarse, tmp_path, monkeypatch):
    """The capacity for the pixels of the random orbit is too small at first."""
    monkeypatch.setattr(fit_module, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(stage, "_orbit_pixels", lambda views, guide: 2**11)
    views, guide = around
    config = replace(CONFIG, num_steps=32, sds=SDSConfig(share=1.0))
    save, half_way = tmp_path / "fit.npz", tmp_path / "half_way.npz"

    def keep(info):
        if info.step == 16:
            shutil.copy(save, half_way)

    _, whole, log = fit(config, views, coarse, guide=guide, hooks=FitHooks(callback=keep), save=save)
    _, resumed, resumed_log = fit(config, views, coarse, guide=guide, save=half_way)
    assert resumed_log == log
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
