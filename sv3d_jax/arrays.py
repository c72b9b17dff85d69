"""Array annotations, and the names of the arrays in a tree.

The annotations are those of jaxtyping; if it is not installed, classes of the same names that check nothing.

Letters are the same everywhere: b batch, f frames or views, h w height and width, c d channels, n points or
rays, s samples along a ray, v vertices, t triangles, l tokens, k lobes or levels.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray  # what jax functions take; they return a jax.Array

try:
    from jaxtyping import Bool, Float, Int, Num, PRNGKeyArray, UInt, UInt8
except ImportError:  # accelerator hosts often carry jax and nothing else

    class _Unchecked:
        def __class_getitem__(cls, item: Any) -> Any:
            return jax.Array

    Bool = Float = Int = Num = UInt = UInt8 = _Unchecked
    PRNGKeyArray = jax.Array

Params = dict[str, Any]
Scalar = Float[Array, ""]

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Num",
    "PRNGKeyArray",
    "Params",
    "Scalar",
    "UInt",
    "UInt8",
    "named_leaves",
    "on_device",
]


def on_device(tree: Any) -> Any:
    """Copies of a tree's arrays on the default device; 64-bit ones become 32-bit ones, as everywhere in jax.

    `jnp.asarray` compiles a program of 10 ms for each new shape (jax 0.10.2).
    """
    return jax.device_put(tree, may_alias=False)


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves by their path, as "a/b/c". If the tree is a single array, its name is empty."""
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
