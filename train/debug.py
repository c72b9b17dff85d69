"""Diagnostics that a run writes when it stops because loss or gradient were not finite."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Params, PRNGKeyArray, named_leaves
from sv3d_jax.io.outputs import write_atomic, write_json
from sv3d_jax.train.losses import Loss

REPORT, BATCH = "not_finite.json", "not_finite.npz"


def debug_report(
    loss: Loss, params: Params, ema: Params, batch: Any, key: PRNGKeyArray, metrics: dict[str, Any]
) -> dict[str, Any]:
    """Random key, metrics, ranges of the batch, and norms of weights and gradient for each part of the model.

    Every process of a run computes it, on the whole batch.
    """
    gradient = jax.jit(jax.grad(loss))(params, batch, key)
    return {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "metrics": {name: _number(value) for name, value in metrics.items()},
        "batch": {name: _range(leaf) for name, leaf in _named(batch).items()},
        "norms": {
            name: {part: _number(norm) for part, norm in part_norms(tree).items()}
            for name, tree in (("params", params), ("ema", ema), ("gradient", gradient))
        },
    }


def write_debug_bundle(folder: Path, report: dict[str, Any], rows: Any) -> Path:
    """Write the report, and this process's rows of the batch beside it; returns the path of the report."""
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(leaf) for name, leaf in _named(rows).items()})
    write_atomic(folder / BATCH, buffer.getvalue())
    write_json(folder / REPORT, report)
    return folder / REPORT


@jax.jit
def part_norms(params: Params) -> dict[str, Array]:
    """L2 norm of each part of a model: of each block of the UNet, for example `unet/middle_block_1`."""
    squares: dict[str, Array] = {}
    for name, leaf in named_leaves(params).items():
        part = "/".join(name.split("/")[:2])
        squares[part] = squares.get(part, 0.0) + jnp.square(leaf.astype(jnp.float32)).sum()
    return jax.tree.map(jnp.sqrt, squares)


def _range(leaf: Array) -> dict[str, Any]:
    low, high = jax.jit(lambda x: (jnp.nanmin(x), jnp.nanmax(x)))(leaf)
    bad = jax.jit(lambda x: (~jnp.isfinite(x)).sum())(leaf)
    return {"shape": list(leaf.shape), "min": _number(low), "max": _number(high), "not_finite": int(bad)}


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by path; a batch that is a single array gets the name `batch`."""
    return {name or "batch": leaf for name, leaf in named_leaves(tree).items()}


def _number(value: Any) -> float | str:
    """A number for JSON, which has no `nan` and `inf`: these become strings."""
    value = float(value)
    return value if math.isfinite(value) else repr(value)
