"""Threads beside the main one, and the end of the process meanwhile."""

import subprocess
import sys
import threading
import time

import pytest

from sv3d_jax.background import Background
from tests.test_imports import ROOT


def test_functions_are_called_in_their_order_and_return_what_they_would():
    background = Background(1)
    calls = [
        background.submit(lambda number: (number, threading.current_thread()), number) for number in range(5)
    ]
    results = [call.result(60) for call in calls]
    assert [number for number, _ in results] == list(range(5))
    assert {thread for _, thread in results}.isdisjoint({threading.main_thread()})
    with pytest.raises(ZeroDivisionError):
        background.submit(lambda: 1 / 0).result(60)
    background.close()


def test_what_has_not_begun_can_be_cancelled():
    background, go_on, called = Background(1), threading.Event(), []
    first = background.submit(go_on.wait, 60)
    second = background.submit(called.append, 2)
    third = background.submit(called.append, 3)
    assert second.cancel()
    go_on.set()
    third.result(60)
    assert first.result(60) and called == [3]
    background.close()


PROCESS = """
import sys, threading, time
from sv3d_jax import signals
from sv3d_jax.background import Background
begun = threading.Event()
def work():
    begun.set()
    time.sleep(float(sys.argv[2]))
    print("done", flush=True)
background = Background(1)
background.submit(work)
background.submit(print, "not begun")
begun.wait()
if sys.argv[1] == "closed":
    background.close()
if sys.argv[1] == "command":
    signals.install()
    signals.end_with(3)
"""


@pytest.mark.parametrize(
    ("kind", "seconds", "code", "printed"),
    [("command", 60, 3, ""), ("library", 0.5, 0, "done\n"), ("closed", 0.5, 0, "done\n")],
)
def test_the_command_does_not_wait_for_what_goes_on_and_other_processes_do(kind, seconds, code, printed):
    start = time.monotonic()
    words = [sys.executable, "-c", PROCESS, kind, str(seconds)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert done.stdout == printed
    assert time.monotonic() - start < 50
