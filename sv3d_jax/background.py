"""Work beside the main thread, in threads that a process which ends does not wait for.

Those of a `ThreadPoolExecutor` are waited for, which takes seconds where one of them compiles: too long after Ctrl-C,
or after an error.
"""

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any

from sv3d_jax import signals


class Background:
    """Calls functions in threads, in the order in which they were given.

    The `sv3d` command ends without waiting. Any other process finishes the calls that have begun: while Python shuts
    down, no thread may be inside jax.
    """

    def __init__(self, threads: int):
        self._calls: SimpleQueue[tuple[Future, Callable[[], Any]] | None] = SimpleQueue()
        self._is_closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()
        if not _ending.is_registered:
            _ending.is_registered = True
            atexit.register(_finish)  # after jax has registered what takes it apart, so before that is called

    def submit(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Future:
        """A Future of what the function returns; it can be cancelled until a thread has begun with it."""
        future: Future = Future()
        self._calls.put((future, lambda: function(*inputs, **options)))
        return future

    def close(self) -> None:
        """Call nothing that has not begun."""
        self._is_closed = True
        for _ in self._threads:
            self._calls.put(None)  # wakes one that waits

    def _work(self) -> None:
        while (job := self._calls.get()) is not None:
            future, call = job
            with _ending.lock:
                if self._is_closed or _ending.has_begun:
                    return
                _ending.calls.add(future)
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            _ending.calls.discard(future)


class _Ending:
    """What the end of the process waits for."""

    is_registered = has_begun = False
    lock = threading.Lock()
    calls: set[Future] = set()  # that have begun, of all threads


_ending = _Ending()


def _finish() -> None:
    with _ending.lock:
        _ending.has_begun = True
    if not signals.ends_now():
        wait(_ending.calls)
