"""Ctrl-C and SIGTERM for the `sv3d` command, and worker processes that end with their parent.

A signal never interrupts code at an arbitrary place, where libraries swallow the exception. It is noted, and `check`
ends the run at its next step. A thread ends the process if no step comes within GRACE_S: while modules are imported,
programs are compiled or a device computes. That loses nothing, as files appear only once they are complete. A second
signal ends the process at once.

This module is imported before all others of the command, and so imports little itself.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from sv3d_jax.errors import Cancelled, Preempted, SV3DError

GRACE_S = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)
REMOVAL_WAITS_S = (0.0, 0.05, 0.1, 0.2, 0.4)
PR_SET_PDEATHSIG = 1  # of Linux's prctl
SHOW_CURSOR = b"\x1b[?25h"


class _Received:
    """What has arrived in this process so far."""

    first: int | None = None
    raised = False  # the main thread is on its way out
    finishing = False  # SIGTERM waits for the end of a step and its save
    code: int | None = None  # of a run that is over
    mask: Any = None  # of the blocked signals before a fork


_received = _Received()
_temporaries: set[Path] = set()


def install() -> None:
    """Handle SIGINT and SIGTERM in this process until it ends; the first call of the `sv3d` command.

    One that the parent lets it ignore stays ignored: Ctrl-C for a job that a shell script runs in the background.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)
    # The system's handler writes each signal's number to the socket, also while no Python code can run.
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    atexit.register(_leave)  # first to be registered, last to run
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_uninstall)


def end_with(code: int) -> None:
    """Let this process end with an exit code, whatever arrives while Python shuts down."""
    _received.code = code


def ends_now() -> bool:
    """Whether this process is on its way out and waits for nothing."""
    return _received.code is not None


def check() -> None:
    """Raise Cancelled after Ctrl-C and Preempted after SIGTERM; called at every step of a run.

    Does nothing in other threads than the main one, and for a SIGTERM inside `finishing`.
    """
    if _received.first is None or threading.current_thread() is not threading.main_thread():
        return
    if not (_received.finishing and _received.first == signal.SIGTERM):
        _received.raised = True
        raise _reason(_received.first)


@contextmanager
def finishing() -> Iterator[None]:
    """A context in which SIGTERM is only noted, for `asked`: the run ends itself, after a step that it saves.

    Where `install` was not called, a second SIGTERM has its former effect.
    """
    previous = signal.getsignal(signal.SIGTERM)

    def note_once(number: int, frame: FrameType | None) -> None:
        _note(number, frame)
        signal.signal(number, previous)

    signal.signal(signal.SIGTERM, _note if previous is _note else note_once)
    _received.finishing = True
    try:
        yield
    finally:
        _received.finishing = False
        signal.signal(signal.SIGTERM, previous)
        if previous is not _note:  # not the command: the caller goes on
            _received.first = None


def asked() -> bool:
    """Whether SIGTERM has arrived."""
    return _received.first == signal.SIGTERM


@contextmanager
def temporary(path: Path) -> Iterator[None]:
    """A context for writing a file or folder that is removed if an exception or a signal ends it."""
    _temporaries.add(path)
    try:
        yield
    except BaseException:
        _remove(path)
        raise
    finally:
        _temporaries.discard(path)


@contextmanager
def interrupt_blocked() -> Iterator[None]:
    """A context for starting child processes, which inherit it: on Ctrl-C in a terminal only their parent acts."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """End this child process of `multiprocessing` when its parent ends, however that happens."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:  # on other systems, and if the parent ended before the call above
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_children() -> None:
    """Kill all child processes of `multiprocessing`."""
    if "multiprocessing.context" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()


def _note(number: int, frame: FrameType | None) -> None:
    if _received.first is None:
        _received.first = number


def _watch(reader: socket.socket) -> None:
    """Wait for signals: the first gives the main thread GRACE_S, the second ends the process."""
    first = _next(reader)
    _note(first, None)
    reader.settimeout(GRACE_S)
    with suppress(TimeoutError):
        _next(reader)
        _end(first)
    if not (_received.raised or (_received.finishing and first == signal.SIGTERM)):
        _end(first)
    reader.settimeout(None)
    _next(reader)
    _end(first)


def _next(reader: socket.socket) -> int:
    """The next of SIGNALS; those that other code handles arrive here as well."""
    while (number := reader.recv(1)[0]) not in SIGNALS:
        pass
    return number


def _end(number: int) -> None:
    """End this process and its children now."""
    reason = _reason(number)
    end_children()
    for path in list(_temporaries):
        _remove(path)
    with suppress(OSError):  # not through sys.stderr, whose lock the main thread may hold
        if os.isatty(2):
            os.write(2, SHOW_CURSOR + b"\n")
        os.write(2, f"sv3d: {reason.message}\n".encode())
    os._exit(reason.exit_code)


def _remove(path: Path) -> None:
    """Remove a file or folder, also one that other threads are still writing to, for some time."""
    import shutil

    for wait_s in REMOVAL_WAITS_S:
        time.sleep(wait_s)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
        if not path.exists():
            return


def _reason(number: int) -> SV3DError:
    if number == signal.SIGTERM:
        return Preempted(
            "stopped by SIGTERM; finished files are kept", hint="the same command goes on from there"
        )
    return Cancelled("stopped; finished files are kept")


def _leave() -> None:
    if _received.code is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # closed, or none from the start
                stream.flush()
        os._exit(_received.code)


def _block() -> None:
    _received.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _received.mask)


def _uninstall() -> None:
    """What is left to do in a forked child: signals have their usual effects."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    atexit.unregister(_leave)
    _unblock()
