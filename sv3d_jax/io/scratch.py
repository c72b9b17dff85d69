"""Arrays that a run keeps for a later start; a damaged file is thrown away, so that its content is made again."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sv3d_jax.io.outputs import write_atomic
from sv3d_jax.io.reading import check_is_damage


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
        check_is_damage(path, error)
        path.unlink(missing_ok=True)
        return None
