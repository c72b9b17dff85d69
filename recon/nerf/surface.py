"""The surface of a fitted field: marching cubes at the density level that fits the masks best."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from scipy import ndimage

from sv3d_jax.arrays import Array, Float, Params, on_device
from sv3d_jax.geometry.marching_cubes import extract_surface, keep_large_components
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.programs import kept_jit
from sv3d_jax.recon.config import NerfConfig
from sv3d_jax.recon.nerf.field import density, density_and_albedo
from sv3d_jax.recon.nerf.occupancy import box_crossing
from sv3d_jax.recon.nerf.stage import pixel_rays
from sv3d_jax.recon.views import BOX_HALF_SIZE, Views
from sv3d_jax.render.volume import composite

CHUNK = 2**16
SHELL = 3  # cells through which a vertex's colour is composited
UNSEEN = 0.02  # transmittance to a camera below which a point counts as hidden from it
MAX_MASK_SIDE = 64  # the level is chosen on masks of about this size


def field_mesh(config: NerfConfig, params: Params, hull: np.ndarray, views: Views) -> tuple[Mesh, dict]:
    """The field's surface in box coordinates, without colours, and how it was found."""
    cell = 2 * BOX_HALF_SIZE / config.surface_resolution
    field = _density_grid(config, params, hull)
    thresholds = _cell_opacity(config, np.array(config.surface_levels))
    overlaps = _mask_overlaps(_opacity(config, field), thresholds, views)
    best = int(np.argmax(overlaps))
    level = config.surface_levels[best]
    field[_unseen(field, views)] = np.inf
    vertices, faces = extract_surface(_opacity(config, field), float(thresholds[best]))
    vertices, faces = keep_large_components(vertices, faces, config.min_component)
    points = (vertices + 0.5) * cell - BOX_HALF_SIZE
    facts = {"density_level": level, "mask_iou": round(float(overlaps[best]), 4)}
    return Mesh(points, faces), facts


def _opacity(config: NerfConfig, field: np.ndarray) -> np.ndarray:
    """Smoothed opacity of the cells; unlike density it is bounded, so that blurring is symmetric about a surface."""
    return ndimage.gaussian_filter(_cell_opacity(config, field), config.surface_blur)


def _cell_opacity(config: NerfConfig, density: np.ndarray) -> np.ndarray:
    return -np.expm1(-density * (2 * BOX_HALF_SIZE / config.surface_resolution))


def _density_grid(config: NerfConfig, params: Params, hull: np.ndarray) -> np.ndarray:
    """Density at cell centres, indexed [x, y, z]; 0 outside the hull."""
    resolution = config.surface_resolution
    index = (2 * np.arange(resolution) + 1) * len(hull) // (2 * resolution)
    in_hull = hull[np.ix_(index, index, index)]
    grid = np.zeros(in_hull.shape, np.float32)
    points = ((np.argwhere(in_hull) + 0.5) / resolution * 2 - 1) * BOX_HALF_SIZE
    grid[in_hull] = _in_chunks(_density, config, params, points)
    return grid


