"""Files that other files name: where they lie, and which names are not followed."""

import re
from pathlib import Path, PurePosixPath

from sv3d_jax.errors import InputError


class AbsentFile(InputError):
    """A file that another one names and that is not there."""


def named_file(folder: Path, name: str, where: str, climb: int = 0) -> Path:
    """The path that a name relative to `folder` means; backslashes separate folders as slashes do.

    `climb` is how many folders above `folder` the name may reach. Raises InputError, which begins with `where`, for
    addresses, absolute names, names that lead further out and those of folders, such as ".".
    """
    plain = name.replace("\\", "/")
    if re.match(r"(file|data|https?):|[a-z][a-z0-9+.-]+://", plain, re.IGNORECASE):
        raise InputError(f"{where} is an address, a file name relative to {folder} is needed: {name}")
    if PurePosixPath(plain).is_absolute() or re.match(r"[A-Za-z]:", plain):
        raise InputError(f"{where} is absolute, a file name relative to {folder} is needed: {name}")
    depth = lowest = 0
    for part in PurePosixPath(plain).parts:
        depth += -1 if part == ".." else 1
        lowest = min(lowest, depth)
    if lowest < -climb:
        raise InputError(f"{where} lies outside the folder: {name}", hint=f"expected below {folder}")
    if PurePosixPath(plain).name in ("", ".."):
        raise InputError(f"{where} names a folder, a file is needed: {name}")
    return folder / plain


def exists(path: Path) -> bool:
    """Whether there is such a file; no name is too long or too odd to ask."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
