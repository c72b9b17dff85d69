"""The exceptions of the public API, each with a message, a hint and the exit code of the command line."""

import errno

from sv3d_jax.names_of_flags import for_reader


class SV3DError(Exception):
    """Base of all errors that a user can fix. `message` says what is wrong, `hint` what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        self.message = for_reader(message)
        self.hint = None if hint is None else for_reader(hint)
        super().__init__(self.message)


class InputError(SV3DError):
    """An invalid file, option or value."""

    exit_code = 2


class CameraError(InputError):
    """An invalid camera path."""


class WeightsError(SV3DError):
    """Weights that are missing, damaged, or those of another model."""

    exit_code = 3


class OutOfMemory(SV3DError):
    """The device has too little memory for the request."""

    exit_code = 4


class OutputError(SV3DError):
    """Results cannot be written: the disk is full, or the folder is read-only or in use by another run."""

    exit_code = 5


class CheckpointError(OutputError):
    """A training checkpoint that cannot be saved or restored."""


class Preempted(SV3DError):
    """The run was asked to stop and has saved its state; the same command resumes it."""

    exit_code = 75


class Cancelled(SV3DError):
    """The user stopped the run; finished files are kept."""

    exit_code = 130

    def __init__(self, message: str = "cancelled", hint: str | None = None):
        super().__init__(message, hint)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full or a quota is used up, also where a library says so in its words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return "No space left" in str(error) or (
        isinstance(error, ValueError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def is_refused_by_system(error: BaseException) -> bool:
    """Whether an error of opening or reading a file is the system's, which says nothing about the file's content.

    A disk of a network may refuse for a while. Parsers raise OSErrors too: without a number, or for a wrong offset.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the host or a device ran out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )
