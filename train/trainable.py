"""Which parameters a run trains: all, those of the temporal layers, or low-rank adapters of linear layers.

The adapters are those of LoRA (arXiv 2106.09685, equation 3): kernel + alpha / rank * down @ up, with `up` initially 0.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Params, PRNGKeyArray, named_leaves
from sv3d_jax.train.config import TrainableConfig
from sv3d_jax.weights.key_map import tree_from_leaves

Path = tuple[str, ...]

_TEMPORAL = re.compile(r"/(time_stack|time_pos_embed|time_mixer)")
_ADAPTED = re.compile(r"/(attn\d/to_(q|k|v|out_0)|ff(_in)?/net_(0/proj|2))/kernel$")


class Trainable(NamedTuple):
    """Trained and frozen parameters, and the function that joins them."""

    initial: Params  # trained parameters, as they are before the first step
    frozen: Params  # parameters that do not change
    join: Callable[[Params, Params], Params]  # (trained, frozen) -> the whole tree, as in models and files


def choose_trainable(params: Params, config: TrainableConfig, key: PRNGKeyArray) -> Trainable:
    """Split the parameters by the settings; joining the two parts gives `params`, bit for bit."""
    if config.layers == "all":
        return Trainable(params, {}, lambda trained, frozen: trained)
    if config.layers == "lora":
        scale = config.alpha / config.rank
        return Trainable(_adapters(params, config.rank, key), params, lambda t, f: _merged(t, f, scale))
    parts = {True: [], False: []}
    for path, leaf in _leaves(params):
        parts[bool(_TEMPORAL.search("/".join(path)))].append((path, leaf))
    return Trainable(tree_from_leaves(parts[True]), tree_from_leaves(parts[False]), _united)


def fingerprint(params: Params) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for path, leaf in _leaves(params):
        digest.update("/".join(path).encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def _united(trained: Params, frozen: Params) -> Params:
    return tree_from_leaves([*_leaves(frozen), *_leaves(trained)])


def _adapters(params: Params, rank: int, key: PRNGKeyArray) -> Params:
    """`lora_down` and `lora_up` at the path of each adapted kernel."""
    kernels = [(path, leaf) for path, leaf in _leaves(params) if _ADAPTED.search("/".join(path))]
    leaves: list[tuple[Path, Array]] = []
    for index, (path, kernel) in enumerate(kernels):
        inputs, outputs = kernel.shape
        bound = 1.0 / math.sqrt(inputs)
        draw_key = jax.random.fold_in(key, index)
        down = jax.random.uniform(draw_key, (inputs, rank), minval=-bound, maxval=bound)
        leaves += [((*path[:-1], "lora_down"), down), ((*path[:-1], "lora_up"), jnp.zeros((rank, outputs)))]
    return tree_from_leaves(leaves)


def _merged(adapters: Params, params: Params, scale: float) -> Params:
    leaves, changes = dict(_leaves(params)), dict(_leaves(adapters))
    for path, down in changes.items():
        if path[-1] == "lora_down":
            up = changes[(*path[:-1], "lora_up")]
            change = scale * jnp.matmul(down, up, precision="highest")
            leaves[(*path[:-1], "kernel")] = leaves[(*path[:-1], "kernel")] + change
    return tree_from_leaves(leaves.items())


def _leaves(tree: Params) -> Iterator[tuple[Path, Array]]:
    """Path and value of every leaf, ordered by path."""
    for name, leaf in named_leaves(tree).items():
        yield tuple(name.split("/")), leaf
