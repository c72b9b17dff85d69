"""Arrays that a run keeps for a later start; a damaged file is thrown away, so that its content is made again."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sv3d_jax.errors import InputError, is_out_of_memory, is_refused_by_system
from sv3d_jax.io.outputs import write_atomic


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as an .npz file, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz file by name; None if it does not exist or is damaged, and a damaged one is removed.

    The checksums of its parts are compared first: a damaged header could ask for any amount of memory. Compressed
    parts, which could expand to any size, are not ours. Raises InputError where the system refuses to read the file,
    as a network's disk may for a while: it stays, since nothing says that it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise zipfile.BadZipFile("a compressed part")
            if (part := archive.testzip()) is not None:
                raise zipfile.BadZipFile(part)
        with np.load(path) as saved:
            return {name: saved[name] for name in saved.files}
    except FileNotFoundError:
        return None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if is_refused_by_system(error):
            raise InputError(
                f"{path} cannot be read: {error}", hint="run again; if it stays so, remove the file"
            ) from error
        path.unlink(missing_ok=True)
        return None
