"""Where samples are placed: in the visual hull of the masks at first, then where the field is dense (a coarse grid)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from sv3d_jax.arrays import Array, Bool, Float, PRNGKeyArray
from sv3d_jax.recon.config import NerfConfig
from sv3d_jax.recon.views import BOX_HALF_SIZE, Views

INITIAL_DENSITY = 1.0  # of hull cells, before the field was evaluated
DECAY = 0.95
MIN_DENSITY = 0.3  # of an occupied cell: alpha 0.01 over 1/128 of the box side
OPAQUE = 1e-3  # transmittance from which on nothing more is seen


class Occupancy(NamedTuple):
    """Running density of the cells of a cubic grid over the box, x slowest; 0 outside the hull."""

    density: Float[Array, "r r r"]
    core: Float[
        Array, "r r r"
    ]  # eroded density: minimum over the 3x3x3 neighbourhood; what certainly blocks a ray
    hull: Float[Array, "r r r"]  # 1 in cells that masks allow


class Samples(NamedTuple):
    """Static number of samples on each ray; those of length 0 are padding."""

    points: Float[Array, "n s 3"]
    lengths: Float[Array, "n s"]
    depths: Float[Array, "n s"]


def visual_hull(views: Views, resolution: int, tolerance: float) -> Bool[np.ndarray, "r r r"]:
    """Cells that most views see, and all of these in the foreground but for a share `tolerance`.

    A cell counts as seen in the foreground if any of it may be: masks grow by the radius that a cell has in the picture
    at the distance of the box's centre.
    """
    centers = _cell_centers(resolution)
    cell_radius = np.sqrt(3) * BOX_HALF_SIZE / resolution
    height, width = views.masks.shape[1:]
    misses, sights = np.zeros(len(centers), np.int32), np.zeros(len(centers), np.int32)
    cameras = zip(views.camera_to_box, views.focal_px, views.center_px, strict=True)
    for mask, (pose, focal, center) in zip(views.masks > 0, cameras, strict=True):
        x, y, z = ((centers - pose[:3, 3]) @ pose[:3, :3]).T
        column = np.floor(focal[0] * x / -z + center[0]).astype(np.int32)
        row = np.floor(center[1] - focal[1] * y / -z).astype(np.int32)
        seen = (z < 0) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        radius_px = int(np.ceil(focal.max() * cell_radius / np.linalg.norm(pose[:3, 3])))
        grown = ndimage.maximum_filter(mask, size=2 * radius_px + 1)
        sights += seen
        misses[seen] += ~grown[row[seen], column[seen]]
    # What most views do not see, such as the box's corners, few masks could exclude.
    return ((2 * sights > len(views.masks)) & (misses <= tolerance * sights)).reshape((resolution,) * 3)


def start_occupancy(hull: np.ndarray) -> Occupancy:
    """Every cell of the hull is occupied."""
    allowed = jnp.asarray(hull, jnp.float32)
    return _with_core(INITIAL_DENSITY * allowed, allowed)


def refresh(occupancy: Occupancy, density, num_cells: int, key: PRNGKeyArray) -> Occupancy:
    """Update `num_cells` random cells by a running mean of the field's density at a random point of each."""
    resolution = occupancy.density.shape[0]
    cell_key, point_key = jax.random.split(key)
    cells = jax.random.randint(cell_key, (num_cells, 3), 0, resolution)
    points = (cells + jax.random.uniform(point_key, (num_cells, 3))) / resolution
    fresh = density((2 * points - 1) * BOX_HALF_SIZE)
    i, j, k = cells.T
    running = occupancy.density.at[i, j, k].set(DECAY * occupancy.density[i, j, k] + (1 - DECAY) * fresh)
    return _with_core(running * occupancy.hull, occupancy.hull)


def march(
    config: NerfConfig,
    occupancy: Occupancy,
    origins: Float[Array, "n 3"],
    directions: Float[Array, "n 3"],
    key: PRNGKeyArray | None,
) -> Samples:
    """Samples along rays, in occupied cells that are not hidden behind dense ones.

    Candidates are evenly spaced between entering and leaving the box. A ray takes the first `samples_per_ray` of those
    that qualify; if there are more, every n-th, so that no surface is lost. `key` jitters the candidates; None puts
    them in the middle of their intervals.
    """
    num_rays, budget = origins.shape[0], config.samples_per_ray
    near, far = box_crossing(origins, directions)
    step = (far - near) / config.candidates_per_ray  # n
    if key is None:
        jitter = stride_jitter = jnp.full((num_rays, 1), 0.5)
    else:
        jitter, stride_jitter = jax.random.uniform(key, (2, num_rays, 1))
    depths = near[:, None] + step[:, None] * (jnp.arange(config.candidates_per_ray) + jitter)  # n c

    points = origins[:, None] + depths[..., None] * directions[:, None]
    useful = _useful(occupancy, points, step[:, None])
    counts = jnp.cumsum(useful, axis=-1)
    total = counts[:, -1:]
    stride = jnp.maximum(total, budget) / budget
    ranks = jnp.floor((jnp.arange(budget) + stride_jitter * (stride > 1)) * stride)  # n s
    # The index of the r-th useful candidate is the number of candidates whose running count is <= r.
    chosen = jnp.sum(counts[:, None, :] <= ranks[:, :, None], axis=-1)
    depths = near[:, None] + step[:, None] * (chosen + jitter)
    lengths = jnp.where(ranks < total, step[:, None] * stride, 0.0)
    return Samples(origins[:, None] + depths[..., None] * directions[:, None], lengths, depths)


def box_crossing(
    origins: Float[Array, "n 3"], directions: Float[Array, "n 3"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Distances at which rays enter and leave the box; equal if they miss it."""
    safe = jnp.where(jnp.abs(directions) < 1e-9, 1e-9, directions)
    low, high = (-BOX_HALF_SIZE - origins) / safe, (BOX_HALF_SIZE - origins) / safe
    near = jnp.maximum(jnp.max(jnp.minimum(low, high), axis=-1), 0.0)
    far = jnp.min(jnp.maximum(low, high), axis=-1)
    return near, jnp.maximum(near, far)


def _useful(occupancy, points, step):
    """Which candidates are in occupied cells and in front of where the ray is certainly blocked.

    Only cells whose neighbours are all dense count as blocking, so that a ray that grazes a surface goes on.
    """
    resolution = occupancy.density.shape[0]
    cell = jnp.clip(((points / BOX_HALF_SIZE + 1) * (resolution / 2)).astype(jnp.int32), 0, resolution - 1)
    flat = (cell[..., 0] * resolution + cell[..., 1]) * resolution + cell[..., 2]
    density = occupancy.density.reshape(-1).at[flat].get(mode="promise_in_bounds")
    blocking = occupancy.core.reshape(-1).at[flat].get(mode="promise_in_bounds") * step
    transmittance = jnp.exp(blocking - jnp.cumsum(blocking, axis=-1))
    return (density > MIN_DENSITY) & (transmittance > OPAQUE)


def _with_core(density, hull):
    core = -jax.lax.reduce_window(-density, -jnp.inf, jax.lax.max, (3, 3, 3), (1, 1, 1), "SAME")
    return Occupancy(density, core, hull)


def _cell_centers(resolution: int) -> np.ndarray:
    axis = ((np.arange(resolution) + 0.5) / resolution * 2 - 1) * BOX_HALF_SIZE
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
