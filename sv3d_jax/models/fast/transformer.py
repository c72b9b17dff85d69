"""Layers of the transformers in other forms: joined projections, and a feed-forward layer in parts."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float
from sv3d_jax.models.fast.parts import part_size
from sv3d_jax.models.initializers import torch_uniform

MAX_ROWS = 1024  # tokens of a part of the feed-forward layer: its inner values then stay in a CPU's cache


def joined_projections(
    multiply: Callable[[Array, Array], Array],
    x: Float[Array, "... c"],
    names: tuple[str, ...],
    features: int,
) -> list[Float[Array, "... d"]]:
    """Linear layers without bias of one input as one product with their kernels side by side.

    To be called in a module's compact `__call__`: the kernels are those of its submodules `names`.
    """
    kernels = [DenseKernel(features, name=name)(x.shape[-1]) for name in names]
    joined = multiply(x, jnp.concatenate(kernels, axis=1).astype(x.dtype))
    return jnp.split(joined, len(names), axis=-1)


class DenseKernel(nn.Module):
    """The kernel of a linear layer, for one that is computed together with others."""

    features: int

    @nn.compact
    def __call__(self, fan_in: int) -> Float[Array, "c d"]:
        return self.param("kernel", torch_uniform(fan_in), (fan_in, self.features))


def feed_forward_in_parts(
    plain: Callable[[nn.Module, Array], Array], module: nn.Module, x: Float[Array, "... c"]
) -> Float[Array, "... c"]:
    """`plain(module, x)` on some tokens after the other; the gradient computes the inside of each part again."""
    c = x.shape[-1]
    rows = x.size // c
    size = part_size(rows, MAX_ROWS)
    if size == rows:
        return plain(module, x)
    one_part = nn.remat(lambda module, _, part: (None, plain(module, part)), prevent_cse=False)
    over_parts = nn.scan(one_part, variable_broadcast="params", split_rngs={"params": False})
    _, y = over_parts(module, None, x.reshape(-1, size, c))
    return y.reshape(x.shape)
