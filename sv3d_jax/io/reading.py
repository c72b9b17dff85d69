"""Reading files that others wrote: one guard turns whatever a parser raises into an error that names the file."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sv3d_jax.errors import InputError, SV3DError, is_out_of_memory, is_refused_by_system
from sv3d_jax.io.names import refuse_address


@contextlib.contextmanager
def reading(
    path: Path | str, fault: str, hint: str | None = None, error: type[SV3DError] = InputError
) -> Iterator[None]:
    """A context for opening and parsing a file; `fault` says what is wrong if that fails: "is not JSON", for example.

    Parsers raise errors of any kind on damaged files. What is raised inside becomes `error`: the name of the file, then
    the fault, or the system's reason why it cannot be opened; the cause is kept for -v. Errors of this package and
    those of too little memory pass. Only parsing belongs inside, or mistakes of ours would be taken for damaged files.
    """
    try:
        yield
    except (SV3DError, MemoryError):
        raise
    except FileNotFoundError as cause:
        refuse_address(path, error)
        raise error(f"{path} does not exist", hint) from cause
    except IsADirectoryError as cause:
        raise error(f"{path} is a folder, a file is needed", hint) from cause
    except Exception as cause:
        if is_out_of_memory(cause):
            raise
        # Decoders raise OSErrors of their own, without a reason of the system.
        if isinstance(cause, OSError) and cause.strerror:
            raise error(f"{path} cannot be read: {cause.strerror}", hint) from cause
        raise error(f"{path} {fault}", hint) from cause


def check_is_damage(path: Path, error: Exception) -> None:
    """Return if an error, raised in reading a file of our own, means that it is damaged, so that it may be made again.

    Raises it again if memory ran out, and InputError if the system refuses to read the file, as a network's disk may
    for a while: then nothing says that it is damaged.
    """
    if is_out_of_memory(error):
        raise error
    if is_refused_by_system(error):
        raise InputError(
            f"{path} cannot be read: {error}", hint="run again; if it stays so, remove the file"
        ) from error


def open_file(path: Path | str) -> BinaryIO:
    """A file open for reading. Raises OSErrors for `reading`, also for a pipe or device, which might never end."""
    # Opening a pipe would wait for a writer without O_NONBLOCK.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(path, "rb", opener=lambda name, _: os.open(name, flags))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def read_file(path: Path | str, max_bytes: int, error: type[SV3DError] = InputError) -> bytes:
    """The content of a file. Raises `error` if it has more than `max_bytes`, and OSErrors for `reading`."""
    with open_file(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise error(f"{path} has more than {max_bytes / 1e6:g} MB, the most that is read")
    return data
