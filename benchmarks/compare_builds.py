"""Compare two checkouts of the project: do they compute the same bits, and is the second one slower?

    python benchmarks/compare_builds.py OLD NEW --parts bits
    python benchmarks/compare_builds.py OLD NEW --parts time --rounds 5

Every item is a command line that both checkouts must understand. It runs in a process of its own with PYTHONPATH set
to the checkout, and each checkout has its own cache of compiled programs, empty at the start.

bits: runs each item once on both sides and compares all output files. Exits with 1 if anything differs.
time: runs each item once on both sides to compile, then A B B A, and reports the medians and their ratio.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ORBIT = ("--frames", "4", "--steps", "3")
ORBITS = {
    "orbit": (),
    "orbit-sine": ("--orbit", "sine", "--seed", "3"),
    "orbit-constant": ("--guidance", "constant", "--cfg-max", "3"),
    "orbit-interval": ("--guidance-interval", "0.5", "20"),
    "orbit-cached": ("--cache-interval", "2"),
    "orbit-churn": ("--churn", "10"),
    "orbit-dpmpp": ("--solver", "dpmpp_2m"),
    "orbit-dpmpp-interval": ("--solver", "dpmpp_2m", "--guidance-interval", "0.5", "20"),
    "orbit-dpmpp-cached": ("--solver", "dpmpp_2m", "--cache-interval", "2"),
    "orbit-low-memory": ("--low-memory",),
}
TRAIN = """
batch_size = 1
max_steps = {steps}
log_every = 1
validate_every = 1000
save_every = 1000

[data]
objects = 2
size = 64
num_frames = 4

[diffusion]
frames_per_sample = 3

