"""Fine stage: signed distances on a grid of tetrahedra, colours and light, fitted together to whole pictures."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sv3d_jax.arrays import Array, Bool, Int, Params, PRNGKeyArray, Scalar, on_device
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.metrics.perceptual import lpips
from sv3d_jax.recon import losses
from sv3d_jax.recon.capacity import GrowingCapacity, grow_on_overflow, shared_size, whole_blocks
from sv3d_jax.recon.config import MeshConfig
from sv3d_jax.recon.dmtet.levels import (
    START,
    FitLevel,
    Lattice,
    displaced,
    fit_levels,
    start_lattice,
    surface_mesh,
    views_of_step,
)
from sv3d_jax.recon.dmtet.render import Rendered, render_surface
from sv3d_jax.recon.dmtet.surface import Capacity, Surface, extract, marching_tets
from sv3d_jax.recon.fit import NO_HOOKS, STEPS_PER_CALL, FitHooks, FitInfo, fit, half_fit
from sv3d_jax.recon.guide import Guide, GuideArrays
from sv3d_jax.recon.representations import ColorField
from sv3d_jax.recon.sds import sds_loss, visibility_mask
from sv3d_jax.recon.views import BOX_HALF_SIZE, Views, half_size
from sv3d_jax.render.antialias import Edges, closed_mesh_edges
from sv3d_jax.render.interpolate import face_normals
from sv3d_jax.render.lighting import SGLight, init_sg_light

SPARE = 1.25  # capacity for vertices and faces at the start, over what the coarse surface needs
SPARE_PIXELS = 1.1  # capacity for pixels, over what the masks cover
WORLD_TO_BOX = BOX_HALF_SIZE / 0.6  # box units to a unit of SV3D's world, in which the paper gives lengths
NEARBY_STD = 0.01 * WORLD_TO_BOX  # of the points that the albedo is compared with (SV3D)
NEARBY_POINTS = 4096  # of each step
RATES = {"sdf": 1.0, "offsets": 8.0, "field": 3.0, "light": 1.0}  # learning rates over `learning_rate`
LAST_RATE = 0.02  # share of the learning rates that is left at the end
MIN_PART = 0.01  # share of the faces below which a loose part is not handed to the next level
MANY_PAINTS = 4  # L_illum is scaled by P(two random pixels differ in chromaticity)^MANY_PAINTS


class StepSizes(NamedTuple):
    """Sizes of the arrays of a step (`recon/capacity.py`)."""

    vertices: int
    faces: int
    pixels: int  # that the object covers, in all views of a step together
    orbit_pixels: int  # the same in all frames of a random orbit of the distillation

    @property
    def mesh(self) -> Capacity:
        """Those of the surface."""
        return Capacity(self.vertices, self.faces)


class MeshState(NamedTuple):
    """What the fit changes."""

    params: Params  # "sdf", "offsets", "field" and "light"
    optimizer: optax.OptState
    step: Int[Array, ""]
    capacity: GrowingCapacity  # of `StepSizes`


class Data(NamedTuple):
    """What the fit is given and does not change."""

    lattice: Lattice
    views: Views
    vgg: Params | None
    guide: GuideArrays | None


def fit_surface(
    config: MeshConfig,
    color: ColorField,
    coarse: Mesh,
    field: Params,
    views: Views,
    seed: int,
    hooks: FitHooks = NO_HOOKS,
    save: Path | None = None,
    vgg: Params | None = None,
    guide: Guide | None = None,
) -> tuple[Surface, Params, list[FitInfo]]:
    """Fit surface, colours and light to the views (SV3D, section 4), from a coarse mesh and the parameters of `color`.

    Returns the surface in box coordinates, the parameters and the log. A preview among the `hooks` is shown pairs of
    surface and parameters. With `vgg`, the weights of LPIPS, pictures are compared by it. With a `guide` the last steps
    add score distillation.

    With a `half_share` the first steps see the views at half their size, and fit a surface on half of the cells, from
    which the other steps start anew. `save` is where an unfinished fit is kept; beside it, that of the first steps.
    """
    start: Params = {"field": field, "light": start_light(config)}
    levels, lattice = fit_levels(config, coarse, views)
    surface, log = None, []
    for level in levels:
        if surface is not None:
            if not surface.num_faces:
                break
            lattice = start_lattice(level.config, surface_mesh(surface, MIN_PART))
        file = half_fit(save) if save is not None and level.is_half else save
        surface, start, part = _fit_level(level, color, lattice, start, views, seed, hooks, file, vgg, guide)
        log += part
    return surface, start, log


def _fit_level(
    level: FitLevel,
    color: ColorField,
    lattice: Lattice,
    start: Params,
    views: Views,
    seed: int,
    hooks: FitHooks,
    save: Path | None,
    vgg: Params | None,
    guide: Guide | None,
) -> tuple[Surface, Params, list[FitInfo]]:
    """The steps of one level, from a surface and the parameters of colours and light."""
    config, total = level.config, STEPS_PER_CALL * math.ceil(level.config.num_steps / STEPS_PER_CALL)
    views = on_device(half_size(views) if level.is_half else views)
    state = _start_state(level, lattice, start, views, guide)

    def surface_of(state):
        capacity = state.capacity.static().mesh
        return extract(lattice.grid, *displaced(config, lattice, state.params), capacity)[0]

    def choose_step(state):
        is_guided = int(state.step) in sds_steps(config)
        return partial(_step, level, color, guide if is_guided else None, state.capacity.static())

    preview = hooks.preview and hooks.preview.of(lambda state: (surface_of(state), state.params))
    hooks = replace(hooks, preview=preview, choose_step=choose_step, retry=grow_on_overflow)
    data = Data(lattice, views, vgg, None if guide is None else guide.arrays)
    key = jax.random.fold_in(jax.random.key(seed), level.first)
    state, log = fit(
        choose_step(state),
        state,
        data,
        level.num_steps,
        key,
        hooks,
        save=save,
        before=level.first,
        total=total,
    )
    return surface_of(state), state.params, log


def sds_steps(config: MeshConfig) -> range:
    """The steps with score distillation: the last ones, rounded up to whole calls of the fit."""
    calls = math.ceil(config.num_steps / STEPS_PER_CALL)
    first = calls - math.ceil(config.sds.share * calls)
    return range(first * STEPS_PER_CALL, calls * STEPS_PER_CALL)


def start_light(config: MeshConfig) -> SGLight | None:
    """Even light from all sides, or None where the light is not modelled (`num_lobes` is 0)."""
    return init_sg_light(config.num_lobes) if config.num_lobes else None


def view_losses(seen: Rendered, views: Views, vgg: Params | None = None) -> dict[str, Array]:
    """The losses of SV3D's appendix on what views show (colours, coverage, depth, normals, shading), by name.

    `vgg` are the weights of LPIPS.
    """
    valid = losses.eroded(views.masks) * losses.eroded(seen.covered)
    if vgg is None:
        perceptual = losses.perceptual_loss(seen.image, views.images)
    else:
        perceptual = jnp.mean(lpips(seen.image, views.images, vgg))
    parts = {
        "photometric": losses.photometric_loss(seen.image, views.images),
        "mask": losses.mask_loss(seen.opacity, views.masks, views.mask_weights),
        "perceptual": perceptual,
        "illumination": losses.illumination_loss(seen.shading, views.images, valid),
        "depth": losses.depth_smoothness_loss(seen.depth, seen.covered, valid),
        "bilateral": losses.bilateral_loss(seen.normals, views.images, valid),
    }
    if views.normals is not None:
        normals = losses.normals_in_camera(seen.normals, views.camera_to_box)
        parts["normal"] = losses.normal_loss(normals, views.normals, valid)
    return parts


def _start_state(
    level: FitLevel,
    lattice: Lattice,
    start: Params,
    views: Views,
    guide: Guide | None,
) -> MeshState:
    config = level.config
    params = start | {"sdf": lattice.sdf, "offsets": jnp.zeros_like(lattice.grid.vertices)}
    surface, _ = extract(lattice.grid, *displaced(config, lattice, params), START)
    sizes = StepSizes(
        shared_size(SPARE * surface.num_vertices),
        shared_size(SPARE * surface.num_faces),
        _object_pixels(views, config.views_per_step),
        0 if guide is None else _orbit_pixels(views, guide),
    )
    return MeshState(
        params=params,
        optimizer=_optimizer(level).init(params),
        step=jnp.int32(level.first),
        capacity=GrowingCapacity.of(sizes),
    )


def _object_pixels(views: Views, count: int) -> int:
    """Capacity for the pixels that the object covers in any `count` views, with some to spare."""
    areas = np.sort((np.asarray(views.masks) > 0).sum(axis=(1, 2)))[-count:]
    return whole_blocks(SPARE_PIXELS * areas.sum())


def _orbit_pixels(views: Views, guide: Guide) -> int:
    """The same for all frames of a random orbit, each as full as the fullest view."""
    share = (np.asarray(views.masks) > 0).mean(axis=(1, 2)).max()
    return whole_blocks(SPARE * share * guide.num_frames * guide.size**2)


def _optimizer(level: FitLevel) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(level.config.learning_rate, level.num_steps, alpha=LAST_RATE)
    return optax.chain(optax.adam(schedule, b2=0.99, eps=1e-15), optax.stateless(_at_rates))


def _at_rates(updates: Params, _: Params | None) -> Params:
    """Updates at the learning rates of their kinds."""
    return {name: optax.tree.scale(RATES[name], tree) for name, tree in updates.items()}


def _step(
    level: FitLevel,
    color: ColorField,
    guide: Guide | None,
    sizes: StepSizes,
    state: MeshState,
    data: Data,
    key: PRNGKeyArray,
) -> tuple[MeshState, dict[str, Array]]:
    loss = partial(_loss, level, color, guide, sizes)
    gradient, (parts, overflow) = jax.grad(loss, has_aux=True)(state.params, state.step, data, key)
    updates, moments = _optimizer(level).update(gradient, state.optimizer)
    params = optax.apply_updates(state.params, updates)
    capacity = state.capacity.with_overflow(overflow)
    return MeshState(params, moments, state.step + 1, capacity), parts


def _loss(
    level: FitLevel,
    color: ColorField,
    guide: Guide | None,
    sizes: StepSizes,
    params: Params,
    step: Int[Array, ""],
    data: Data,
    key: PRNGKeyArray,
) -> tuple[Scalar, tuple[dict[str, Array], StepSizes]]:
    """The weighted sum of the losses for some of the views; also each of them, and what overflowed."""
    lattice, views, vgg, _ = data
    config = level.config
    point_key, pair_key, guide_key = jax.random.split(key, 3)
    frames = views_of_step(step, config.views_per_step, len(views.images))
    some = jax.tree.map(lambda leaf: leaf[frames], views)
    surface = marching_tets(lattice.grid, *displaced(config, lattice, params), sizes.mesh)
    edges = closed_mesh_edges(surface.faces, sizes.vertices)
    render = partial(render_surface, color, params, surface.vertices, surface.faces, edges)
    seen = render(some.cameras, views.masks.shape[1:], sizes.pixels)
    parts = view_losses(seen, some, vgg) | _surface_losses(color, params, surface, edges, seen, point_key)
    if params["light"] is None:
        del parts["illumination"]
    else:
        parts |= light_losses(seen, some, parts["illumination"], pair_key)
    if config.weights.laplacian:
        parts["laplacian"] = losses.laplacian_loss(surface.vertices, edges.vertices, edges.faces)
    done = (step - level.first) / level.num_steps
    ramp = jnp.maximum(1.0 - 4.0 * done, 0.05)  # the sign term, over the first quarter
    weights = asdict(config.weights) | {"sdf_sign": config.weights.sdf_sign * ramp}
    total = sum(weights[name] * value for name, value in parts.items())
    parts["loss"] = total
    orbit_overflow = jnp.zeros((), bool)
    if guide is not None:
        distilled, parts["sds"], orbit_overflow = distillation(
            config, guide, render, sizes.orbit_pixels, step, data, guide_key
        )
        total += config.sds.weight * distilled
    mesh_overflow = surface.num_vertices > sizes.vertices, surface.num_faces > sizes.faces
    return total, (parts, StepSizes(*mesh_overflow, seen.overflow, orbit_overflow))


def light_losses(seen: Rendered, views: Views, illumination: Scalar, key: PRNGKeyArray) -> dict[str, Array]:
    """The losses that separate light and albedo, by name; `illumination` is the value of SV3D's prior (L_illum).

    That prior takes dark parts for parts in the shade. With many different paints this averages out. With few it does
    not: the darker side of a two-coloured sheet would be taken for shaded. There the prior counts little, and an even
    light is preferred unless places of the same chromaticity differ in brightness.
    """
    pairs = losses.paint_pairs(seen.shading, views.images, seen.covered * views.masks, key)
    many = (1.0 - losses.same_chromaticity_probability(pairs)) ** MANY_PAINTS
    return {
        "illumination": many * illumination,
        "evenness": (1.0 - many) * losses.evenness_loss(pairs),
        "chromaticity": losses.chromaticity_loss(pairs),
    }


def distillation(
    config: MeshConfig,
    guide: Guide,
    render: Callable[..., Rendered],
    max_pixels: int,
    step: Int[Array, ""],
    data: Data,
    key: PRNGKeyArray,
) -> tuple[Scalar, Scalar, Bool[Array, ""]]:
    """Score distillation on one of the guide's orbits: the loss, its gradient's root mean square, and the overflow.

    Only the gradient of the loss means something, not its value. `render` takes the last three arguments of
    `render_surface`: cameras, size and capacity for pixels.
    """
    orbit_key, gradient_key = jax.random.split(key)
    orbit = jax.random.randint(orbit_key, (), 0, len(data.guide.condition.vector))
    cameras = jax.tree.map(lambda leaf: leaf[orbit], data.guide.cameras)
    seen = render(cameras, (guide.size, guide.size), max_pixels)
    mask = seen.covered
    if config.sds.masked:
        mask, _, _ = visibility_mask(seen.points, seen.normals, data.views.camera_to_box[:, :3, 3])
    steps = sds_steps(config)
    gradient = guide.gradient(
        data.guide, orbit, seen.image, mask, step - steps.start, len(steps), gradient_key
    )
    return sds_loss(seen.image, gradient), jnp.sqrt(jnp.mean(jnp.square(gradient))), seen.overflow


def _surface_losses(
    color: ColorField, params: Params, surface: Surface, edges: Edges, seen: Rendered, key: PRNGKeyArray
) -> dict[str, Array]:
    """The losses that look at the surface itself, by name."""
    here, nearby, on_object = _nearby(seen, key)
    there = color(params["field"], nearby)
    normals = face_normals(surface.vertices, surface.faces)
    return {
        "albedo": losses.albedo_smoothness_loss(here, there, on_object),
        "normal_consistency": losses.normal_consistency_loss(normals, edges.faces),
        "sdf_sign": losses.sdf_sign_loss(params["sdf"], surface.edges),
    }


def _nearby(seen: Rendered, key: Array) -> tuple[Array, Array, Array]:
    """For random pixels: the albedo, a point near the surface point, and whether the pixel shows the object."""
    pixel_key, move_key = jax.random.split(key)
    pixel = jax.random.randint(pixel_key, (NEARBY_POINTS,), 0, seen.covered.size)
    points = jax.lax.stop_gradient(seen.points.reshape(-1, 3)[pixel])
    nearby = losses.nearby_points(points, NEARBY_STD, move_key)
    return seen.albedo.reshape(-1, 3)[pixel], nearby, seen.covered.reshape(-1)[pixel]
