"""How arrays are split over a mesh of devices: a table of patterns of parameter paths, and its use.

The mesh has three axes. `data` splits the batch and replicates the weights. `fsdp` splits the batch, the weights and
their optimiser state; weights are gathered where they are used. `tensor` splits the heads of attention and the hidden
units of feed-forward layers. Convolutions are not split over `tensor`: if their input features are split, XLA (jaxlib
0.10.2, CPU, either partitioner) computes gradients that are wrong by 1 % to 50 %, without an error.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# The first pattern that matches the path applies. Its axes are those of the last dimensions of the array.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Output features are split by head or by hidden unit.
    (r"(to_q|to_k|to_v|net_0/proj)/kernel$", ("fsdp", "tensor")),
    # Input features are split, as the layers above leave them.
    (r"(to_out_0|net_2)/kernel$", ("tensor", "fsdp")),
    # Other linear layers and convolutions: in, out.
    (r"kernel$", ("fsdp", None)),
    # Biases, norms, counters.
    (r"", ()),
)


def param_spec(path: tuple[str, ...], shape: tuple[int, ...], mesh_shape: Mapping[str, int]) -> PartitionSpec:
    """How the table splits an array; an axis is left out if it does not divide the dimension."""
    axes = next(axes for pattern, axes in RULES if re.search(pattern, "/".join(path)))
    axes = (None,) * (len(shape) - len(axes)) + axes[len(axes) - min(len(axes), len(shape)) :]
    used = [
        axis if axis and mesh_shape[axis] > 1 and size % mesh_shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ]
    return PartitionSpec(*used)


def tree_specs(tree: Any, mesh_shape: Mapping[str, int]) -> Any:
    """`param_spec` of every leaf, for parameters and also their averages and moments, whose paths end the same."""

    def spec(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/")
        return param_spec(tuple(names.split("/")), leaf.shape, mesh_shape)

    return jax.tree_util.tree_map_with_path(spec, tree)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """`tree_specs` as shardings on a mesh."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        tree_specs(tree, mesh.shape),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Rows split over the batch axes, or replicated on every device if the axes do not divide them."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES) if rows % parts == 0 else PartitionSpec())
