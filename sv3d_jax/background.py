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
        self._begun: set[Future] = set()
        self._is_closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()
        atexit.register(self._finish)

    def submit(self, function: Callable[..., Any], *inputs: Any) -> Future:
        """A Future of what the function returns; it can be cancelled until a thread has begun with it."""
        future: Future = Future()
        self._calls.put((future, lambda: function(*inputs)))
        return future

    def close(self) -> None:
        """Call nothing that has not begun."""
        atexit.unregister(self._finish)
        self._is_closed = True
        for _ in self._threads:
            self._calls.put(None)  # wakes one that waits

    def _work(self) -> None:
        while (job := self._calls.get()) is not None and not self._is_closed:
            future, call = job
            self._begun.add(future)
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            self._begun.discard(future)

    def _finish(self) -> None:
        self.close()
        if not signals.ends_now():
            wait(self._begun)
