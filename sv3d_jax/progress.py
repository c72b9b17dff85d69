"""Progress on stderr: live bars on a terminal, otherwise plain lines at most every ten seconds.

Every step that is shown is a place where a run can be stopped.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from sv3d_jax import signals
from sv3d_jax.io.names import printable

PLAIN_INTERVAL_S = 10.0


class Progress:
    """Shows the stages of a run with steps done and time left.

        with Progress(["load", "sample", "write"]) as progress:
            progress.stage("sample", total=50)
            progress.advance()

    `note` always prints a line (a warning, a remark), also outside of the `with` block.
    """

    def __init__(self, stages: Sequence[str] = (), stream: TextIO | None = None):
        self.stages = stages
        stream = stream if stream is not None else sys.stderr
        self._stream = stream if stream is not None else open(os.devnull, "w")  # no stderr since the start
        self._name, self._total, self._done = "", None, 0
        self._stage_start = time.monotonic()
        self._last_line = -float("inf")
        self._live: Any = None
        self._task: Any = None

    @property
    def stages(self) -> list[str]:
        """The names of the stages in their order; a name may come several times. Setting them starts anew."""
        return self._stages

    @stages.setter
    def stages(self, names: Sequence[str]) -> None:
        self._stages, self._place = list(names), -1

    def __enter__(self) -> "Progress":
        if self._stream.isatty():
            self._live = _live_view(self._stream)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            if error[0] is None:
                self._complete()
            self._live.stop()
            self._live = None

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin the stage `name` of `total` steps (None: not counted in steps)."""
        signals.check()
        self._complete()
        self._name, self._total, self._done = name, total, 0
        self._place = self._next_place(name)
        self._stage_start = time.monotonic()
        if self._live is not None:
            self._task = self._live.add_task(self._label(), total=total)
        else:
            self._plain_line()

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more steps of the current stage as done."""
        signals.check()
        self._done += steps
        if self._live is not None:
            self._live.update(self._task, advance=steps)
        else:
            self._plain_line()

    def note(self, text: str) -> None:
        """Print a line above the progress."""
        if self._live is not None:
            self._live.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        else:
            self._print(text)

    def _complete(self) -> None:
        if self._task is not None:
            done = self._total or 1
            self._live.update(self._task, total=done, completed=done)
            self._task = None

    def _next_place(self, name: str) -> int:
        """Where `name` comes next among the stages; its first place where it does not come again."""
        places = [place for place, stage in enumerate(self.stages) if stage == name]
        return next((place for place in places if place > self._place), places[0] if places else self._place)

    def _label(self) -> str:
        if self._name not in self.stages:
            return self._name
        return f"{self._place + 1}/{len(self.stages)} {self._name}"

    def _plain_line(self) -> None:
        now = time.monotonic()
        if now - self._last_line < PLAIN_INTERVAL_S:
            return
        self._last_line = now
        line = self._label()
        if self._total:
            line += f" {self._done}/{self._total}"
            if self._done:
                left = (now - self._stage_start) / self._done * (self._total - self._done)
                line += f", {left:.0f} s left"
        self._print(line)

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a stream that is closed or full does not end the run
            print(printable(text), file=self._stream, flush=True)


@contextmanager
def shown(progress: "Progress | bool | None", stages: Sequence[str]) -> Iterator["Progress"]:
    """What a function of the Python API tells of its stages: to the caller's `Progress`, or on stderr.

    True shows them, False does not, and None does in a terminal and in a notebook.
    """
    if isinstance(progress, Progress):
        yield progress
    elif progress or (progress is None and (in_notebook() or bool(sys.stderr and sys.stderr.isatty()))):
        with Progress(stages) as shown_here:
            yield shown_here
    else:
        yield NullProgress()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


class NullProgress(Progress):
    """A progress that shows nothing."""

    def __enter__(self) -> "NullProgress":
        return self

    def stage(self, name: str, total: int | None = None) -> None:
        signals.check()

    def advance(self, steps: int = 1) -> None:
        signals.check()

    def note(self, text: str) -> None:
        pass


def _live_view(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Live

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Live(*columns, console=Console(file=stream))


class TimedProgress(Progress):
    """Passes every call on to `inner` and measures the seconds of each stage."""

    def __init__(self, inner: Progress):
        self._inner, self._seconds, self._name = inner, {}, None

    def stage(self, name: str, total: int | None = None) -> None:
        self.finish()
        self._name, self._start = name, time.monotonic()
        self._inner.stage(name, total)

    def advance(self, steps: int = 1) -> None:
        self._inner.advance(steps)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def finish(self) -> dict[str, float]:
        """End the current stage; seconds by name of the stages so far."""
        if self._name is not None:
            self._seconds[self._name] = round(time.monotonic() - self._start, 3)
        return self._seconds
