"""Convolutions in other forms: doubling folded into the kernel, sums of products, and layouts of a convolution over
time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast import products

# How a 2x2 kernel is made of the three taps of one axis: (even or odd output, tap of two, tap of three).
_TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
_DOUBLING = np.einsum("atr,buc->abturc", _TAPS, _TAPS).reshape(16, 9)
"""The same for both axes: rows are places in the doubled pixel times 2x2 taps, columns the 3x3 taps."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def doubling_convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 c d"],
    plain: Callable[[Array, Array, Compute], Array],
    compute: Compute,
) -> Float[Array, "n h2 w2 d"]:
    """Nearest doubling, then a 3x3 convolution, as one 2x2 convolution with four times the outputs.

    Each row of the result sees two rows of the input: an even one w0 of the row above and w1 + w2 of its own, an odd
    one w0 + w1 of its own and w2 of the row below; columns alike. A quarter of the outputs is for each place in the
    doubled pixel. That takes 4/9 of the products, and no doubled copy of the input. The gradient is that of `plain`.
    """
    inputs, outputs = kernel.shape[2:]
    folded = jnp.matmul(_DOUBLING, kernel.reshape(9, -1), precision="highest")  # in float32, then cast
    folded = folded.astype(x.dtype).reshape(4, 2, 2, inputs, outputs)
    folded = jnp.moveaxis(folded, 0, 3).reshape(2, 2, inputs, 4 * outputs)
    n, h, w, _ = x.shape
    y = _convolution(x, folded, ((1, 1), (1, 1)), compute).reshape(n, h + 1, w + 1, 2, 2, outputs)
    # Even rows and columns begin with the tap above or left of the first pixel, odd ones at the pixel itself.
    rows = jnp.stack([y[:, :-1, :, 0], y[:, 1:, :, 1]], axis=2)  # n h 2 w+1 2 d
    both = jnp.stack([rows[:, :, :, :-1, 0], rows[:, :, :, 1:, 1]], axis=4)  # n h 2 w 2 d
    return both.reshape(n, 2 * h, 2 * w, outputs)


def _convolution(x: Array, kernel: Array, padding: Sequence[tuple[int, int]], compute: Compute) -> Array:
    if products.make_convolution(x, kernel, compute):
        return sum_of_products(x, kernel, 1, padding)
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _doubling_convolution_forward(x, kernel, plain, compute):
    return doubling_convolution(x, kernel, plain, compute), (x, kernel)


def _doubling_convolution_backward(plain, compute, inputs: tuple[Array, Array], gradient: Array):
    """A CPU takes twenty times as long over the kernel gradient of the folded form."""
    return jax.vjp(lambda x, kernel: plain(x, kernel, compute), *inputs)[1](gradient)


doubling_convolution.defvjp(_doubling_convolution_forward, _doubling_convolution_backward)


def sum_of_products(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "k l c d"],
    stride: int,
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "n h2 w2 d"]:
    """Convolution as a product for each tap of the kernel, of 16-bit factors; their sum is float32."""
    x = jnp.pad(x.astype(products.FACTOR), ((0, 0), *padding, (0, 0)))
    rows, columns = (
        1 + (length - taps) // stride for length, taps in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )

    def seen_by(i: int, j: int) -> Array:
        """The pixels that tap i, j of the kernel is multiplied with."""
        ends = (i + stride * (rows - 1) + 1, j + stride * (columns - 1) + 1)
        return x[:, i : ends[0] : stride, j : ends[1] : stride]

    taps = product(*(range(count) for count in kernel.shape[:2]))
    return sum(products.matmul_16_bit(seen_by(i, j), kernel[i, j]) for i, j in taps)


def sum_of_products_over_time(
    x: Float[Array, "b f h w c"], kernel: Float[Array, "3 c d"]
) -> Float[Array, "b f h w d"]:
    """Previous, same and next frame, each times its tap of the kernel, as `sum_of_products`."""
    b, f, h, w, c = x.shape
    rows = x.reshape(b, f, h * w, c)
    return sum_of_products(rows, kernel[:, None], 1, ((1, 1), (0, 0))).reshape(b, f, h, w, -1)


def temporal_conv_of_rows(
    x: Float[Array, "b f h w c"], kernel: Float[Array, "3 c d"]
) -> Float[Array, "b f h w d"]:
    """The frames of each position as a row: on a CPU the gradient takes two thirds of the time of the form below."""
    b, f, h, w, c = x.shape
    rows = x.reshape(b, f, h * w, c).swapaxes(1, 2).reshape(-1, f, c)
    y = jax.lax.conv_general_dilated(rows, kernel, (1,), ((1, 1),), dimension_numbers=("NWC", "WIO", "NWC"))
    return y.reshape(b, h * w, f, -1).swapaxes(1, 2).reshape(b, f, h, w, -1)


def temporal_conv_of_planes(
    x: Float[Array, "b f h w c"], kernel: Float[Array, "3 c d"]
) -> Float[Array, "b f h w d"]:
    """Frames and positions as the two axes of a plane: frames stay where they are. A 3-D convolution would be slow."""
    b, f, h, w, c = x.shape
    y = jax.lax.conv_general_dilated(
        x.reshape(b, f, h * w, c),
        kernel[:, None],
        (1, 1),
        ((1, 1), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(b, f, h, w, -1)
