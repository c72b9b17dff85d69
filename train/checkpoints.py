"""Checkpoints of training states: saved by Orbax in the background, with a checksum of each leaf.

Orbax does not detect flipped bits. Every leaf therefore has a checksum, computed on the devices before saving and after
restoring, which does not depend on how the leaf is sharded.
"""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sv3d_jax.arrays import Array, named_leaves
from sv3d_jax.errors import CheckpointError, is_disk_full, is_out_of_memory
from sv3d_jax.io.documents import json_checksum
from sv3d_jax.io.outputs import free_bytes
from sv3d_jax.io.reading import reading
from sv3d_jax.parallel.devices import same_for_all

CHECKPOINTS = "checkpoints"  # folder inside the run's folder
KEPT_CHECKPOINTS = 2
FREE_SPACE_FACTOR = 1.1  # free space that a save needs, as a multiple of the size of the state


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose content differs from what was saved."""


class Checkpoints:
    """The checkpoints in one folder, of which the newest two are kept.

    `save` returns before the files are written; an error in writing them is raised by the next `save` or by `wait`, and
    leaves the earlier checkpoints intact. Use in a `with` block.
    """

    def __init__(self, directory: Path, read_only: bool = False):
        self.directory = directory.absolute()
        self._read_only = read_only
        self._pending: int | None = None
        self._manager = self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, settings: Mapping[str, Any]) -> None:
        """Start writing a state. Raises CheckpointError if disk space is short, or if the previous save failed."""
        self.wait()
        arrays = named_leaves(state)
        needed = int(FREE_SPACE_FACTOR * sum(leaf.nbytes for leaf in arrays.values()))
        free = free_bytes(self.directory)
        if not same_for_all(free >= needed):
            raise CheckpointError(
                f"{self.directory}: a checkpoint needs {needed / 1e6:.4g} MB, but only {free / 1e6:.4g} MB are free",
                hint="free some disk space and run the same command again",
            )
        record = {"settings": settings, "checksums": _checksums_of(arrays)}
        record["crc32"] = json_checksum(record)
        self._pending = step
        with self._named_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_stored_names(arrays)), record=ocp.args.JsonSave(record)
                ),
            )

    def wait(self) -> None:
        """Return when the last save is on disk; raises CheckpointError if it could not be written."""
        with self._named_errors():
            self._manager.wait_until_finished()
        self._pending = None

    def restore(self, step: int, like: Any, settings: Mapping[str, Any], cast: bool = False) -> Any:
        """The state saved at a step, with the shapes, types and shardings of the leaves of `like`.

        Later checkpoints are deleted. Raises CheckpointError if the settings or the model differ, or the precision
        without `cast`; DamagedCheckpoint if a value has changed since it was saved.
        """
        expected, record = named_leaves(like), self._record(step)
        if record["settings"] != settings:
            saved = record["settings"]
            names = sorted(name for name in {*saved, *settings} if saved.get(name) != settings.get(name))
            raise CheckpointError(
                f"{self.directory} holds a run with other settings: {', '.join(names)}",
                hint="choose another folder with -o, or --overwrite to start over",
            )
        self._check_shapes(step, expected, cast)
        arrays = self._read(step, expected)
        if not cast:
            self._verify(step, arrays, record["checksums"])
        for later in self.steps():
            if later > step:  # Orbax saves nothing before its newest step
                self._manager.delete(later)
        return jax.tree.unflatten(jax.tree.structure(like), arrays.values())

    def restore_latest(self, like: Any, settings: Mapping[str, Any], cast: bool = False) -> Any | None:
        """The newest undamaged checkpoint, or None if there are no checkpoints; raises if all are damaged."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step, like, settings, cast)
            except DamagedCheckpoint:
                if step == steps[0]:
                    raise
        return None

    def read(self, step: int, prefix: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays whose names begin with the prefix, by name, and the settings of the run."""
        record, saved = self._record(step), self._metadata(step)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
            for name, leaf in saved.items()
            if name.startswith(prefix)
        }
        arrays = self._read(step, wanted)
        self._verify(step, arrays, record["checksums"])
        return {name: np.asarray(leaf) for name, leaf in arrays.items()}, record["settings"]

    def settings(self, step: int) -> dict[str, Any]:
        """Settings of the run that saved a step."""
        return self._record(step)["settings"]

    def reached_preemption(self, step: int) -> bool:
        """Whether one of several processes was asked to end; true on all of them at the same step."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Release what Orbax holds, after the save in progress; call `wait` first to see its errors."""
        with contextlib.suppress(CheckpointError):
            self.wait()
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        # Orbax logs every step of every save, and the traces of errors that it raises as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT_CHECKPOINTS,
            create=not self._read_only,
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
        if self._read_only:
            with reading(self.directory, "is no folder of checkpoints", error=CheckpointError):
                return ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        # It makes the folder and waits for the other processes; their end is not a fault of the folder.
        try:
            return ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        except Exception as error:
            if not (isinstance(error, OSError) or is_disk_full(error)):
                raise
            raise CheckpointError(
                f"{self.directory}: checkpoints cannot be written: {_reason(error)}",
                hint="is the disk full or read-only?",
            ) from error

    @contextlib.contextmanager
    def _named_errors(self):
        try:
            yield
        except Exception as error:  # Orbax raises whatever its file writer meets
            step, self._pending = self._pending, None
            with contextlib.suppress(Exception):
                self._manager.close()
            self._manager = self._open()  # removes partly written files
            raise CheckpointError(
                f"{self.directory}: the checkpoint of step {step} could not be written: " + _reason(error),
                hint="is the disk full or read-only? earlier checkpoints are kept",
            ) from error

    def _record(self, step: int) -> dict[str, Any]:
        if step not in self.steps():
            raise CheckpointError(
                f"there is no checkpoint of step {step} in {self.directory}",
                hint=f"there are: {', '.join(map(str, self.steps())) or 'none'}",
            )
        try:
            record = self._manager.restore(
                step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            ).record
            # Checkpoints of earlier versions have no checksum of the record.
            is_whole = "crc32" not in record or record.pop("crc32") == json_checksum(record)
            if not (
                is_whole and isinstance(record["settings"], dict) and isinstance(record["checksums"], dict)
            ):
                raise ValueError("its record has changed since it was written")
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error
        return record

    def _metadata(self, step: int) -> dict[str, Any]:
        try:
            tree = dict(self._manager.item_metadata(step).state.tree)
            arrays = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in tree.items()}
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error
        return {name.replace(".", "/"): leaf for name, leaf in arrays.items()}

    def _check_shapes(self, step: int, expected: Mapping[str, Any], cast: bool) -> None:
        saved = self._metadata(step)
        for name in sorted({*expected, *saved}):
            ours, theirs = expected.get(name), saved.get(name)
            if ours is None or theirs is None or tuple(ours.shape) != tuple(theirs.shape):
                raise CheckpointError(
                    f"the checkpoint in {self.directory} is of another model: {name} is missing or has another shape"
                )
            if ours.dtype != theirs.dtype and not cast:
                raise CheckpointError(
                    f"the checkpoint in {self.directory} has {name} as {theirs.dtype}, this run has {ours.dtype}",
                    hint="--cast converts it",
                )

    def _read(self, step: int, like: Mapping[str, Any]) -> dict[str, Array]:
        wanted = _stored_names(like)
        restore = ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(state=restore)).state
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self._damaged(step, _first_line(error)) from error
        return {name: found[name.replace("/", ".")] for name in like}

    def _verify(self, step: int, arrays: Mapping[str, Array], checksums: Mapping[str, int]) -> None:
        for name, checksum in _checksums_of(arrays).items():
            if checksums.get(name) != checksum:
                raise self._damaged(step, f"the checksum of {name} differs")

    def _damaged(self, step: int, reason: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"{self.directory}: the checkpoint of step {step} is damaged: {reason}",
            hint="--resume with the number of an earlier step resumes from there",
        )


