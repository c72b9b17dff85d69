"""Ctrl-C and SIGTERM end every verb with its exit code; worker processes end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sv3d_jax.io.meshes import write_glb
from sv3d_jax.signals import GRACE_S
from sv3d_jax.train.data.figures import figure_mesh
from tests import soak
from tests.soak import SV3D, running_in_session, start, wait_until_signals_are_handled

SOAK = (sys.executable, str(Path(soak.__file__)))
DEADLINE_S = 120  # only a process that hangs takes that long
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGKILL: -signal.SIGKILL}
MESSAGES = {signal.SIGINT: "sv3d: stopped; finished", signal.SIGTERM: "sv3d: stopped by SIGTERM; finished"}


def end(process, number, send=os.kill):
    """Send a signal; what the process printed on stderr until its end, which must be the documented one."""
    send(process.pid, number)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == CODES[number], errors
    assert "Traceback" not in errors and MESSAGES.get(number, "") in errors
    deadline = time.monotonic() + DEADLINE_S
    while running_in_session(process.pid):
        assert time.monotonic() < deadline, "child processes are left"
        time.sleep(0.05)
    return errors


def printed(process, line):
    """Return when the process has printed a line that begins so on stderr."""
    for text in process.stderr:
        if text.startswith(line):
            return
    raise AssertionError(f"{line} was never printed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.0, 1.0, 3.0])  # in the imports, before and after the device is opened
def test_generate_ends_with_the_code_of_the_signal(number, after_s, tmp_path):
    process = start(
        [*SV3D, "generate", "examples/figure.png", "-o", str(tmp_path / "out"), "--preset", "preview"]
    )
    wait_until_signals_are_handled(process)
    time.sleep(after_s)
    end(process, number)


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    for seed in range(4):
        write_glb(folder / f"{seed}.glb", figure_mesh(seed))
    return folder


@pytest.mark.parametrize("moment", ["starting", "rendering"])
@pytest.mark.parametrize(
    ("number", "send"),
    [
        (signal.SIGKILL, os.kill),
        pytest.param(signal.SIGTERM, os.kill, marks=pytest.mark.slow),
        (signal.SIGTERM, os.killpg),
        pytest.param(signal.SIGINT, os.killpg, marks=pytest.mark.slow),  # what a terminal does
    ],
)
def test_workers_end_with_their_parent(moment, number, send, meshes, tmp_path):
    process = start(
        [*SV3D, "data", "render", str(meshes), "-o", str(tmp_path), "--workers", "2", "--frames", "128"]
    )
    printed(process, "render 0/4")
    if moment == "rendering":
        deadline = time.monotonic() + DEADLINE_S
        while not any(tmp_path.glob("*/.lock")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    else:
        time.sleep(0.3)
    end(process, number, send)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["convert, inside its writing", "pack", "train"])
def test_runs_that_are_ended_again_and_again_finish_with_the_same_files(verb):
    done = subprocess.run([*SOAK, "--minutes", "0.5", "--only", verb], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def script(text):
    """A process that handles signals as the command does and prints "ready" where it may be sent one."""
    head = (
        "import os, signal, sys, time, weakref\nfrom pathlib import Path\nfrom sv3d_jax import cli, signals\n"
    )
    process = start([sys.executable, "-c", f"{head}signals.install()\n{text}"])
    return process


READY = "print('ready', file=sys.stderr, flush=True)\n"


def test_a_signal_in_a_callback_that_swallows_exceptions_ends_the_run_at_its_next_step():
    process = script(
        """
import sv3d_jax.doctor
class Thing: pass
def run(config, progress):
    thing = Thing()
    kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del thing  # Python prints and drops what a callback of a weak reference raises
    progress.advance()
    return {}
sv3d_jax.doctor.run_toy = run
cli.VERBS["toy"] = cli.Verb("", "doctor:DoctorConfig", "doctor:run_toy", uses_jax=False)
sys.exit(cli.main(["toy"]))
"""
    )
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (130, "sv3d: stopped; finished files are kept\n")


def test_a_run_without_steps_is_ended_and_what_it_was_writing_removed(tmp_path):
    text = f"""
path = Path({str(tmp_path / "half")!r})
path.write_text("half")
with signals.temporary(path):
    {READY}    time.sleep({100 * GRACE_S})
"""
    process = script(text)
    printed(process, "ready")
    end(process, signal.SIGINT)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,) * 2, (signal.SIGTERM, signal.SIGINT)])
def test_a_run_that_finishes_its_step_ends_at_once_at_the_second_signal(numbers):
    process = script(
        f"""
with signals.finishing():
    {READY}    while not signals.asked():
        time.sleep(0.01)
    print("finishing", file=sys.stderr, flush=True)
    signals.check()
    time.sleep({100 * GRACE_S})
"""
    )
    printed(process, "ready")
    process.send_signal(numbers[0])
    printed(process, "finishing")
    process.send_signal(numbers[1])
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 75


def test_signals_that_other_code_handles_end_nothing():
    process = script(
        f"""
signal.signal(signal.SIGUSR1, lambda *_: print("other", file=sys.stderr, flush=True))
{READY}time.sleep({100 * GRACE_S})
"""
    )
    printed(process, "ready")
    process.send_signal(signal.SIGUSR1)
    printed(process, "other")
    time.sleep(2 * GRACE_S)  # longer than a run without steps is given
    end(process, signal.SIGINT)


def test_a_child_that_is_forked_is_ended_alone():
    process = script(
        f"""
child = os.fork()
if not child:
    time.sleep({100 * GRACE_S})
os.kill(child, signal.SIGTERM)
print("child ended by", os.waitpid(child, 0)[1], file=sys.stderr, flush=True)
time.sleep({2 * GRACE_S})
signals.check()
"""
    )
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors) == (0, f"child ended by {int(signal.SIGTERM)}\n")


def test_ctrl_c_that_the_parent_ignores_stays_ignored():
    text = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom sv3d_jax import signals\n"
    text += "signals.install(); print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.stdout == "True\n"
