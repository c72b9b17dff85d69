"""Progress on stderr: plain lines, live views, and who gets to see it."""

import io
import sys

import pytest

from sv3d_jax import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_plain_progress_is_a_line_every_ten_seconds_at_most(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with progress.Progress(["load", "sample"], stream=stream) as shown:
        shown.stage("load")
        shown.stage("sample", total=50)
        for _ in range(50):
            clock.now += 1
            shown.advance()
    assert stream.getvalue().splitlines() == ["1/2 load"] + [
        f"2/2 sample {step}/50, {50 - step} s left" for step in (10, 20, 30, 40, 50)
    ]


def test_a_stage_whose_name_comes_twice_is_counted_at_its_next_place(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    shown = progress.Progress(["load", "compile", "coarse", "compile", "fine"], stream=stream)
    for name in ("load", "compile", "coarse", "compile", "fine", "coarse"):
        shown.stage(name)
        clock.now += 20
    shown.stages = ["load", "write"]
    shown.stage("load")
    lines = ["1/5 load", "2/5 compile", "3/5 coarse", "4/5 compile", "5/5 fine", "3/5 coarse", "1/2 load"]
    assert stream.getvalue().splitlines() == lines


def test_a_terminal_gets_a_live_view_with_every_stage():
    with progress.Progress(["load", "sample"], stream=Terminal()) as shown:
        shown.stage("load")
        shown.stage("sample", total=2)
        shown.advance(2)
        shown.note("a remark")
    text = shown._stream.getvalue()
    assert all(part in text for part in ("1/2 load", "2/2 sample", "2/2", "a remark"))


@pytest.mark.parametrize(
    ("asked", "stream", "in_notebook", "is_shown"),
    [
        (None, io.StringIO(), False, False),
        (None, Terminal(), False, True),
        (None, io.StringIO(), True, True),
        (None, None, False, False),  # no stderr since the start
        (True, io.StringIO(), False, True),
        (False, Terminal(), True, False),
    ],
)
def test_functions_show_progress_in_terminals_and_notebooks_or_as_asked(
    monkeypatch, asked, stream, in_notebook, is_shown
):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "in_notebook", lambda: in_notebook)
    with progress.shown(asked, ["load"]) as told:
        told.stage("load")
    assert isinstance(told, progress.NullProgress) != is_shown
    assert bool(stream and "1/1 load" in stream.getvalue()) == is_shown


def test_the_progress_of_a_caller_is_used_as_it_is():
    own = progress.Progress(stream=io.StringIO())
    with progress.shown(own, ["load"]) as told:
        assert told is own