[watch]
samples_every = 0
"""
UNET = ("--width=64", "--frames=5", "--side=16", "--batch=2", "--threads=2", "--device=cpu")
BITS = (*ORBITS, "reconstruct-preview", "reconstruct-fast", "train")
TIMES = ("orbit", "unet", "reconstruct-preview", "reconstruct-fast", "train")
# Fields of run.json and metrics.jsonl that differ between two runs of one build.
CHANGING = {"timings_s", "packages", "path", "images", "output", "utilisation"}

# Settings that have another name in newer builds.
RENAMED = {"steps": "num_steps"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path, help="root of the former checkout")
    parser.add_argument("new", type=Path, help="root of the checkout to judge")
    parser.add_argument("--parts", nargs="+", choices=("bits", "time"), default=["bits", "time"])
    parser.add_argument(
        "--items", nargs="+", choices=sorted({*BITS, *TIMES}), help="default: all of the parts"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--train-steps", type=int, default=10)
    parser.add_argument(
        "--recon-steps", type=int, help="steps of the coarse and the fine fit (default: the preset's)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder), args.train_steps, args.recon_steps)
        sides = [
            Checkout(root.resolve(), inputs.folder / name)
            for name, root in (("old", args.old), ("new", args.new))
        ]
        ok = True
        for part in args.parts:
            known = BITS if part == "bits" else TIMES
            items = [item for item in known if not args.items or item in args.items]
            if any(item.startswith("reconstruct") for item in items):
                inputs.make_orbit(sides[0])
            if part == "bits":
                ok &= all([same_bits(item, sides, inputs) for item in items])
            else:
                for item in items:
                    compare_times(item, sides, inputs, args.rounds)
    raise SystemExit(0 if ok else 1)


@dataclass
class Checkout:
    """One build: where its source tree is, and a folder for its outputs and compiled programs."""

    root: Path
    folder: Path

    def environment(self) -> dict[str, str]:
        values = {"PYTHONPATH": str(self.root), "XDG_CACHE_HOME": str(self.folder / "cache")}
        return os.environ | values

    def sv3d(self, *words: str) -> None:
        """Run a verb; stops this script if it fails."""
        command = [sys.executable, "-m", "sv3d_jax", *words]
        done = subprocess.run(
            command,
            env=self.environment(),
            cwd=self.root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{self.root}: sv3d {' '.join(words)} failed:\n{done.stderr[-3000:]}")


class Inputs:
    """The files that the items of both sides read, and their command lines."""

    def __init__(self, folder: Path, train_steps: int, recon_steps: int | None):
        self.folder = folder
        self.picture = folder / "figure.png"
        self.orbit = folder / "orbit"
        self.train = folder / "train.toml"
        self.recon_steps = recon_steps
        draw_figure().save(self.picture)
        self.train.write_text(TRAIN.format(steps=train_steps))

    def make_orbit(self, side: Checkout) -> None:
        """The orbit that both sides reconstruct, written once by one of them."""
        if not self.orbit.exists():
            side.sv3d(
                "orbit", str(self.picture), "--frames", "8", "--steps", "8", "-o", str(self.orbit), "-q"
            )

    def command(self, item: str, output: Path) -> tuple[str, ...]:
        end = ("-o", str(output), "--overwrite", "-q")
        if item in ORBITS:
            return ("orbit", str(self.picture), *ORBIT, *ORBITS[item], *end)
        if item == "train":
            data = ("--data-dir", str(output.parent / "train-data"))
            return ("train", "--config", str(self.train), *data, *end)
        steps = str(self.recon_steps)
        short = () if self.recon_steps is None else ("--steps", steps, "--fine-steps", steps)
        preset = item.removeprefix("reconstruct-")
        return ("reconstruct", str(self.orbit), "--preset", preset, *short, *end)


def draw_figure() -> Image.Image:
    """A made-up figure on a transparent background."""
    picture = Image.new("RGBA", (96, 96), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((30, 20, 66, 86), fill=(200, 90, 40, 255))
    draw.ellipse((38, 6, 58, 26), fill=(230, 200, 170, 255))
    return picture


def same_bits(item: str, sides: list[Checkout], inputs: Inputs) -> bool:
    """Run an item on both sides and print how its files differ; True if they do not."""
    folders = [side.folder / item for side in sides]
    for side, folder in zip(sides, folders, strict=True):
        side.sv3d(*inputs.command(item, folder))
        if item == "train":  # checkpoints hold times of day; the exported weights do not
            side.sv3d("train", *inputs.command(item, folder)[1:-2], "--export", str(folder / "export"), "-q")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    differences = compare_folders(*folders)
    print(f"{item:24} {'different' if differences else 'same'}", flush=True)
    for line in differences:
        print(f"    {line}", flush=True)
    return not differences


def compare_folders(old: Path, new: Path) -> list[str]:
    """A line for each file that only one folder has or whose content differs."""
    names = [
        {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name[0] != "."}
        for root in (old, new)
    ]
    lines = [
        f"{name}: only in the {'old' if name in names[0] else 'new'} one"
        for name in sorted(names[0] ^ names[1])
    ]
    for name in sorted(names[0] & names[1]):
        paths = [root / name for root in (old, new)]
        if content(paths[0]) != content(paths[1]):
            lines.append(f"{name}: {how_different(*paths)}")
    return lines


def content(path: Path) -> str:
    """A hash of the content of a file; for records of a run, the record without times, versions and paths."""
    if path.suffix == ".json":
        return json.dumps(without_changing(json.loads(path.read_text())), sort_keys=True)
    if path.suffix == ".toml":  # a model's description tells how long it was trained
        return json.dumps(without_changing(tomllib.loads(path.read_text())), sort_keys=True)
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps([without_changing(record) for record in records], sort_keys=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_changing(value):
    """Drop the fields that differ between two runs of one build."""
    if isinstance(value, dict):
        value = {RENAMED.get(key, key): item for key, item in value.items()}
        kept = {key: item for key, item in value.items() if key not in CHANGING and not is_time(key)}
        return {key: without_changing(item) for key, item in kept.items()}
    return [without_changing(item) for item in value] if isinstance(value, list) else value


def is_time(key: str) -> bool:
    return key.endswith(("_s", "_seconds", "_per_second", "_bytes")) or key in ("seconds", "time")


def how_different(old: Path, new: Path) -> str:
    """The largest difference of the arrays in two files, or for text the first field that differs."""
    if old.suffix in (".json", ".jsonl", ".toml"):
        texts = [json.loads(content(path)) for path in (old, new)]
        return "; ".join(field_differences(*texts)[:8])
    read = READERS.get(old.suffix)
    if read is None:
        return "different bytes"
    arrays = read(old), read(new)
    lines = [f"arrays {sorted(arrays[0].keys() ^ arrays[1].keys())} on one side only"] * (
        arrays[0].keys() != arrays[1].keys()
    )
    for key in sorted(arrays[0].keys() & arrays[1].keys()):
        a, b = (np.asarray(side[key], np.float64) for side in arrays)
        if a.shape != b.shape:
            lines.append(f"{key} shapes {a.shape} and {b.shape}")
        elif not np.array_equal(a, b, equal_nan=True):
            lines.append(f"{key} by up to {np.nanmax(np.abs(a - b)):.3g}")
    return ", ".join(lines[:8]) or "the same arrays in different bytes"


def field_differences(old, new, name: str = "") -> list[str]:
    """`name: old against new` for each field of two JSON values that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line for key in keys for line in field_differences(old.get(key), new.get(key), f"{name}.{key}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for index, pair in pairs for line in field_differences(*pair, f"{name}[{index}]")]
    return [] if old == new else [f"{name}: {old} against {new}"]


def read_picture(path: Path) -> dict:
    return {"picture": np.asarray(Image.open(path))}


def read_safetensors(path: Path) -> dict:
    from safetensors.numpy import load_file

    return load_file(path)


def read_mesh(path: Path) -> dict:
    import trimesh

    mesh = trimesh.load(path, force="mesh", process=False)
    return {"vertices": mesh.vertices, "faces": mesh.faces}


READERS: dict[str, Callable[[Path], dict]] = {
    ".png": read_picture,
    ".npz": lambda path: dict(np.load(path)),
    ".safetensors": read_safetensors,
    ".glb": read_mesh,
    ".ply": read_mesh,
}


def compare_times(item: str, sides: list[Checkout], inputs: Inputs, rounds: int) -> None:
    """Alternate the sides and their order, after one run of each to compile; print medians and the ratio new / old."""
    with ExitStack() as stack:
        runs = [timed_run(item, side, inputs, stack) for side in sides]
        for run in runs:
            run()
        seconds = alternate(runs, rounds)
    old, new = (statistics.median(times) for times in seconds)
    print(f"{item:24} old {old:.3f} s, new {new:.3f} s, new / old {new / old:.3f}", flush=True)


def alternate(runs: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """The seconds that functions return, called in turn, in each round in the reversed order of the one before."""
    seconds: list[list[float]] = [[] for _ in runs]
    pairs = list(zip(seconds, runs, strict=True))
    for _ in range(rounds):
        for times, run in pairs:
            times.append(run())
        pairs.reverse()  # what runs second may be slower for that alone
    return seconds


def timed_run(item: str, side: Checkout, inputs: Inputs, stack: ExitStack) -> Callable[[], float]:
    """A function that runs the item once and returns its seconds."""
    if item == "unet":
        return worker(side, stack, "unet.py", "jax", *UNET)
    folder = side.folder / f"time-{item}"
    command = inputs.command(item, folder)
    if item == "orbit":  # of the model's own length, as users have it
        command = tuple(word for word in command if word not in ORBIT[:4])

    def run() -> float:
        start = time.perf_counter()
        side.sv3d(*command)
        if item == "train":
            return step_seconds(folder / "metrics.jsonl")
        return time.perf_counter() - start

    return run


def step_seconds(metrics: Path) -> float:
    """Median seconds of a training step after the first, which compiles."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return statistics.median([record["step_s"] for record in records if "step_s" in record][1:])


def worker(side: Checkout, stack: ExitStack, name: str, peer: str, *flags: str) -> Callable[[], float]:
    """One call of the worker for a peer of one of the checkout's own benchmarks, which waits for the next one."""
    script = side.root / "benchmarks" / name
    process = subprocess.Popen(
        [sys.executable, str(script), "--worker", peer, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=side.environment() | {"JAX_PLATFORMS": "cpu"},
    )
    assert process.stdin is not None and process.stdout is not None
    requests, answers = process.stdin, process.stdout
    stack.callback(process.wait)
    stack.callback(requests.close)
    if not answers.readline():
        raise SystemExit(f"{script} ended with status {process.wait()}; its error is above")

    def run() -> float:
        requests.write("run\n")
        requests.flush()
        return json.loads(answers.readline())["seconds"]

    return run


if __name__ == "__main__":
    main()
