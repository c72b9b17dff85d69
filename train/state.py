"""The state of a training run, and its checkpoints: one file each, written whole or not at all."""

import json
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sv3d_jax.arrays import Array, Params
from sv3d_jax.errors import CheckpointError
from sv3d_jax.io.outputs import write_atomic

KEPT_CHECKPOINTS = 2


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose bytes are not those that were saved."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that the next step depends on, besides the run's settings."""

    step: Array  # steps taken, skipped ones included
    params: Params
    ema: Params  # running average of params, the weights that are shipped
    opt_state: optax.OptState
    skipped: Array  # steps left out because loss or gradient was not finite
    skipped_in_row: Array


def new_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    # Every leaf is a buffer of its own, so that the step may reuse the memory of the state it is given.
    step, skipped, skipped_in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(step, params, ema, optimizer.init(params), skipped, skipped_in_row)


def save_checkpoint(directory: Path, state: TrainState, settings: dict[str, Any]) -> Path:
    """Write `step-N.safetensors` with a checksum of every array, then drop all but the newest two."""
    from safetensors.numpy import save

    arrays = _named_arrays(state)
    needed = int(1.1 * sum(array.nbytes for array in arrays.values()))
    directory.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(directory).free) < needed:
        raise CheckpointError(
            f"{directory}: a checkpoint needs {needed >> 20} MiB, {free >> 20} MiB are free",
            hint="make room and run the same command again",
        )
    checksums = {name: zlib.crc32(array.tobytes()) for name, array in arrays.items()}
    metadata = {"settings": json.dumps(settings, sort_keys=True), "crc32": json.dumps(checksums)}
    path = directory / f"step-{int(state.step):09d}.safetensors"
    write_atomic(path, save(arrays, metadata))
    for step in checkpoint_steps(directory)[:-KEPT_CHECKPOINTS]:
        (directory / f"step-{step:09d}.safetensors").unlink()
    return path


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first."""
    found = (re.fullmatch(r"step-(\d{9})\.safetensors", path.name) for path in directory.glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def load_checkpoint(directory: Path, like: TrainState, step: int, settings: dict[str, Any]) -> TrainState:
    """The state saved at a step, shaped like `like`; other settings or damaged arrays are refused."""
    arrays, saved = read_checkpoint(directory, step)
    if saved != settings:
        names = sorted(name for name in {*saved, *settings} if saved.get(name) != settings.get(name))
        raise CheckpointError(
            f"{directory} holds a run with other settings: {', '.join(names)}",
            hint="choose another folder with -o, or --overwrite to begin afresh",
        )
    expected = _named_arrays(like)
    for name in sorted({*expected, *arrays}):
        ours, theirs = expected.get(name), arrays.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise CheckpointError(f"the checkpoint in {directory} is of another model: {name} does not fit")
    leaves = [jnp.asarray(arrays[name]) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read_checkpoint(directory: Path, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays of a checkpoint by name, their checksums compared, and the settings of its run."""
    from safetensors import SafetensorError, safe_open

    path = directory / f"step-{step:09d}.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no checkpoint of step {step} in {directory}",
            hint=f"there are: {', '.join(map(str, checkpoint_steps(directory))) or 'none'}",
        ) from None
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}") from None
    for name, checksum in json.loads(metadata["crc32"]).items():
        if zlib.crc32(arrays[name].tobytes()) != checksum:
            raise DamagedCheckpoint(f"{path} is damaged: the checksum of {name} differs")
    return arrays, json.loads(metadata["settings"])


def load_latest(directory: Path, like: TrainState, settings: dict[str, Any]) -> TrainState | None:
    """The newest checkpoint that is whole, None where there is none; stray temporary files are removed."""
    for stray in directory.glob("step-*.tmp"):
        stray.unlink()
    steps = checkpoint_steps(directory)
    for step in reversed(steps):
        try:
            return load_checkpoint(directory, like, step, settings)
        except DamagedCheckpoint:
            if step == steps[0]:
                raise
    return None


def _named_arrays(tree: Any) -> dict[str, np.ndarray]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in paths}
