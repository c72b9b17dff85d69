"""How arrays are split over a mesh of devices: a table of path patterns, and what follows from it.

The mesh has three axes. `data` repeats the weights and splits the batch; `fsdp` splits the batch too, and the weights
with their optimiser state, which are gathered where they are used; `tensor` splits the heads of attention and the
hidden units of feed-forward layers. Convolutions do not take part in `tensor`: where the input features of one are
split, XLA (jaxlib 0.10.2, CPU, either partitioner) gives a wrong gradient, 1 % to 50 % off, and no error.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# The first pattern that is found in the path counts. Its axes belong to the last dimensions of the array.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (
        r"(to_q|to_k|to_v|net_0/proj)/kernel$",
        ("fsdp", "tensor"),
    ),  # features out, split by head or by hidden unit
    (r"(to_out_0|net_2)/kernel$", ("tensor", "fsdp")),  # takes in what the layers above give out
    (r"kernel$", ("fsdp", None)),  # other linear layers and convolutions: in, out
    (r"", ()),  # biases, norms, counters
)


def param_spec(path: tuple[str, ...], shape: tuple[int, ...], mesh_shape: Mapping[str, int]) -> PartitionSpec:
    """Where the table puts an array; an axis is left out where it does not divide its dimension."""
    axes = next(axes for pattern, axes in RULES if re.search(pattern, "/".join(path)))
    axes = (None,) * (len(shape) - len(axes)) + axes[len(axes) - min(len(axes), len(shape)) :]
    used = [
        axis if axis and mesh_shape[axis] > 1 and size % mesh_shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    ]
    return PartitionSpec(*used)


def tree_specs(tree: Any, mesh_shape: Mapping[str, int]) -> Any:
    """`param_spec` of every leaf: parameters, their averages and moments, which end in the same paths."""

    def spec(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/")
        return param_spec(tuple(names.split("/")), leaf.shape, mesh_shape)

    return jax.tree_util.tree_map_with_path(spec, tree)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """`tree_specs` on a mesh that is here."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        tree_specs(tree, mesh.shape),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Rows split over the batch axes; whole on every device where they do not divide."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES) if rows % parts == 0 else PartitionSpec())
