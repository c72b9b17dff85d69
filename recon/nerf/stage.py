"""Coarse stage: fit a hash-grid NeRF to the views of an orbit."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sv3d_jax.arrays import Array, Float, Int, Params
from sv3d_jax.recon.config import NerfConfig
from sv3d_jax.recon.fit import FitInfo, Look, fit
from sv3d_jax.recon.losses import (
    distortion_loss,
    mask_loss,
    nearness_loss,
    opaque_loss,
    orientation_loss,
    photometric_loss,
)
from sv3d_jax.recon.nerf.field import density, density_and_albedo, density_normals, init_field
from sv3d_jax.recon.nerf.occupancy import Occupancy, Samples, march, refresh, start_occupancy
from sv3d_jax.recon.views import Views
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
    callback: Callable[[FitInfo], None] | None = None,
    save: Path | None = None,
    look: Look | None = None,
) -> tuple[FieldState, list[FitInfo]]:
    """The field that explains the views, inside the hull."""
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    optimizer = optax.adam(
        optax.cosine_decay_schedule(config.learning_rate, config.num_steps, alpha=0.1), b2=0.99, eps=1e-15
    )
    params = init_field(config, init_key)
    state = FieldState(params, optimizer.init(params), start_occupancy(hull), jnp.zeros((), jnp.int32))
    views = jax.tree.map(jnp.asarray, views)
    pixels, num_pixels = _pixels_of_interest(config, state.occupancy, views)

    def loss(params, occupancy, step, data, key):
        views, pixels, num_pixels = data
        pixel_key, march_key = jax.random.split(key)
        pixel = pixels[jax.random.randint(pixel_key, (config.rays_per_step,), 0, num_pixels)]
        origins, directions = pixel_rays(views, pixel)
        samples = march(config, occupancy, origins, directions, march_key)
        seen = render_samples(config, params, samples)
        # Fog first, for what is opaque too early hides what is behind it; a hard surface in the end.
        ramp = jnp.minimum(step / config.num_steps, 1.0)
        parts = {
            "photometric": photometric_loss(seen.color, views.images.reshape(-1, 3)[pixel]),
            "mask": mask_loss(
                seen.opacity, views.masks.reshape(-1)[pixel], views.mask_weights.reshape(-1)[pixel]
            ),
            "distortion": ramp * distortion_loss(seen.weights, samples.depths, samples.lengths),
            "nearness": nearness_loss(seen.weights, samples.depths),
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

    def step(state, data, key):
        gradients, losses = jax.grad(loss, has_aux=True)(state.params, state.occupancy, state.step, data, key)
        updates, moments = optimizer.update(gradients, state.optimizer)
        params = optax.apply_updates(state.params, updates)
        return FieldState(params, moments, state.occupancy, state.step + 1), losses

    def begin(state, key):
        field_density = partial(density, config, state.params)
        return state._replace(occupancy=refresh(state.occupancy, field_density, config.refresh_cells, key))

    data = views, pixels, num_pixels
    return fit(step, state, data, config.num_steps, fit_key, callback, begin=begin, save=save, look=look)


def render_samples(config: NerfConfig, params: Params, samples: Samples) -> Composite:
    """What rays see of the field, over white."""
    shape = samples.lengths.shape
    sigma, color = density_and_albedo(config, params, samples.points.reshape(-1, 3))
    return composite(
        sigma.reshape(shape), color.reshape(*shape, 3), samples.lengths, samples.depths, jnp.ones(3)
    )


def pixel_rays(views: Views, pixel: Int[Array, "n"]) -> tuple[Float[Array, "n 3"], Float[Array, "n 3"]]:
    """Origins and unit directions of the rays through flat pixel numbers (frame, row, column)."""
    height, width = views.masks.shape[1:]
    frame, place = pixel // (height * width), pixel % (height * width)
    row, column = place // width, place % width
    focal, center, pose = views.focal_px[frame], views.center_px[frame], views.camera_to_box[frame]
    x = (column + 0.5 - center[:, 0]) / focal[:, 0]
    y = (center[:, 1] - row - 0.5) / focal[:, 1]
    directions = jnp.einsum(
        "nij,nj->ni", pose[:, :3, :3], jnp.stack([x, y, -jnp.ones_like(x)], -1), precision="highest"
    )
    return pose[:, :3, 3], directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)


def _pixels_of_interest(config, occupancy, views):
    """Pixels whose rays meet the hull, in front of all others, and how many they are.

    The others see the background whatever the field does. The list keeps the length of all pixels, so that one
    compiled program serves every object.
    """
    num_pixels = views.masks.size

    @jax.jit
    def meets_hull(occupancy, views, pixel):
        return march(config, occupancy, *pixel_rays(views, pixel), None).lengths[:, 0] > 0

    chunk = 2**14
    pixels = np.arange(-(-num_pixels // chunk) * chunk) % num_pixels
    meets = np.concatenate([meets_hull(occupancy, views, part) for part in pixels.reshape(-1, chunk)])[
        :num_pixels
    ]
    return jnp.argsort(~meets, stable=True), meets.sum()