def checksum(leaf: Array) -> Array:
    """A 32-bit sum of the words, each hashed and then multiplied by an odd number that depends on its index.

    Integer addition wraps, so the order, and with it the sharding, does not matter. The hash and the multiplication by
    an odd number are invertible, so a change of any one word always changes the sum.
    """
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    words = bits.astype(jnp.uint32)
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = words ^ (words >> 13)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    weight = (2 * place + 1) * np.uint32(0x9E3779B1)
    return (words * weight).sum(dtype=jnp.uint32)


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, oldest first."""
    if not directory.is_dir():
        return []
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.steps()


def read_checkpoint(
    directory: Path, step: int, prefix: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of a checkpoint whose names begin with the prefix, by name, and the settings of its run."""
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.read(step, prefix)


def read_settings(directory: Path) -> dict[str, Any]:
    """The settings of the run whose checkpoints these are."""
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.settings(checkpoints.steps()[-1])


@jax.jit
def _checksums(leaves: list[Array]) -> Array:
    return jnp.stack([checksum(leaf) for leaf in leaves])


def _checksums_of(arrays: Mapping[str, Array]) -> dict[str, int]:
    return dict(zip(arrays, np.asarray(_checksums(list(arrays.values()))).tolist(), strict=True))


def _stored_names(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Orbax takes a slash for a folder; parameter names have no dots."""
    return {name.replace("/", "."): leaf for name, leaf in arrays.items()}


def _reason(error: Exception) -> str:
    return "no space left on the disk" if is_disk_full(error) else _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
