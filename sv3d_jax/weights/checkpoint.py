"""Parameter trees as Orbax checkpoints, written and read in bounded memory.

Orbax restores a damaged byte as a wrong number without an error. So a CRC-32 of every leaf is kept in the checkpoint's
own metadata and compared when the leaf is read.
"""

import ctypes
import gc
import logging
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.errors import WeightsError, is_out_of_memory
from sv3d_jax.weights.key_map import tree_from_leaves
from sv3d_jax.weights.safetensors_file import MAX_HEADER_BYTES, TensorInfo

TreePath = tuple[str, ...]

_BATCH_BYTES = 256 << 20  # leaves handed to Orbax at a time; it holds about three copies of them


def save_leaves(directory: Path, leaves: Iterable[tuple[TreePath, np.ndarray]]) -> None:
    """Write (path, leaf) pairs as one checkpoint; `directory` appears once the last one is written."""
    import orbax.checkpoint.experimental.v1 as ocp

    logging.getLogger("absl").setLevel(
        logging.CRITICAL
    )  # Orbax also logs the traces of errors that it raises
    for batch in _batches(leaves, lambda leaf: leaf[1].nbytes):
        batch = [(path, np.ascontiguousarray(leaf)) for path, leaf in batch]
        checksums = {"/".join(path): _checksum(leaf) for path, leaf in batch}
        ocp.partial.save(directory, tree_from_leaves(batch), custom_metadata={"crc32": checksums})
        del batch
        _return_memory()
    ocp.partial.finalize(directory)


class SavedTree:
    """A checkpoint on disk: types and shapes of its leaves are read when it is opened, values on demand."""

    def __init__(self, directory: Path):
        import orbax.checkpoint.experimental.v1 as ocp

        self.directory = directory
        for file in (*directory.glob("_*METADATA"), *directory.glob("*/_*METADATA")):
            if (size := file.stat().st_size) > MAX_HEADER_BYTES:
                raise WeightsError(f"{file} has {size} bytes, up to {MAX_HEADER_BYTES} are read")
        try:
            metadata = ocp.metadata(directory.absolute())  # Orbax finds nothing under a relative path
            if not isinstance(metadata.metadata, dict):  # what Orbax returns where it found no arrays
                raise ValueError("its arrays are missing")
            self.leaves = {
                path: TensorInfo(np.dtype(leaf.dtype), tuple(leaf.shape))
                for path, leaf in _flat(metadata.metadata)
            }
            custom: Any = metadata.custom_metadata
            self.checksums: dict[str, int] = dict((custom or {}).get("crc32", {}))
        except Exception as error:  # Orbax raises whatever its file reader meets
            if is_out_of_memory(error):
                raise
            raise self._unreadable(error) from error

    def read(self, paths: Iterable[TreePath]) -> Iterator[np.ndarray]:
        """The leaves at `paths`, in that order; WeightsError for one that is damaged."""
        import orbax.checkpoint.experimental.v1 as ocp

        context = ocp.Context()
        context.pytree.loading.partial_load = True
        for batch in _batches(paths, lambda path: self.leaves[path].nbytes):
            wanted = tree_from_leaves(
                (path, np.empty(self.leaves[path].shape, self.leaves[path].dtype)) for path in batch
            )
            try:
                with context:
                    values = dict(_flat(ocp.load(self.directory.absolute(), wanted)))
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise self._unreadable(error) from error
            for path in batch:
                leaf = values.pop(path)
                self._verify(path, leaf)
                yield leaf
                del leaf
            _return_memory()

    def _verify(self, path: TreePath, leaf: np.ndarray) -> None:
        name = "/".join(path)
        if self.checksums.get(name, _checksum(leaf)) != _checksum(leaf):
            raise WeightsError(
                f"{self.directory} is damaged: {name} has changed since it was written",
                "convert the weights again",
            )

    def _unreadable(self, error: Exception) -> WeightsError:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        return WeightsError(f"{self.directory} cannot be read as an Orbax checkpoint: {reason}")


def _batches(items: Iterable, nbytes) -> Iterator[list]:
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += nbytes(item)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _flat(tree: dict, path: TreePath = ()) -> Iterator[tuple[TreePath, np.ndarray]]:
    for key, node in tree.items():
        if isinstance(node, dict):
            yield from _flat(node, (*path, key))
        else:
            yield (*path, key), node


def _checksum(leaf: np.ndarray) -> int:
    return zlib.crc32(leaf.reshape(-1).view(np.uint8).data)


def _return_memory() -> None:
    """Return freed memory to the system: Orbax's threads leave it in many arenas of the allocator, which keep it."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
        libc.malloc_trim(0)
