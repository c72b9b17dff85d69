"""Where samples are placed: in the visual hull of the masks at first, then where the field is dense (a coarse grid)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from sv3d_jax.arrays import Array, Bool, Float, PRNGKeyArray
from sv3d_jax.programs import kept_jit
from sv3d_jax.recon.config import NerfConfig
from sv3d_jax.recon.views import BOX_HALF_SIZE, Views

INITIAL_DENSITY = 1.0  # of hull cells, before the field was evaluated
DECAY = 0.8  # of the running density at each renewal: an empty cell is dropped after six
MIN_DENSITY = 0.3  # of an occupied cell: alpha 0.01 over 1/128 of the box side
NOT_OUTSIDE = 1e-6  # least running density of a cell of the hull
OPAQUE = 1e-3  # transmittance from which on nothing more is seen


class Occupancy(NamedTuple):
    """Running density of the cells of a cubic grid over the box, x slowest; 0 outside the hull and nowhere else."""

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
    entries: Float[Array, "n"]  # depths at which the rays enter the hull


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


def hull_pictures(views: Views, hull: Bool[np.ndarray, "r r r"]) -> Bool[np.ndarray, "f h w"]:
    """The pixels whose rays may meet a cell of the hull, as a part of them does: a little more than its silhouettes."""
    centers = _cell_centers(len(hull))[hull.ravel()]
    cell_radius = np.sqrt(3) * BOX_HALF_SIZE / len(hull)
    pictures = np.zeros(views.masks.shape, bool)
    height, width = views.masks.shape[1:]
    cameras = zip(views.camera_to_box, views.focal_px, views.center_px, strict=True)
    for picture, (pose, focal, center) in zip(pictures, cameras, strict=True):
        x, y, z = ((centers - pose[:3, 3]) @ pose[:3, :3]).T
        if (z >= -2 * cell_radius).any():  # around the camera
            picture[:] = True
            continue
        radius_px = int(np.ceil(focal.max() * cell_radius / (-z - cell_radius).min())) + 1
        # Cells beside the frame reach into it.
        row = np.floor(center[1] - focal[1] * y / -z).astype(int) + radius_px
        column = np.floor(focal[0] * x / -z + center[0]).astype(int) + radius_px
        padded = np.zeros((height + 2 * radius_px, width + 2 * radius_px), bool)
        seen = (row >= 0) & (row < padded.shape[0]) & (column >= 0) & (column < padded.shape[1])
        padded[row[seen], column[seen]] = True
        grown = ndimage.maximum_filter(padded, size=2 * radius_px + 1)
        picture[:] = grown[radius_px : radius_px + height, radius_px : radius_px + width]
    return pictures


def meets_hull(
    config: NerfConfig,
    hull: Bool[Array, "r r r"],
    origins: Float[Array, "n 3"],
    directions: Float[Array, "n 3"],
) -> Bool[Array, "n"]:
    """Whether a ray has a candidate, in the middle of its interval, in a cell of the hull."""
    depths, _ = _candidates(config, origins, directions, 0.5)
    points = origins[:, None] + depths[..., None] * directions[:, None]
    inside = jnp.ravel(hull).at[_cell_of(points, len(hull))].get(mode="promise_in_bounds")
    return inside.any(axis=-1)


@kept_jit
def start_occupancy(hull: Bool[Array, "r r r"]) -> Occupancy:
    """Every cell of the hull is occupied."""
    allowed = hull.astype(jnp.float32)
    return _with_core(INITIAL_DENSITY * allowed, allowed)


def refresh(occupancy: Occupancy, density, num_cells: int, key: PRNGKeyArray) -> Occupancy:
    """Update cells of the hull by a running mean of the field's density at a random point of each.

    It takes `num_cells` neighbours in memory from a random one on, all of them where the hull has no more.
    """
    resolution = occupancy.density.shape[0]
    cell_key, point_key = jax.random.split(key)
    ends = jnp.cumsum(occupancy.hull.ravel() > 0)
    count = jnp.maximum(ends[-1], 1)
    ranks = (jnp.arange(num_cells) + jax.random.randint(cell_key, (), 0, count)) % count
    flat = jnp.searchsorted(ends, ranks, side="right")
    cells = jnp.stack(jnp.unravel_index(flat, occupancy.hull.shape), axis=-1)
    points = (cells + jax.random.uniform(point_key, (num_cells, 3))) / resolution
    fresh = density((2 * points - 1) * BOX_HALF_SIZE)
    before = occupancy.density.ravel()
    running = jnp.maximum(DECAY * before[flat] + (1 - DECAY) * fresh, NOT_OUTSIDE)
    running = before.at[flat].set(running).reshape(occupancy.hull.shape)
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
    if key is None:
        jitter = stride_jitter = jnp.full((num_rays, 1), 0.5)
    else:
        jitter, stride_jitter = jax.random.uniform(key, (2, num_rays, 1))
    depths, step = _candidates(config, origins, directions, jitter)
    points = origins[:, None] + depths[..., None] * directions[:, None]
    useful, in_hull = _useful(occupancy, points, step)
    counts = jnp.cumsum(useful, axis=-1)
    total = counts[:, -1:]
    stride = jnp.maximum(total, budget) / budget
    ranks = jnp.floor((jnp.arange(budget) + stride_jitter * (stride > 1)) * stride)  # n s
    # The index of the r-th useful candidate is the number of candidates whose running count is <= r.
    chosen = jax.vmap(partial(jnp.searchsorted, side="right"))(counts, ranks)
    entries = depths[:, 0] + step[:, 0] * jnp.argmax(in_hull, axis=-1)
    depths = depths[:, :1] + step * chosen
    lengths = jnp.where(ranks < total, step * stride, 0.0)
    return Samples(origins[:, None] + depths[..., None] * directions[:, None], lengths, depths, entries)


def box_crossing(
    origins: Float[Array, "n 3"], directions: Float[Array, "n 3"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Distances at which rays enter and leave the box; equal if they miss it."""
    safe = jnp.where(jnp.abs(directions) < 1e-9, 1e-9, directions)
    low, high = (-BOX_HALF_SIZE - origins) / safe, (BOX_HALF_SIZE - origins) / safe
    near = jnp.maximum(jnp.max(jnp.minimum(low, high), axis=-1), 0.0)
    far = jnp.min(jnp.maximum(low, high), axis=-1)
    return near, jnp.maximum(near, far)


