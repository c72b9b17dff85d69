"""Multi-resolution hash encoding (instant-ngp) in plain jnp, with a hand-written gradient.

Level l has resolution N_l = floor(N_min b^l) and features on the corners of its cells. A level whose corners fit
the table is stored densely, the others share entries by a hash of the corner's integer position. The features of
a point are interpolated trilinearly and all levels are concatenated, coarsest first.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, PRNGKeyArray

HASH_PRIMES = (1, 2654435761, 805459861)  # uint32 arithmetic
INIT_RANGE = 1e-4
CORNERS = [tuple(corner >> axis & 1 for axis in range(3)) for corner in range(8)]


@dataclass(frozen=True, kw_only=True)
class HashGrid:
    """Shape of the encoding.

    The variant `paper` scales a point of the unit cube by N_l (instant-ngp, section 3). `tcnn` is that of tiny-cuda-nn,
    for weights that were trained with it: scale N_min b^l - 1, shifted by half a cell.
    """

    num_levels: int = 16
    num_features: int = 2
    table_size: int = 2**19
    base_resolution: int = 16
    growth: float = 1.3195
    variant: Literal["paper", "tcnn"] = "paper"

    @property
    def num_outputs(self) -> int:
        """Features of a point, of all levels together."""
        return self.num_levels * self.num_features

    @property
    def resolutions(self) -> list[int]:
        """Cells along a side, N_l, of every level."""
        return [int(self.base_resolution * self.growth**level) for level in range(self.num_levels)]


def init_tables(grid: HashGrid, key: PRNGKeyArray) -> Float[Array, "l t d"]:
    """Nearly zero features for every level."""
    shape = (grid.num_levels, grid.table_size, grid.num_features)
    return jax.random.uniform(key, shape, minval=-INIT_RANGE, maxval=INIT_RANGE)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def encode(grid: HashGrid, tables: Float[Array, "l t d"], x: Float[Array, "n 3"]) -> Float[Array, "n c"]:
    """Features of points in [0, 1]^3, level-major.

    Accumulates corner by corner, which on a CPU is five times as fast as one gather of all corners. Points must lie in
    the cube, because the gathers promise to be in bounds.
    """
    rows = tables.reshape(-1, grid.num_features)
    levels = []
    for level in _levels(grid):
        base, fraction = level.cell(x)
        features = sum(
            level.gather(rows, base, corner) * _weight(fraction, corner)[:, None] for corner in CORNERS
        )
        levels.append(features)
    return jnp.concatenate(levels, axis=-1)


def _encode_forward(grid, tables, x):
    return encode(grid, tables, x), (tables, x)


def _encode_backward(grid, residuals, cotangent):
    """One scatter per level, whose table fits a CPU's cache; the interpolation weights are recomputed, not stored.

    The barriers keep a CPU's compiler from reading the tables once for each axis of the points' gradient.
    """
    tables, x = residuals
    rows = tables.reshape(-1, grid.num_features)
    tables_cotangent, x_cotangent = [], [0.0, 0.0, 0.0]
    for number, level in enumerate(_levels(grid)):
        base, fraction = level.cell(x)
        level_cotangent = cotangent[:, number * grid.num_features : (number + 1) * grid.num_features]
        indices = jnp.stack([level.index(base, corner) for corner in CORNERS])  # 8 n
        updates = jnp.concatenate(
            [level_cotangent * _weight(fraction, corner)[:, None] for corner in CORNERS]
        )
        table = jnp.zeros_like(tables[number]).at[indices.ravel() - level.offset]
        tables_cotangent.append(table.add(updates, mode="promise_in_bounds"))
        features = rows.at[indices].get(mode="promise_in_bounds")
        along = jax.lax.optimization_barrier(
            list(jnp.einsum("knd,nd->kn", features, level_cotangent, precision="highest"))
        )
        slope = jax.lax.optimization_barrier(_weighted_slopes(fraction, along))
        x_cotangent = [total + level.scale * part for total, part in zip(x_cotangent, slope, strict=True)]
    return jnp.stack(tables_cotangent), jnp.stack(x_cotangent, axis=-1)


encode.defvjp(_encode_forward, _encode_backward)


class _Level(NamedTuple):
    offset: int  # of the level's first row in the flat table
    table_size: int
    scale: float
    shift: float
    stride: int  # corners along one axis
    is_dense: bool

    def cell(self, x):
        """Integer position of the lower corner and the position within the cell."""
        position = x * self.scale + self.shift
        base = jnp.floor(position)
        return base.astype(jnp.uint32), position - base

    def index(self, base, corner):
        """Row of one corner in the flat table."""
        i, j, k = (base[:, axis] + np.uint32(corner[axis]) for axis in range(3))
        if self.is_dense:
            row = i + j * np.uint32(self.stride) + k * np.uint32(self.stride**2 % 2**32)
        else:
            row = i ^ j * np.uint32(HASH_PRIMES[1]) ^ k * np.uint32(HASH_PRIMES[2])
        # A dense row also wraps: the upper corner of a point at exactly 1 has weight 0 but lies past the end.
        return (row % np.uint32(self.table_size)).astype(jnp.int32) + self.offset

    def gather(self, rows, base, corner):
        return rows.at[self.index(base, corner)].get(mode="promise_in_bounds")


def _levels(grid: HashGrid) -> list[_Level]:
    levels = []
    for number, resolution in enumerate(grid.resolutions):
        if grid.variant == "paper":
            scale, shift, stride = float(resolution), 0.0, resolution + 1
        else:
            scale, shift = grid.base_resolution * grid.growth**number - 1.0, 0.5
            stride = int(np.ceil(scale)) + 1
        is_dense = stride**3 <= grid.table_size
        levels.append(_Level(number * grid.table_size, grid.table_size, scale, shift, stride, is_dense))
    return levels


def _weight(fraction, corner):
    u, v, w = (fraction[:, a] if corner[a] else 1.0 - fraction[:, a] for a in range(3))
    return u * v * w


def _weighted_slopes(fraction, values):
    """For each axis the sum over corners of a value times the slope of the corner's weight."""
    sides = [(1.0 - fraction[:, a], fraction[:, a]) for a in range(3)]
    slopes = [0.0, 0.0, 0.0]
    for corner, value in zip(CORNERS, values, strict=True):
        for axis in range(3):
            first, second = (sides[a][corner[a]] for a in range(3) if a != axis)
            slopes[axis] += (1.0 if corner[axis] else -1.0) * value * first * second
    return slopes