def seen_colors(
    config: NerfConfig, params: Params, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """Colours that a camera in front of points of the surface, with these unit normals, sees.

    These are the albedo composited along the normal, through a shell of a few cells around the surface.
    """
    lines = np.concatenate([points, normals], axis=1)
    return _in_chunks(_seen_colors, config, params, lines, CHUNK // (4 * SHELL + 1))


@kept_jit
def _seen_colors(params: Params, lines: Float[Array, "n 6"], *, config: NerfConfig) -> Float[Array, "n 3"]:
    cell = 2 * BOX_HALF_SIZE / config.surface_resolution
    depths = cell * jnp.linspace(-SHELL, SHELL, 4 * SHELL + 1)
    samples = lines[:, None, :3] - depths[:, None] * lines[:, None, 3:]
    sigma, color = density_and_albedo(config, params, samples.reshape(-1, 3))
    shape = samples.shape[:2]
    lengths = jnp.full(shape, depths[1] - depths[0])
    result = composite(sigma.reshape(shape), color.reshape(*shape, 3), lengths, lengths, jnp.zeros(3))
    return result.color / jnp.maximum(result.opacity, 1e-3)[:, None]


@kept_jit
def _density(params: Params, points: Float[Array, "n 3"], *, config: NerfConfig) -> Float[Array, "n"]:
    return density(config, params, points)


def _in_chunks(
    function: Callable[..., Array], config: NerfConfig, params: Params, rows: np.ndarray, size: int = CHUNK
) -> np.ndarray:
    """`function` of the field's parameters and many rows, in chunks of one size, so that it is compiled once."""
    padded = np.zeros((-(-len(rows) // size) * size, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    parts = [
        np.asarray(function(params, part, config=config)) for part in padded.reshape(-1, size, rows.shape[1])
    ]
    return np.concatenate(parts)[: len(rows)]


def _mask_overlaps(opacity: np.ndarray, levels: np.ndarray, views: Views) -> np.ndarray:
    """Intersection over union of silhouettes and masks, averaged over views, for every level."""
    height, width = views.masks.shape[1:]
    stride = max(1, round(min(height, width) / MAX_MASK_SIDE))
    places = (np.arange(0, height, stride)[:, None] * width + np.arange(0, width, stride)).ravel()
    num_steps = 2 * opacity.shape[0]
    data = on_device((views, opacity))
    total = np.zeros(len(levels))
    for frame in range(len(views.masks)):
        highest = _highest_opacity(*data, frame * height * width + places, num_steps=num_steps)
        silhouettes = np.asarray(highest)[None] > levels[:, None]
        mask = views.masks[frame].ravel()[places] > 0.5
        union = (silhouettes | mask).sum(axis=1)
        total += (silhouettes & mask).sum(axis=1) / np.maximum(union, 1)
    return total / len(views.masks)


def _unseen(field: np.ndarray, views: Views) -> np.ndarray:
    """Cells that no view sees into, found on blocks of 2 x 2 x 2 cells; the views say nothing about their density."""
    blocks = -(-field.shape[0] // 2)
    padded = np.pad(field, (0, 2 * blocks - field.shape[0]))
    coarse = padded.reshape(blocks, 2, blocks, 2, blocks, 2).mean((1, 3, 5))
    inside = np.argwhere(coarse > 0)
    points = np.float32(((inside + 0.5) / blocks * 2 - 1) * BOX_HALF_SIZE)
    hidden = np.zeros(coarse.shape, bool)
    optical_depth = _least_optical_depth(coarse, points, views.camera_to_box[:, :3, 3])
    hidden[tuple(inside.T)] = np.asarray(optical_depth) > -np.log(UNSEEN)
    fine = hidden.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(slice(n) for n in field.shape)]
    return ndimage.binary_erosion(fine, iterations=2)


@kept_jit
def _least_optical_depth(density, points, cameras):
    """The least optical depth between each point and any of the cameras."""
    num_steps, resolution = density.shape[0], density.shape[0]

    def to_camera(least, camera):
        directions = camera - points
        distance = jnp.linalg.norm(directions, axis=-1, keepdims=True)
        directions /= distance
        far = jnp.minimum(box_crossing(points, directions)[1], distance[:, 0])

        def step(total, share):
            place = points + (share * far)[:, None] * directions
            cell = jnp.clip((place / BOX_HALF_SIZE + 1) * (resolution / 2), 0, resolution - 1).astype(
                jnp.int32
            )
            return total + density[cell[:, 0], cell[:, 1], cell[:, 2]], None

        shares = (jnp.arange(num_steps) + 0.5) / num_steps
        total = jax.lax.scan(step, jnp.zeros(len(points)), shares)[0]
        return jnp.minimum(least, total * far / num_steps), None

    return jax.lax.scan(to_camera, jnp.full(len(points), jnp.inf), cameras)[0]


@kept_jit
def _highest_opacity(views, opacity, pixels, *, num_steps):
    """The highest opacity along each pixel's ray."""
    origins, directions = pixel_rays(views, pixels)
    near, far = box_crossing(origins, directions)
    resolution = opacity.shape[0]

    def step(highest, share):
        points = origins + (near + share * (far - near))[:, None] * directions
        place = (points / BOX_HALF_SIZE + 1) * (resolution / 2) - 0.5
        return jnp.maximum(highest, map_coordinates(opacity, list(place.T), order=1, mode="nearest")), None

    shares = (jnp.arange(num_steps) + 0.5) / num_steps
    return jax.lax.scan(step, jnp.zeros(len(pixels)), shares)[0]
