"""The exceptions of the public API: each carries a message, a hint and the exit code of the command line."""


class SV3DError(Exception):
    """Base of every error that a user can act on: what was expected and what came, then what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(SV3DError):
    """A file, option or value that cannot be used as it is."""

    exit_code = 2


class CameraError(InputError):
    """A camera path that cannot be followed."""


class WeightsError(SV3DError):
    """Weights that are missing, damaged or of another model."""

    exit_code = 3


class OutOfMemory(SV3DError):
    """The device has too little memory for the request."""

    exit_code = 4


class OutputError(SV3DError):
    """Results cannot be written: disk full, read-only folder, another run holds it."""

    exit_code = 5


class CheckpointError(OutputError):
    """A training checkpoint that cannot be saved or restored."""


class Preempted(SV3DError):
    """The run was asked to end; its state is saved, the same command goes on from there."""

    exit_code = 75


class Cancelled(SV3DError):
    """The user stopped the run; finished files stay."""

    exit_code = 130

    def __init__(self, message: str = "cancelled", hint: str | None = None):
        super().__init__(message, hint)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the host or of a device did not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )
