"""Which form of a layer runs, by what is compiled for (`Compute`).

Every function has the name of the operation. Its first argument is the plain form, the equation as it stands in
`models/`; it calls either that or a form that is faster on the target: one CPU, any CPU, or an accelerator. With
`Compute(reference=True)` it is always the plain form. Two choices are made elsewhere: `attention.accelerator_kernel`
chooses the kernel of an accelerator, and `norms.py` adapts its forms to the target. All forms share parameters and
agree up to rounding, which `tests/models` and `tests/parity` check.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from sv3d_jax.arrays import Array
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast import attention as fast_attention
from sv3d_jax.models.fast import convolutions, norms, products, quantize, transformer, winograd

Form = Callable[..., Any]


def matmul(plain: Form, x: Array, kernel: Array, compute: Compute) -> Array:
    """The product of rows with a kernel: of 16-bit factors where `Compute.work_in_16_bit` asks for them."""
    if products.are_wanted(math.prod(x.shape[:-1]), kernel, compute):
        return products.matmul_16_bit(x, kernel)
    return plain(x, kernel, compute)


def linear(plain: Form, x: Array, kernel: Array, compute: Compute) -> Array:
    """The product of a linear layer that may be in 8 bits: in 8 bits where `Compute.quantize` asks for it."""
    if compute.reference or compute.quantize is None:
        return plain(x, kernel, compute)
    return quantize.matmul_8_bit(x, kernel, compute.quantize, compute.target)


def conv2d(plain: Form, x: Array, kernel: Array, stride: int, padding: Any, compute: Compute) -> Array:
    """One CPU takes Winograd's products for wide 3x3 convolutions that keep the size, if that is even."""
    keeps_size = kernel.shape[:2] == (3, 3) and stride == 1 and padding == ((1, 1), (1, 1))
    if keeps_size and compute.on_one_cpu and not compute.reference:
        has_even_sides = x.shape[1] % 2 == x.shape[2] % 2 == 0
        if has_even_sides and winograd.is_worth_it(kernel, math.prod(x.shape[:3])):
            return winograd.conv3x3(x, kernel, products.are_wanted(winograd.MAX_ROWS, kernel, compute))
    if products.make_convolution(x, kernel, compute):
        return convolutions.sum_of_products(x, kernel, stride, padding)
    return plain(x, kernel, stride, padding, compute)


def double_then_convolve(plain: Form, x: Array, kernel: Array, compute: Compute) -> Array:
    """Outside the plain form, one 2x2 convolution that never makes the doubled input."""
    if compute.reference:
        return plain(x, kernel, compute)
    return convolutions.doubling_convolution(x, kernel, plain, compute)


def temporal_conv(plain: Form, x: Array, kernel: Array, compute: Compute) -> Array:
    """One CPU takes Winograd's products for wide layers; the rest is one convolution in a layout that suits."""
    if compute.reference:
        return plain(x, kernel, compute)
    if products.make_convolution(x, kernel, compute):
        return convolutions.sum_of_products_over_time(x, kernel)
    if compute.on_one_cpu and winograd.is_worth_it(kernel, math.prod(x.shape[:-1])):
        return winograd.conv3(x, kernel)
    if compute.target == "cpu":
        return convolutions.temporal_conv_of_rows(x, kernel)
    return convolutions.temporal_conv_of_planes(x, kernel)


def group_norm(
    plain: Form,
    x: Array,
    scale: Array,
    bias: Array,
    groups: int,
    epsilon: float,
    activation: Callable[[Array], Array],
    compute: Compute,
) -> Array:
    """The fast form multiplies and adds once per value, and its gradient keeps the input and the output alone."""
    if compute.reference:
        return activation(plain(x, scale, bias, groups, epsilon)).astype(compute.dtype)
    return norms.group_norm(x, scale, bias, groups, epsilon, activation, compute)


def layer_norm(plain: Form, x: Array, scale: Array, bias: Array, epsilon: float, compute: Compute) -> Array:
    """The fast form's gradient keeps the input alone; one CPU gets an array of two axes."""
    if compute.reference:
        return plain(x, scale, bias, epsilon, compute.dtype)
    return norms.layer_norm(plain, x, scale, bias, epsilon, compute)


def attention(plain: Form, q: Array, k: Array, v: Array, compute: Compute) -> Array:
    """Kernels of accelerators in bfloat16; else the plain form, in parts where all scores at once would be too many.

    Parts are heads on one CPU, elsewhere queries. The plain form goes in parts too where sequences are long: at
    SV3D's first level the scores of 21 frames, in float32 and all at once, would be 11 GB.
    """
    if kernel := fast_attention.accelerator_kernel(q, k, compute):
        return kernel(q, k, v)
    if fast_attention.has_few_scores(q, k):
        return plain(q, k, v, compute)
    if compute.on_one_cpu:
        return fast_attention.attend_by_head(q, k, v, compute)
    return fast_attention.attend_by_queries(plain, q, k, v, compute)


def projections(
    plain: Form, x: Array, names: tuple[str, ...], features: int, compute: Compute
) -> list[Array]:
    """Several linear layers of one input: with `Compute.fold` their kernels are joined, and it is one product."""
    if compute.reference or not compute.fold:
        return plain(x, names, features, compute)
    multiply = partial(linear, partial(matmul, lambda x, kernel, _: x @ kernel), compute=compute)
    return transformer.joined_projections(multiply, x.astype(compute.dtype), names, features)


def feed_forward(plain: Form, module: Any, x: Array, compute: Compute) -> Array:
    """One CPU works through the tokens in parts, so that the wide values inside the layer stay in a cache."""
    if compute.reference or not compute.on_one_cpu:
        return plain(module, x)
    return transformer.feed_forward_in_parts(plain, module, x)


def leaves_out_scores(context: Array, compute: Compute) -> bool:
    """Whether cross-attention to `n l d` needs no scores: the softmax over one key is 1.

    Every query then gets the one vector to_out(to_v(context)), whatever the query is.
    """
    return context.shape[1] == 1 and not compute.reference


def scales_kernel(image_only: Array | None, compute: Compute) -> bool:
    """Whether a blend with a changed copy becomes a sum: a x + (1 - a) (x + change) = x + (1 - a) change.

    With `Compute.fold`, 1 - a then goes into the kernel that makes the change. Not where frames have different a.
    """
    return compute.fold and image_only is None and not compute.reference
