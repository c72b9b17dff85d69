"""File names inside other files (a texture in a mesh, a frame in cameras.json): which may be opened, and where."""

import re
from pathlib import Path, PurePosixPath

from sv3d_jax.errors import InputError


class AbsentFile(InputError):
    """A file that another file names does not exist."""


def outside_reason(name: str, climb: int = 0) -> str | None:
    """Why a name must not be opened from the folder of the file that names it; None if it may be.

    Only files in that folder, below it, or up to `climb` folders above it may be opened: no URLs, no absolute paths, no
    `..` that leads further up. Backslashes separate folders as slashes do. Symbolic links are not looked at.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if re.match(r"(file|data|https?):|[a-z][a-z0-9+.-]+://", name.replace("\\", "/"), re.IGNORECASE):
        return "is an address"
    if path.is_absolute() or re.match(r"[A-Za-z]:", name):
        return "is absolute"
    depth = lowest = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        lowest = min(lowest, depth)
    return "lies outside the folder" if lowest < -climb else None


def named_file(folder: Path, name: str, where: str, climb: int = 0) -> Path:
    """The path of a file that is named relative to `folder`, if `outside_reason` allows it.

    Raises InputError, which begins with `where`, for names that are not allowed and for names of folders, such as ".".
    """
    if reason := outside_reason(name, climb):
        raise InputError(f"{where} {reason}: {name}", hint=f"give a file name relative to {folder}")
    plain = name.replace("\\", "/")
    if PurePosixPath(plain).name in ("", ".."):
        raise InputError(f"{where} names a folder, a file is needed: {name}")
    return folder / plain


def exists(path: Path) -> bool:
    """Whether there is such a file. False, not an error, for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
