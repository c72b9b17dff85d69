"""File names inside other files (a texture in a mesh, a frame in cameras.json): which may be opened, and where.

One rule for all formats: what a file names is opened only in the folder of that file or below it, links included. In
scenes of other programs the names may lead one folder up, and COLMAP's pictures may lie anywhere in the scene's folder.
"""

import re
from pathlib import Path, PurePosixPath

from sv3d_jax.errors import InputError, SV3DError


def refuse_address(path: Path | str, error: type[SV3DError] = InputError) -> None:
    """Raise `error` for a web address in place of a file; `Path` has left one slash of it."""
    if match := re.fullmatch(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)", str(path)):
        address = f"{match[1]}://{match[2]}"
        raise error(
            f"{address} is a web address, which is not fetched", hint="download it, and name the file"
        )


def printable(text: str) -> str:
    """A text with its control characters, which could steer a terminal, as escapes; lines and tabs stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


class AbsentFile(InputError):
    """A file that another file names does not exist."""


def outside_reason(name: str, climb: int = 0) -> str | None:
    """Why a name must not be opened from the folder of the file that names it; None if it may be.

    Only files in that folder, below it, or up to `climb` folders above it may be opened: no URLs, no absolute paths, no
    `..` that leads further up. Backslashes separate folders as slashes do. `leads_out` looks at links.
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


def leads_out(path: Path, folder: Path) -> bool:
    """Whether links on the way to a path end outside a folder; the folder itself may be a link."""
    try:
        return not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # cycles of links, names that no file can have
        return False  # there is nothing to open


def named_file(folder: Path, name: str, where: str, climb: int = 0, within: Path | None = None) -> Path:
    """The path of a file that is named relative to `folder`, if `outside_reason` allows it.

    Raises InputError, which begins with `where`, for names that are not allowed, for names of folders, such as ".", and
    for links that lead out of the folder, or out of `within` if that is given.
    """
    if reason := outside_reason(name, climb):
        raise InputError(f"{where} {reason}: {name}", hint=f"give a file name relative to {folder}")
    plain = name.replace("\\", "/")
    if PurePosixPath(plain).name in ("", ".."):
        raise InputError(f"{where} names a folder, a file is needed: {name}")
    return not_leading_out(folder / plain, within or folder.joinpath(*[".."] * climb), where)


def not_leading_out(path: Path, folder: Path, where: str) -> Path:
    """The path, unless it `leads_out` of the folder; then InputError, which begins with `where`."""
    if leads_out(path, folder):
        raise InputError(
            f"{where} is a link that leads out of the folder: {path}",
            hint="put the file itself there; links are followed only within the folder",
        )
    return path


def exists(path: Path) -> bool:
    """Whether there is such a file. False, not an error, for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
