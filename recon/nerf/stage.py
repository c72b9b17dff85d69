"""Coarse stage: fit a hash-grid NeRF to the views of an orbit."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sv3d_jax.arrays import Array, Float, Int, Params, PRNGKeyArray, Scalar, on_device
from sv3d_jax.programs import Programs, kept_jit
from sv3d_jax.recon.config import NerfConfig
from sv3d_jax.recon.fit import NO_HOOKS, FitHooks, FitInfo, compile_call, fit
from sv3d_jax.recon.losses import (
    distortion_loss,
    mask_loss,
    nearness_loss,
    opaque_loss,
    orientation_loss,
    photometric_loss,
)
from sv3d_jax.recon.nerf.field import density, density_and_albedo, density_normals, init_field
from sv3d_jax.recon.nerf.occupancy import (
    Occupancy,
    Samples,
    hull_pictures,
    march,
    meets_hull,
    refresh,
    start_occupancy,
)
from sv3d_jax.recon.views import Cameras, Views
from sv3d_jax.render.volume import Composite, composite


class FieldState(NamedTuple):
    """What the fit changes."""

    params: Params
    optimizer: optax.OptState
    occupancy: Occupancy
    step: Int[Array, ""]


def fit_field(
    config: NerfConfig,
    views: Views,
    hull: np.ndarray,
    seed: int,
    hooks: FitHooks = NO_HOOKS,
    save: Path | None = None,
) -> tuple[FieldState, list[FitInfo]]:
    """Fit a field to the views (SV3D, section 4), inside the visual hull; returns the last state and the log.

    A preview among the `hooks` is shown `FieldState`s. `save` is where an unfinished fit is kept.
    """
    params, moments, fit_key = _start(np.uint32(seed), config=config)
    state = FieldState(params, moments, start_occupancy(hull), on_device(np.int32(0)))
    data = on_device((views, *_pixels_of_interest(config, hull, views)))
    hooks = _with_refresh(hooks, config)
    step = partial(_step, config)
    return fit(step, state, data, config.num_steps, fit_key, hooks, save=save, programs=_PROGRAMS)


def compile_fit(config: NerfConfig, views: Views) -> None:
    """Compile what `fit_field` will need for views of these shapes, which may be ShapeDtypeStructs."""

    def start(seed: Array) -> tuple[FieldState, PRNGKeyArray]:
        hull = jnp.zeros((config.occupancy_resolution,) * 3, bool)
        params, moments, key = _start(seed, config=config)
        return FieldState(params, moments, start_occupancy(hull), jnp.zeros((), jnp.int32)), key

    state, key = jax.eval_shape(start, np.uint32(0))
    pixels = jax.ShapeDtypeStruct((math.prod(views.masks.shape),), jnp.int32)
    data = (views, pixels, jax.ShapeDtypeStruct((), jnp.int32))
    compile_call(_PROGRAMS, partial(_step, config), state, data, key, _with_refresh(NO_HOOKS, config))


_PROGRAMS = Programs(effort=1)
"""Those of all coarse fits: they depend on settings and on the views' sizes alone."""


def _with_refresh(hooks: FitHooks, config: NerfConfig) -> FitHooks:
    return replace(hooks, before_call=partial(_refresh_occupancy, config))


def render_samples(config: NerfConfig, params: Params, samples: Samples) -> Composite:
    """What rays see of the field, over white."""
    shape = samples.lengths.shape
    sigma, color = density_and_albedo(config, params, samples.points.reshape(-1, 3))
    return composite(
        sigma.reshape(shape), color.reshape(*shape, 3), samples.lengths, samples.depths, jnp.ones(3)
    )


def pixel_rays(views: Views, pixel: Int[Array, "n"]) -> tuple[Float[Array, "n 3"], Float[Array, "n 3"]]:
    """Origins and unit directions of the rays through flat pixel numbers (frame, row, column)."""
    return camera_rays(views.cameras, views.masks.shape[1:], pixel)


