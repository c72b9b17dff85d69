"""Whether files and folders are this user's alone. Nothing that another user could have written is loaded as code.

Where the system has no user ids (Windows), what lies in the user's home folder is theirs.
"""

import os
import shlex
import stat
from pathlib import Path

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
ENTERED_BY_OTHERS = stat.S_IXGRP | stat.S_IXOTH


class NotOwn(Exception):
    """A file or folder that another user could have written; the message says which and why."""


def make_own_folder(folder: Path) -> None:
    """Make a folder, with its parents, that this user alone may enter, unless it exists.

    Raises NotOwn if it exists and is a link, belongs to another user or may be written by others; OSError if it cannot
    be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(folder, folder.lstat(), _closing(folder))


def check_own_files(folder: Path) -> None:
    """Raise NotOwn if a file of a folder of this user is a link, or belongs to or may be written by others.

    Files may have any permissions in a folder that others cannot enter: what writes them obeys the umask, which may let
    a group write every new file.
    """
    remedy = _closing(folder) if folder.stat().st_mode & ENTERED_BY_OTHERS else None
    for file in folder.iterdir():
        try:
            _check(file, file.lstat(), remedy)
        except FileNotFoundError:  # removed by another process meanwhile
            continue


def read_own_file(path: Path) -> bytes:
    """The content of a regular file that this user alone may write, opened without following a link.

    Raises NotOwn for other files, OSError if it cannot be read.
    """
    # Opening a pipe would wait for a writer without O_NONBLOCK.
    names = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in names)
    try:
        descriptor = os.open(path, flags)
    except OSError:
        if path.is_symlink():
            raise NotOwn(f"{path} is a symbolic link") from None
        raise
    with open(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        _check(path, info, f"chmod 600 {shlex.quote(str(path))}")
        if not stat.S_ISREG(info.st_mode):
            raise NotOwn(f"{path} is not a regular file")
        return file.read()


def _closing(folder: Path) -> str:
    """The command that lets this user alone enter a folder, whatever files are made in it later."""
    return f"chmod 700 {shlex.quote(str(folder))}"


def _check(path: Path, info: os.stat_result, remedy: str | None) -> None:
    """Raise NotOwn; `remedy` is the command against the rights of others to write, None if these do no harm."""
    if stat.S_ISLNK(info.st_mode):
        raise NotOwn(f"{path} is a symbolic link")
    if not hasattr(os, "getuid"):
        if not path.resolve().is_relative_to(Path.home().resolve()):
            raise NotOwn(f"{path} lies outside the home folder, where other users may write")
    elif info.st_uid != os.getuid():
        raise NotOwn(f"{path} belongs to another user")
    elif remedy and info.st_mode & WRITABLE_BY_OTHERS:
        raise NotOwn(f"{path} may be written by other users ({remedy} makes it yours alone)")
