"""Convolutions with kernels of three by fewer products (Winograd; Lavin and Gray, arXiv 1509.09308), for CPUs.

F(m, 3) makes m outputs from m + 2 inputs with as many products, where the plain sum takes 3 m: small fixed matrices
change both sides before they are multiplied, and change the products back.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float

MIN_CHANNELS = 256  # below, changing the sides costs more than the products that are saved
MIN_PIXELS = 512  # fewer, and changing the kernel does


class Transform(NamedTuple):
    """The matrices of F(m, 3): of the inputs, of the kernel and of the products."""

    inputs: tuple[tuple[float, ...], ...]
    kernel: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[float, ...], ...]

    @property
    def step(self) -> int:
        """m."""
        return len(self.outputs)


F2 = Transform(
    inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    kernel=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    outputs=((1, 1, 1, 0), (0, 1, -1, -1)),
)
F4 = Transform(
    inputs=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    kernel=(
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    outputs=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)


def is_worth_it(kernel: Float[Array, "... c d"], pixels: int) -> bool:
    """Whether a convolution of so many pixels is faster this way on a CPU."""
    return min(kernel.shape[-2:]) >= MIN_CHANNELS and pixels >= MIN_PIXELS and kernel.dtype == jnp.float32


def conv3(x: Float[Array, "b f h w c"], kernel: Float[Array, "3 c d"]) -> Float[Array, "b f h w d"]:
    """Convolution along the second axis, zero beyond its ends, by F(4, 3); 3e-6 of the largest value off."""
    frames = x.shape[1]
    tiles = _tiles(x, F4, 1)
    products = [tile @ tap for tile, tap in zip(tiles, _taps(kernel, F4, 0), strict=True)]
    y = jnp.stack(_combine(F4.outputs, products), axis=2)
    return y.reshape(len(x), -1, *y.shape[3:])[:, :frames]


def conv3x3(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "n h w d"]:
    """Convolution of even sides, zero beyond them, by F(2, 3) along both; 1e-6 of the largest value off."""
    n, h, w, _ = x.shape
    tiles = [tile for row in _tiles(x, F2, 1) for tile in _tiles(row, F2, 2)]
    taps = [tap for row in _taps(kernel, F2, 0) for tap in _taps(row, F2, 0)]
    products = [tile @ tap for tile, tap in zip(tiles, taps, strict=True)]
    columns = [_combine(F2.outputs, products[i : i + 4]) for i in range(0, 16, 4)]
    rows = [_combine(F2.outputs, column) for column in zip(*columns, strict=True)]
    y = jnp.stack([jnp.stack(row, axis=2) for row in rows], axis=4)  # n h/2 2 w/2 2 d
    return y.reshape(n, h, w, -1)


def _tiles(x: Array, transform: Transform, axis: int) -> list[Array]:
    """The changed inputs: overlapping tiles along an axis, every place of the tile an array."""
    step = transform.step
    count = -(-x.shape[axis] // step)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 1 + count * step - x.shape[axis])
    x = jnp.pad(x, padding)
    places = range(len(transform.inputs))
    parts = [jax.lax.slice_in_dim(x, i, i + step * (count - 1) + 1, step, axis) for i in places]
    return _combine(transform.inputs, parts)


def _taps(kernel: Array, transform: Transform, axis: int) -> list[Array]:
    """The changed kernel along an axis."""
    return _combine(transform.kernel, [jax.lax.index_in_dim(kernel, i, axis, False) for i in range(3)])


def _combine(matrix: Sequence[Sequence[float]], parts: Sequence[Array]) -> list[Array]:
    """The matrix times a vector of arrays."""

    def row_times(row):
        terms = [
            part if factor == 1 else factor * part for factor, part in zip(row, parts, strict=True) if factor
        ]
        return sum(terms[1:], terms[0])

    return [row_times(row) for row in matrix]