def camera_rays(
    cameras: Cameras, size: tuple[int, int], pixel: Int[Array, "n"]
) -> tuple[Float[Array, "n 3"], Float[Array, "n 3"]]:
    """The same for cameras whose pictures have a size (h, w)."""
    height, width = size
    frame, place = pixel // (height * width), pixel % (height * width)
    row, column = place // width, place % width
    focal, center, pose = cameras.focal_px[frame], cameras.center_px[frame], cameras.camera_to_box[frame]
    x = (column + 0.5 - center[:, 0]) / focal[:, 0]
    y = (center[:, 1] - row - 0.5) / focal[:, 1]
    directions = jnp.einsum(
        "nij,nj->ni", pose[:, :3, :3], jnp.stack([x, y, -jnp.ones_like(x)], -1), precision="highest"
    )
    return pose[:, :3, 3], directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)


def _optimizer(config: NerfConfig) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps, alpha=0.1)
    return optax.adam(schedule, b2=0.99, eps=1e-15)


def _step(
    config: NerfConfig, state: FieldState, data, key: PRNGKeyArray
) -> tuple[FieldState, dict[str, Array]]:
    gradients, losses = jax.grad(partial(_loss, config), has_aux=True)(
        state.params, state.occupancy, state.step, data, key
    )
    updates, moments = _optimizer(config).update(gradients, state.optimizer)
    params = optax.apply_updates(state.params, updates)
    return FieldState(params, moments, state.occupancy, state.step + 1), losses


def _refresh_occupancy(config: NerfConfig, state: FieldState, key: PRNGKeyArray) -> FieldState:
    field_density = partial(density, config, state.params)
    return state._replace(occupancy=refresh(state.occupancy, field_density, config.refresh_cells, key))


def _loss(
    config: NerfConfig,
    params: Params,
    occupancy: Occupancy,
    step: Int[Array, ""],
    data: tuple[Views, Int[Array, "p"], Int[Array, ""]],
    key: PRNGKeyArray,
) -> tuple[Scalar, dict[str, Array]]:
    """The weighted sum of the losses on random rays, and each of them by name."""
    views, pixels, num_pixels = data
    pixel_key, march_key = jax.random.split(key)
    pixel = pixels[jax.random.randint(pixel_key, (config.rays_per_step,), 0, num_pixels)]
    origins, directions = pixel_rays(views, pixel)
    samples = march(config, occupancy, origins, directions, march_key)
    seen = render_samples(config, params, samples)
    # The distortion loss comes in slowly: density that is concentrated too early hides what is behind it.
    ramp = jnp.minimum(step / config.num_steps, 1.0)
    parts = {
        "photometric": photometric_loss(seen.color, views.images.reshape(-1, 3)[pixel]),
        "mask": mask_loss(
            seen.opacity, views.masks.reshape(-1)[pixel], views.mask_weights.reshape(-1)[pixel]
        ),
        "distortion": ramp * distortion_loss(seen.weights, samples.depths, samples.lengths),
        "nearness": nearness_loss(seen.weights, samples.depths, samples.entries),
    }
    if config.opaque_weight:
        parts["opaque"] = opaque_loss(seen.opacity)
    if config.orientation_weight:
        normals = density_normals(config, params, samples.points.reshape(-1, 3))
        parts["orientation"] = orientation_loss(
            seen.weights, normals.reshape(samples.points.shape), directions
        )
    total = sum(getattr(config, f"{name}_weight") * value for name, value in parts.items())
    return total, parts | {"loss": total}


def _pixels_of_interest(
    config: NerfConfig, hull: np.ndarray, views: Views
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, ""]]:
    """Pixels whose rays meet the hull, in front of zeros, and how many they are.

    The others see the background whatever the field does. The list keeps the length of all pixels, so that one
    compiled program serves every object.
    """
    (near,) = np.nonzero(hull_pictures(views, hull).ravel())
    chunk = 2**14
    pixels = np.resize(near.astype(np.int32), -(-len(near) // chunk) * chunk)
    parts = [_meets(hull, views, part, config=config) for part in pixels.reshape(-1, chunk)]
    found = near[np.concatenate(parts)[: len(near)]]
    listed = np.zeros(views.masks.size, np.int32)
    listed[: len(found)] = found
    return listed, np.int32(len(found))


@kept_jit
def _meets(hull, views, pixel, *, config):
    return meets_hull(config, hull, *pixel_rays(views, pixel))


@kept_jit
def _start(seed, *, config: NerfConfig) -> tuple[Params, optax.OptState, PRNGKeyArray]:
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    params = init_field(config, init_key)
    return params, _optimizer(config).init(params), fit_key
