"""Real runs of the verbs that are ended by random signals at random moments, and run again until they are complete.

    python tests/soak.py --minutes 20

Every end must be a documented one: the exit code of the signal, no traceback, no process left running, no partial file
left by a signal that can be handled. And after any number of ends, the same command must finish with the same files as
a run that was never interrupted. Prints how many ends were tried and survived.
"""

import argparse
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SV3D = (sys.executable, "-m", "sv3d_jax")
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, signal.SIGINT: 130}
ENDS_IN_A_ROW = 6  # then the run may finish
LEFT_S = 5.0  # for the processes of a run to be gone after its end
CHANGING = ("run.json", ".stages.json", ".lock", "metrics.jsonl")  # files that hold times


@dataclass(frozen=True)
class Run:
    """A verb to be interrupted: its words, in which OUT is the output."""

    words: tuple[str, ...]
    moment: str | None = None  # signals come soon after this pattern exists beside the output, if given
    result: Callable[[Path], object] | None = None  # what must be the same; default: all files


def runs(data: Path) -> dict[str, Run]:
    """The verbs, on inputs in a folder."""
    return {
        "generate": Run(
            ("generate", "examples/figure.png", "-o", "OUT", "--preset", "preview", "--steps", "4")
        ),
        "reconstruct": Run(("reconstruct", str(data / "orbit"), "-o", "OUT", "--preset", "preview")),
        "render": Run(
            (
                "data",
                "render",
                str(data / "objects"),
                "-o",
                "OUT",
                "--workers",
                "2",
                "--size",
                "96",
                "--light",
                "none",
            )
        ),
        "pack": Run(("data", "pack", str(data / "views"), "-o", "OUT")),
        "convert": Run(("convert", "mini", "OUT", "--dtype", "float32", "--overwrite"), result=_weights),
        "convert, inside its writing": Run(
            ("convert", "mini", "OUT", "--dtype", "float32", "--overwrite"), ".OUT.tmp/OUT*", _weights
        ),
        "convert to a file": Run(
            ("convert", "mini", "OUT.safetensors", "--overwrite"), ".OUT.safetensors.tmp/OUT*"
        ),
        "train": Run(
            ("train", "--config", str(data / "train.toml"), "-o", "OUT"),
            result=_last_checkpoint,
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a verb: " + ", ".join(runs(Path())))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return soak(Path(folder), options)


def soak(folder: Path, options: argparse.Namespace) -> int:
    """Interrupt runs until the time is over; 0 if all ends were survived."""
    _make_inputs(folder / "data")
    chosen = {name: run for name, run in runs(folder / "data").items() if options.only in (None, name)}
    whole = {
        name: _second(run, folder / "whole" / str(index)) for index, (name, run) in enumerate(chosen.items())
    }
    rng, tried, faults = random.Random(options.seed), Counter(), []
    deadline = time.monotonic() + 60 * options.minutes
    for name in itertools.cycle(chosen):
        if time.monotonic() > deadline:
            break
        kinds, found = _round(chosen[name], *whole[name], folder / "run", rng)
        tried.update((name, kind) for kind in kinds)
        faults += [f"{name}: {fault}" for fault in found]
        print(
            *faults[len(faults) - len(found) :],
            f"{tried.total()} tried, {len(faults)} faults",
            sep="\n",
            flush=True,
        )
    for (name, kind), count in sorted(tried.items()):
        print(f"{name}: {count} {kind}")
    print(f"tried {tried.total()}, survived {tried.total() - len(faults)}")
    return 1 if faults else 0


def _round(
    run: Run, seconds: float, expected: object, place: Path, rng: random.Random
) -> tuple[list[str], list[str]]:
    """Interrupt a run some times and let it finish; the kinds of ends, and what was wrong."""
    ends = [_interrupt(run, place, seconds, rng) for _ in range(rng.randint(1, ENDS_IN_A_ROW))]
    faults = [fault for _, fault in ends if fault]
    try:
        _, result = _whole(run, place)
        if result != expected:
            faults.append("the finished run differs from one that was not interrupted")
        if left := _partial_files(place):
            faults.append(f"left after the finished run: {left}")
    except RuntimeError as error:
        faults.append(str(error))
    shutil.rmtree(place)
    return [kind for kind, _ in ends if kind], faults


def _interrupt(run: Run, place: Path, seconds: float, rng: random.Random) -> tuple[str | None, str | None]:
    """Start a run and send a signal at a random moment; the kind of end, None if the run was faster, and any fault."""
    number, group = rng.choice(list(SIGNALS)), rng.random() < 0.5
    before = _partial_files(place)  # of a run that was killed; the next whole run removes them
    process = _start(run, place)
    wait_until_signals_are_handled(process)
    until = time.monotonic() + rng.uniform(0.0, 0.9 * seconds)
    if run.moment:
        while process.poll() is None and not any(place.glob(run.moment)):
            time.sleep(0.002)
        until = time.monotonic() + rng.uniform(0.0, 0.3)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    name = signal.Signals(number).name
    try:
        (os.killpg if group else os.kill)(process.pid, number)
    except ProcessLookupError:
        pass
    sent = time.monotonic()
    _, errors = process.communicate(timeout=120)
    took, code = time.monotonic() - sent, process.returncode
    while running_in_session(process.pid) and time.monotonic() - sent < took + LEFT_S:
        time.sleep(0.05)
    kind = f"ends by {name}" if code else None
    if code not in (0, SIGNALS[number]):
        return kind, f"exit {code} after {name}: {errors[-2000:]}"
    if "Traceback" in errors:
        return kind, f"a traceback after {name}: {errors[-2000:]}"
    if left := running_in_session(process.pid):
        return kind, f"processes left after {name}: {left}"
    if number != signal.SIGKILL and code and (left := _partial_files(place) - before):
        return kind, f"left after {name}: {left}"
    return kind, None


def _partial_files(place: Path) -> set[str]:
    """Files that are not yet renamed, outside of the checkpoints, which Orbax writes in the background."""
    return {str(file) for file in place.rglob("*.tmp*") if "checkpoints" not in file.parts}


def _start(run: Run, place: Path) -> subprocess.Popen:
    place.mkdir(parents=True, exist_ok=True)
    return start([*SV3D, *(word.replace("OUT", str(place / "OUT")) for word in run.words)])


def start(command: Sequence[str | Path]) -> subprocess.Popen:
    """A process in a session of its own, whose stderr can be read; Ctrl-C reaches it also if we ignore it ourselves."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored would be handed on
    try:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def wait_until_signals_are_handled(process: subprocess.Popen) -> None:
    """Return when the process handles SIGINT and SIGTERM, or has ended: while Python itself starts, nothing can."""
    wanted = 1 << signal.SIGINT - 1 | 1 << signal.SIGTERM - 1
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:") and int(line.split()[1], 16) & wanted == wanted:
                return
        time.sleep(0.002)


def _whole(run: Run, place: Path) -> tuple[float, object]:
    """Run to the end; its seconds and what it made."""
    started = time.monotonic()
    process = _start(run, place)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run that was left alone ended with {process.returncode}: {errors[-2000:]}")
    return time.monotonic() - started, (run.result or _files)(place)


def _second(run: Run, place: Path) -> tuple[float, object]:
    """What `_whole` says of a second run, whose programs were kept by the first."""
    _whole(run, place / "first")
    return _whole(run, place / "second")


def _files(place: Path) -> dict[str, str]:
    """SHA-256 of all files by name, except those that hold times."""
    return {
        str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(place.rglob("*"))
        if file.is_file() and file.name not in CHANGING
    }


def _weights(place: Path) -> str:
    """SHA-256 of names and values: Orbax notes times in its files."""
    from sv3d_jax.weights.source import open_weights

    return open_weights(place / "OUT").sha256()


def _last_checkpoint(place: Path) -> dict[str, bytes]:
    from sv3d_jax.train.checkpoints import read_checkpoint

    arrays, _ = read_checkpoint(place / "OUT" / "checkpoints", TRAINING_STEPS)
    return {name: array.tobytes() for name, array in arrays.items()}


TRAINING_STEPS = 400


def _make_inputs(folder: Path) -> None:
    """Objects, rendered orbits and a recipe of a tiny training run."""
    from tests.train.tiny_run import write_tiny_recipe

    folder.mkdir(parents=True)
    write_tiny_recipe(folder, max_steps=TRAINING_STEPS, save_every=20)
    for words in (
        ("data", "objects", "-o", str(folder / "objects"), "--count", "6", "-q"),
        ("data", "render", str(folder / "objects"), "-o", str(folder / "views"), "--size", "64", "-q"),
        (
            "data",
            "render",
            str(folder / "objects" / "0.glb"),
            "-o",
            str(folder / "orbit"),
            "--size",
            "64",
            "-q",
        ),
    ):
        subprocess.run([*SV3D, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def running_in_session(session: int) -> list[str]:
    """The command lines of the processes of a session that still run; on Linux."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if int(own) == session and state != "Z":
            found.append(words)
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