def _candidates(config, origins, directions, jitter):
    """Depths (n c) at equal distances between entering and leaving the box, and these distances (n 1)."""
    near, far = box_crossing(origins, directions)
    step = ((far - near) / config.candidates_per_ray)[:, None]
    return near[:, None] + step * (jnp.arange(config.candidates_per_ray) + jitter), step


def _cell_of(points, resolution):
    """The flat number of the cell in which points lie."""
    cell = jnp.clip(((points / BOX_HALF_SIZE + 1) * (resolution / 2)).astype(jnp.int32), 0, resolution - 1)
    return (cell[..., 0] * resolution + cell[..., 1]) * resolution + cell[..., 2]


def _useful(occupancy, points, step):
    """Which candidates are in occupied cells and in front of where the ray is certainly blocked; and in the hull.

    Only cells whose neighbours are all dense count as blocking, so that a ray that grazes a surface goes on.
    """
    flat = _cell_of(points, len(occupancy.density))
    density = occupancy.density.reshape(-1).at[flat].get(mode="promise_in_bounds")
    blocking = occupancy.core.reshape(-1).at[flat].get(mode="promise_in_bounds") * step
    transmittance = jnp.exp(blocking - jnp.cumsum(blocking, axis=-1))
    return (density > MIN_DENSITY) & (transmittance > OPAQUE), density > 0


def _with_core(density, hull):
    core = -jax.lax.reduce_window(-density, -jnp.inf, jax.lax.max, (3, 3, 3), (1, 1, 1), "SAME")
    return Occupancy(density, core, hull)


def _cell_centers(resolution: int) -> np.ndarray:
    axis = ((np.arange(resolution) + 0.5) / resolution * 2 - 1) * BOX_HALF_SIZE
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
