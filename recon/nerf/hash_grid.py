"""Multi-resolution hash encoding (instant-ngp) in plain jnp, with a hand-written gradient.

Level l has resolution N_l = floor(N_min b^l) and features on the corners of its cells. A level whose corners fit
the table is stored densely, the others share entries by a hash of the corner's integer position. The features of
a point are interpolated trilinearly and all levels are concatenated, coarsest first.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Int, Num, PRNGKeyArray

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

    Level by level, and corner by corner, which on a CPU is five times as fast as one gather of all corners. Points must
    lie in the cube, because the gathers promise to be in bounds.
    """
    rows = tables.reshape(-1, grid.num_features)

    def features_of(_, level):
        base, fraction = level.cell(x)
        return None, sum(
            level.gather(rows, base, corner) * _weight(fraction, corner)[:, None] for corner in CORNERS
        )

    features = [jax.lax.scan(features_of, None, levels)[1] for levels in _levels(grid)]
    return jnp.moveaxis(jnp.concatenate(features), 0, 1).reshape(len(x), -1)


def _encode_forward(grid, tables, x):
    return encode(grid, tables, x), (tables, x)


def _encode_backward(grid, residuals, cotangent):
    """One scatter per level, whose table fits a CPU's cache; the interpolation weights are recomputed, not stored.

    The barriers keep a CPU's compiler from reading the tables once for each axis of the points' gradient.
    """
    tables, x = residuals
    rows = tables.reshape(-1, grid.num_features)
    cotangent = jnp.moveaxis(cotangent.reshape(len(x), grid.num_levels, -1), 1, 0)  # l n d

    def gradient_of(total, level_and_cotangent):
        level, level_cotangent = level_and_cotangent
        base, fraction = level.cell(x)
        indices = jnp.stack([level.index(base, corner) for corner in CORNERS])  # 8 n
        updates = jnp.concatenate(
            [level_cotangent * _weight(fraction, corner)[:, None] for corner in CORNERS]
        )
        table = jnp.zeros(tables.shape[1:]).at[indices.ravel() - level.offset]
        features = rows.at[indices].get(mode="promise_in_bounds")
        along = jax.lax.optimization_barrier(
            list(jnp.einsum("knd,nd->kn", features, level_cotangent, precision="highest"))
        )
        slope = jax.lax.optimization_barrier(_weighted_slopes(fraction, along))
        total = [so_far + level.scale * part for so_far, part in zip(total, slope, strict=True)]
        return total, table.add(updates, mode="promise_in_bounds")

    tables_cotangent, x_cotangent = [], [jnp.zeros(len(x))] * 3
    for levels in _levels(grid):
        first, cotangent = jnp.split(cotangent, [len(levels.scale)])
        x_cotangent, cotangents = jax.lax.scan(gradient_of, x_cotangent, (levels, first))
        tables_cotangent.append(cotangents)
    return jnp.concatenate(tables_cotangent), jnp.stack(x_cotangent, axis=-1)


encode.defvjp(_encode_forward, _encode_backward)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Level:
    """One level, or the arrays of several that are alike: all dense, or all hashed."""

    offset: Int[Array, "*l"]  # of the level's first row in the flat table
    scale: Float[Array, "*l"]
    shift: Float[Array, "*l"]
    stride: Num[Array, "*l"]  # corners along one axis
    table_size: int = field(metadata={"static": True})
    is_dense: bool = field(metadata={"static": True})

    def cell(self, x):
        """Integer position of the lower corner and the position within the cell."""
        position = x * self.scale + self.shift
        base = jnp.floor(position)
        return base.astype(jnp.uint32), position - base

    def index(self, base, corner):
        """Row of one corner in the flat table."""
        i, j, k = (base[:, axis] + np.uint32(corner[axis]) for axis in range(3))
        if self.is_dense:
            row = i + j * self.stride + k * self.stride * self.stride
        else:
            row = i ^ j * np.uint32(HASH_PRIMES[1]) ^ k * np.uint32(HASH_PRIMES[2])
        # A dense row also wraps: the upper corner of a point at exactly 1 has weight 0 but lies past the end.
        return (row % np.uint32(self.table_size)).astype(jnp.int32) + self.offset

    def gather(self, rows, base, corner):
        return rows.at[self.index(base, corner)].get(mode="promise_in_bounds")


def _levels(grid: HashGrid) -> list[_Level]:
    """The levels, coarsest first, in runs of dense ones and of hashed ones.

    A loop over levels of one kind compiles several times faster than code for each of them, and runs no slower.
    """
    numbers = np.arange(grid.num_levels)
    if grid.variant == "paper":
        scale, shift = np.array(grid.resolutions, np.float64), 0.0
        stride = np.array(grid.resolutions) + 1
    else:
        scale, shift = grid.base_resolution * grid.growth**numbers - 1.0, 0.5
        stride = np.ceil(scale).astype(int) + 1
    is_dense = stride.astype(float) ** 3 <= grid.table_size
    return [
        _Level(
            offset=(run * grid.table_size).astype(np.int32),
            scale=scale[run].astype(np.float32),
            shift=np.full(len(run), shift, np.float32),
            stride=stride[run].astype(np.uint32),
            table_size=grid.table_size,
            is_dense=bool(is_dense[run[0]]),
        )
        for run in np.split(numbers, np.flatnonzero(np.diff(is_dense)) + 1)
    ]


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
