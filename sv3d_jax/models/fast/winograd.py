"""Convolutions with three taps by fewer products, for CPUs (Lavin and Gray, arXiv 1509.09308, section 4).

Winograd's algorithm F(m, 3) makes m outputs from m + 2 inputs with m + 2 products, where the plain sum takes 3 m:
y = A^T ((G g) * (B^T d)) for taps g and inputs d, with small fixed matrices A, B and G. In two dimensions each of them
is applied along both axes. With channels, each product becomes a matrix product.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float
from sv3d_jax.models.fast.parts import part_size
from sv3d_jax.models.fast.products import FACTOR, matmul_16_bit

# With fewer channels, transforming inputs and products costs more than the saved products.
MIN_CHANNELS = 64
MIN_CHANNELS_OVER_TIME = 256
MIN_PIXELS = 512  # with fewer pixels, transforming the kernel does
MAX_ROWS = 512  # of one product: the input goes in parts, whose transforms stay in a cache


class Transform(NamedTuple):
    """The matrices of F(m, 3): B^T for the inputs, G for the kernel, A^T for the products."""

    inputs: tuple[tuple[float, ...], ...]
    kernel: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[float, ...], ...]

    @property
    def step(self) -> int:
        """m, the outputs of one tile."""
        return len(self.outputs)


F2 = Transform(
    inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    kernel=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    outputs=((1, 1, 1, 0), (0, 1, -1, -1)),
)
F3 = Transform(
    inputs=((2, -1, -2, 1, 0), (0, -2, -1, 1, 0), (0, 2, -3, 1, 0), (0, -1, 0, 1, 0), (0, 2, -1, -2, 1)),
    kernel=(
        (1 / 2, 0, 0),
        (-1 / 2, -1 / 2, -1 / 2),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 6, 1 / 3, 2 / 3),
        (0, 0, 1),
    ),
    outputs=((1, 1, 1, 1, 0), (0, 1, -1, 2, 0), (0, 1, 1, 4, 1)),
)


def is_worth_it(kernel: Float[Array, "... c d"], pixels: int) -> bool:
    """Whether a convolution in the plane (kernel 3 3 c d) or over time (3 c d) is faster this way on a CPU.

    pixels: those of all frames.
    """
    least = MIN_CHANNELS if kernel.ndim == 4 else MIN_CHANNELS_OVER_TIME
    return min(kernel.shape[-2:]) >= least and pixels >= MIN_PIXELS and kernel.dtype == jnp.float32


@jax.custom_vjp
def conv3(x: Float[Array, "b f h w c"], kernel: Float[Array, "3 c d"]) -> Float[Array, "b f h w d"]:
    """Convolution along the second axis, zero beyond its ends, by F(3, 3).

    Its error is 2e-6 of the largest value.
    """
    b, f, h, w, c = x.shape
    size = part_size(h * w, F3.step * MAX_ROWS // (b * f))
    if size == h * w:
        return _conv3(x, kernel)
    taps, x = _taps(kernel, F3, 0), x.reshape(b, f, h * w, c)

    def add_part(i, y):
        part = jax.lax.dynamic_slice_in_dim(x, i * size, size, 2)
        return jax.lax.dynamic_update_slice_in_dim(y, _conv3_of_taps(part, taps), i * size, 2)

    y = jnp.zeros((b, f, h * w, kernel.shape[-1]), x.dtype)
    return jax.lax.fori_loop(0, h * w // size, add_part, y).reshape(b, f, h, w, -1)


def _conv3(x: Float[Array, "b f ... c"], kernel: Float[Array, "3 c d"]) -> Float[Array, "b f ... d"]:
    return _conv3_of_taps(x, _taps(kernel, F3, 0))


def _conv3_of_taps(x: Float[Array, "b f ... c"], taps: Sequence[Array]) -> Float[Array, "b f ... d"]:
    products = [tile @ tap for tile, tap in zip(_tiles(x, F3, 1), taps, strict=True)]
    y = jnp.stack(_combine(F3.outputs, products), axis=2)
    return y.reshape(len(x), -1, *y.shape[3:])[:, : x.shape[1]]


conv3.defvjp(
    lambda x, kernel: (conv3(x, kernel), (x, kernel)),
    lambda inputs, gradient: jax.vjp(_conv3, *inputs)[1](gradient),
)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"], in_16_bit: bool = False
) -> Float[Array, "n h w d"]:
    """Convolution of even sides, zero beyond them, by F(2, 3) along both.

    Its error is 1e-6 of the largest value; with products of 16-bit factors 1.7 times that of the plain sum of such
    products. The gradient keeps the inputs, not their transforms, which are four times as large.
    """
    taps = _taps3x3(kernel)
    if in_16_bit:
        taps = [tap.astype(FACTOR) for tap in taps]  # once, not for each part
    y = jax.lax.map(lambda part: _conv3x3_of_taps(part, taps, in_16_bit), _split(x))
    return y.reshape(*x.shape[:3], -1)


def _split(x: Float[Array, "n h w c"]) -> Float[Array, "p m h w c"]:
    """The frames in equal parts, each with about `MAX_ROWS` tiles."""
    n, h, w, c = x.shape
    size = part_size(n, max(1, MAX_ROWS // (h * w // F2.step**2)))
    return x.reshape(n // size, size, h, w, c)


def _conv3x3_of_taps(
    x: Float[Array, "m h w c"], taps: Sequence[Array], in_16_bit: bool = False
) -> Float[Array, "m h w d"]:
    m, h, w, _ = x.shape
    multiply = matmul_16_bit if in_16_bit else jnp.matmul
    tiles = [tile for row in _tiles(x, F2, 1) for tile in _tiles(row, F2, 2)]
    products = [multiply(tile, tap) for tile, tap in zip(tiles, taps, strict=True)]
    columns = [_combine(F2.outputs, products[i : i + 4]) for i in range(0, 16, 4)]
    rows = [_combine(F2.outputs, column) for column in zip(*columns, strict=True)]
    y = jnp.stack([jnp.stack(row, axis=2) for row in rows], axis=4)  # m h/2 2 w/2 2 d
    return y.reshape(m, h, w, -1)


def _conv3x3_backward(in_16_bit: bool, inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    taps, to_kernel = jax.vjp(_taps3x3, kernel)

    def add_part(total, part):
        inputs, gradient = part
        convolve = partial(_conv3x3_of_taps, in_16_bit=in_16_bit)
        to_inputs, to_taps = jax.vjp(convolve, inputs, taps)[1](gradient)
        return jax.tree.map(jnp.add, total, to_taps), to_inputs

    total, to_x = jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, taps), (_split(x), _split(gradient)))
    return to_x.reshape(x.shape), *to_kernel(total)


conv3x3.defvjp(lambda x, kernel, in_16_bit: (conv3x3(x, kernel, in_16_bit), (x, kernel)), _conv3x3_backward)


def _tiles(x: Array, transform: Transform, axis: int) -> list[Array]:
    """B^T d for the overlapping tiles along an axis: one array for each place in a tile."""
    step = transform.step
    count = -(-x.shape[axis] // step)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 1 + count * step - x.shape[axis])
    x = jnp.pad(x, padding)
    places = range(len(transform.inputs))
    parts = [jax.lax.slice_in_dim(x, i, i + step * (count - 1) + 1, step, axis) for i in places]
    return _combine(transform.inputs, parts)


def _taps(kernel: Array, transform: Transform, axis: int) -> list[Array]:
    """G g along an axis of the kernel: one array for each place in a tile."""
    return _combine(transform.kernel, [jax.lax.index_in_dim(kernel, i, axis, False) for i in range(3)])


def _taps3x3(kernel: Float[Array, "3 3 c d"]) -> list[Array]:
    return [tap for row in _taps(kernel, F2, 0) for tap in _taps(row, F2, 0)]


def _combine(matrix: Sequence[Sequence[float]], parts: Sequence[Array]) -> list[Array]:
    """The matrix times a vector whose entries are arrays."""

    def row_times(row):
        terms = [
            part if factor == 1 else factor * part for factor, part in zip(row, parts, strict=True) if factor
        ]
        return sum(terms[1:], terms[0])

    return [row_times(row) for row in matrix]
