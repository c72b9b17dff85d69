"""From coarse to fine: the resolutions of the fine fit, the grid of tetrahedra of each, and the views of each step."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Bool, Float, Int, Params, on_device
from sv3d_jax.errors import SV3DError
from sv3d_jax.geometry.marching_cubes import keep_large_components
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.recon.config import MIN_CELLS, MeshConfig
from sv3d_jax.recon.dmtet.surface import Capacity, Surface, deform, extract, signed_distance
from sv3d_jax.recon.dmtet.tets import TetGrid, band, kuhn_grid
from sv3d_jax.recon.fit import STEPS_PER_CALL
from sv3d_jax.recon.views import BOX_HALF_SIZE, Views

TRUNCATION_CELLS = 2.0  # of the distances at the start, so that the zero-crossing's interpolation is linear
HALF_RATE = 1.5  # learning rate at half the resolution over that after it
MIN_HALF_SIZE = 64  # pixels; views whose halves are smaller are seen whole by all steps
MIN_HALF_VOLUME = 0.95  # share of the coarse surface's volume that a grid of half the cells must keep
GOLDEN = (3.0 - math.sqrt(5.0)) / 2.0  # the golden angle as a share of a turn
START = Capacity(2**12, 2**13)  # of the first extraction, which grows it


@dataclass(frozen=True)
class FitLevel:
    """Steps at one resolution."""

    config: MeshConfig  # with the level's cells and learning rate
    first: int  # step of the whole fit
    num_steps: int
    is_half: bool  # whether views are seen at half their size


class Lattice(NamedTuple):
    """Tetrahedra in a band around the coarse surface, and the signed distances of their vertices to it."""

    grid: TetGrid
    sdf: Float[Array, "v"]
    at_rim: Bool[Array, "v"]  # where the distance stays as it is, so that the surface is closed


def fit_levels(config: MeshConfig, coarse: Mesh, views: Views) -> tuple[list[FitLevel], Lattice]:
    """What the steps are divided into, those at half the resolution, if any, and the others; and the first's lattice.

    A grid of half the cells is for objects that are not too thin for it. Raises SV3DError like `start_lattice`.
    """
    calls = math.ceil(config.num_steps / STEPS_PER_CALL)
    half = math.floor(config.half_share * calls) * STEPS_PER_CALL
    if not half or min(views.masks.shape[1:]) < 2 * MIN_HALF_SIZE:
        return [FitLevel(config, 0, config.num_steps, is_half=False)], start_lattice(config, coarse)
    first = replace(config, learning_rate=HALF_RATE * config.learning_rate)
    lattice = None
    if config.cells >= 2 * MIN_CELLS:
        halved = replace(first, cells=config.cells // 2)
        lattice = _lattice_that_keeps(halved, coarse)
    if lattice is None:
        lattice = start_lattice(first, coarse)
    else:
        first = halved
    levels = [FitLevel(first, 0, half, is_half=True)]
    if half < config.num_steps:
        levels.append(FitLevel(config, half, config.num_steps - half, is_half=False))
    return levels, lattice


def _lattice_that_keeps(config: MeshConfig, mesh: Mesh) -> Lattice | None:
    """The start of a fit with these settings, None if that does not hold nearly all of a surface's volume."""
    try:
        lattice = start_lattice(config, mesh)
    except SV3DError:  # it holds nothing of it
        return None
    at_start = {"sdf": lattice.sdf, "offsets": jnp.zeros_like(lattice.grid.vertices)}
    surface, _ = extract(lattice.grid, *displaced(config, lattice, at_start), START)
    return lattice if _volume(surface_mesh(surface, 0.0)) > MIN_HALF_VOLUME * _volume(mesh) else None


def _volume(mesh: Mesh) -> float:
    """The volume that a closed mesh encloses."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces].astype(np.float64), 1, 0)
    return abs(np.einsum("ni,ni->", a, np.cross(b, c))) / 6.0


def views_of_step(step: Int[Array, ""], count: int, num_views: int) -> Int[Array, "n"]:
    """The views that a step sees, all if there are no more: each equally often, consecutive ones far from each other.

    Their numbers advance by about the golden angle of an orbit. With random views the fit settles less, because some
    are seen several times before others are.
    """
    count = min(count, num_views)
    strides = [stride for stride in range(1, num_views + 1) if math.gcd(stride, num_views) == 1]
    stride = min(strides, key=lambda stride: abs(stride - GOLDEN * num_views))
    return (step * count + jnp.arange(count)) * stride % num_views


def start_lattice(config: MeshConfig, coarse: Mesh) -> Lattice:
    """The part of the grid near the coarse surface; the surface cannot leave this band.

    Raises SV3DError where no vertex of the grid is inside the surface.
    """
    grid = kuhn_grid(config.cells)
    truncation = TRUNCATION_CELLS * 2 * BOX_HALF_SIZE / config.cells
    sdf = signed_distance(coarse, BOX_HALF_SIZE * grid.vertices, truncation)
    if not (sdf < 0).any():
        raise SV3DError(
            "the surface is empty: the coarse surface is so thin that no vertex of the fine stage's grid is inside it",
            hint=f"more cells under [mesh] of a --config file than {config.cells}, or --fine-steps 0",
        )
    part, rows, at_rim = band(grid, np.abs(sdf) < truncation)
    return on_device(Lattice(part, sdf[rows], at_rim))


def displaced(
    config: MeshConfig, lattice: Lattice, params: Params
) -> tuple[Float[Array, "v 3"], Float[Array, "v"]]:
    """The grid's vertices in box coordinates, each moved by less than half a cell, and the distances there."""
    positions = BOX_HALF_SIZE * deform(lattice.grid.vertices, params["offsets"], config.cells)
    return positions, jnp.where(lattice.at_rim, lattice.sdf, params["sdf"])


def surface_mesh(surface: Surface, min_component: float) -> Mesh:
    """The used rows of a surface as a mesh, without loose parts that have less than this share of the faces."""
    count = int(surface.num_vertices), int(surface.num_faces)
    vertices = np.asarray(surface.vertices[: count[0]], np.float64)
    return Mesh(*keep_large_components(vertices, np.asarray(surface.faces[: count[1]]), min_component))
