"""What this build takes over what a former one took, in one run: `python benchmarks/ratios.py [FORMER]`.

    python benchmarks/ratios.py --rows fast preview --objects 2 --rounds 3
    python benchmarks/ratios.py --quick --json

FORMER is a commit, which is checked out into a temporary folder, or the root of a checkout. The two builds alternate,
A B B A, each in processes of its own and with a cache of compiled programs of its own. Prints the ratio of the medians,
and the ratios of the pairs from the least to the greatest. Run it on an idle machine. Without the `bench` extra, torch
is left out.

Rows: `fast` and `preview` reconstruct the reference meshes and objects of the family `mixed`, with nothing kept and at
a later start, and print what the meshes are worth; `step` is a guided step of the UNet of 320 channels, 5 frames of
32x32, and `torch` the same against diffusers; `train` a training step of that of 64 channels; `orbit` and `demo` are
verbs with mini, from the start of the process to its end; `rasterizer` has 80,000 triangles, 512 px and a gradient.
Rows that end in `16` have this build in bfloat16: against the former build in float32, against torch in bfloat16.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import NamedTuple

from compare_builds import Checkout, alternate, draw_figure, worker

ROOT = Path(__file__).parent.parent
FORMER = "d9fb89b"  # before programs of reconstructions were kept
REFERENCE = ("blob", "table", "torus")
QUALITY = ("pred_to_target", "target_to_pred", "iou", "held_out_psnr", "color_error", "pred_closed")


class Figure(NamedTuple):
    """Seconds of both builds for one thing, in pairs."""

    name: str
    old: list[float]
    new: list[float]
    quality: dict | None = None  # of both, where there is a mesh

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return statistics.median(self.new) / statistics.median(self.old)

    def line(self) -> str:
        """The ratio with its spread, the seconds, and what the meshes are worth."""
        pairs = sorted(new / old for old, new in zip(self.old, self.new, strict=True))
        seconds = f"{statistics.median(self.old):.3f} -> {statistics.median(self.new):.3f} s"
        text = f"{self.name:36} {self.ratio:5.2f} ({pairs[0]:.2f} to {pairs[-1]:.2f})  {seconds}"
        for side, values in (self.quality or {}).items():
            text += f"\n    {side:4} " + ", ".join(f"{key} {values.get(key)}" for key in QUALITY)
        return text


@dataclass(frozen=True)
class Plan:
    """What the rows are measured on."""

    builds: tuple[Checkout, Checkout]
    folder: Path
    rounds: int
    objects: int
    size: int
    quick: bool


Row = Callable[[Plan], Iterator[Figure]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("former", nargs="?", default=FORMER, help=f"commit or folder (default: {FORMER})")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each build")
    parser.add_argument("--objects", type=int, default=9, help="meshes to reconstruct, of nine")
    parser.add_argument("--size", type=int, default=256, help="pixels of the views to reconstruct from")
    parser.add_argument("--quick", action="store_true", help="one small case of each row")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.objects, options.size = 1, 1, 64
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        builds = tuple(
            Checkout(root, Path(folder) / name)
            for name, root in (("old", check_out(options.former, Path(folder) / "former")), ("new", ROOT))
        )
        for build in builds:
            build.folder.mkdir()
        plan = Plan(builds, Path(folder), options.rounds, options.objects, options.size, options.quick)
        for row in options.rows:
            for figure in ROWS[row](plan):
                figures.append(figure)
                print(figure.line(), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps([figure._asdict() | {"ratio": figure.ratio} for figure in figures], indent=1))


def check_out(former: str, folder: Path) -> Path:
    """The root of a checkout: a folder, or the files of a commit of this repository, which are put into `folder`."""
    if Path(former).is_dir():
        return Path(former).resolve()
    done = subprocess.run(["git", "archive", former], cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{former}: neither a folder nor a commit of {ROOT}")
    folder.mkdir()
    subprocess.run(["tar", "-x"], cwd=folder, input=done.stdout, check=True)
    return folder


def script(build: Checkout, name: str, *words: str, cache: str = "cache") -> dict:
    """The JSON that one of a build's own benchmarks prints."""
    command = [sys.executable, str(build.root / "benchmarks" / name), *words, "--json"]
    environment = build.environment() | {"XDG_CACHE_HOME": str(build.folder / cache), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, cwd=build.root, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{build.root}: {name} {' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def meshes(plan: Plan) -> list[Path]:
    """The reference meshes, then objects for evaluation, which are made here."""
    files = [ROOT / "tests" / "reference" / "recon" / f"{name}.glb" for name in REFERENCE]
    if plan.objects > len(files):
        folder = plan.folder / "objects"
        if not folder.exists():
            words = f"data objects --family mixed --seed 10000000 --count {plan.objects - len(files)} -o"
            plan.builds[1].sv3d(*words.split(), str(folder))
        files += sorted(folder.glob("*.glb"))
    return files[: plan.objects]


def reconstructions(preset: str) -> Row:
    """A row of a preset of `reconstruct`."""

    def row(plan: Plan) -> Iterator[Figure]:
        words = ["--preset", preset, "--size", str(plan.size), "--compile-cache"]
        if plan.quick:
            words += ["--frames", "8", "--nerf", "num_steps=16"]
            words += ["--mesh", "num_steps=16"] if preset == "fast" else []
        for mesh in meshes(plan):
            cache, results = f"{preset}-{mesh.stem}", {}

            def run(build: Checkout, mesh=mesh, cache=cache, results=results) -> float:
                found = script(build, "reconstruct.py", str(mesh), *words, cache=cache)["results"][0]
                results["old" if build is plan.builds[0] else "new"] = {
                    key: found[key] for key in QUALITY if key in found
                }
                return found["seconds"]

            yield Figure(f"{preset} {mesh.stem}, nothing kept", *([run(build)] for build in plan.builds))
            runs = [partial(run, build) for build in plan.builds]
            old, new = alternate(runs, plan.rounds)
            yield Figure(f"{preset} {mesh.stem}, later start", old, new, results)

    return row


def workers(name: str, file: str, frames: int, width: int, side: int, dtype: str | None = None) -> Row:
    """A row of the same call of both builds' workers, after one that does not count; this build's in `dtype`."""

    def row(plan: Plan) -> Iterator[Figure]:
        flags = _size(plan, frames, width, side)
        given = [(), () if dtype is None else (f"--dtype={dtype}",)]
        with ExitStack() as stack:
            runs = [
                worker(build, stack, file, "jax", *flags, *own)
                for build, own in zip(plan.builds, given, strict=True)
            ]
            yield Figure(" ".join(filter(None, (name, dtype))), *alternate(runs, plan.rounds))

    return row


def torch(dtype: str) -> Row:
    """A row of a guided step of diffusers' UNet in the place of the former build."""

    def row(plan: Plan) -> Iterator[Figure]:
        if find_spec("diffusers") is None:
            print("torch: not measured, it needs the extra `bench`", file=sys.stderr)
            return
        flags = (*_size(plan, 5, 320, 32), "--batch=2", f"--dtype={dtype}")
        with ExitStack() as stack:
            runs = [worker(plan.builds[1], stack, "unet.py", peer, *flags) for peer in ("torch", "jax")]
            yield Figure(f"guided step {dtype}, torch's -> ours", *alternate(runs, plan.rounds))

    return row


def _size(plan: Plan, frames: int, width: int, side: int) -> tuple[str, ...]:
    if plan.quick:
        width, side = 64, 8
    return f"--frames={frames}", f"--width={width}", f"--side={side}", "--threads=2", "--device=cpu"


def orbit(plan: Plan) -> Iterator[Figure]:
    """The verb `orbit` with mini, when its programs are kept."""
    yield from verb(plan, "orbit", ("--frames", "3", "--num-steps", "2") if plan.quick else (), pictures=1)


def demo(plan: Plan) -> Iterator[Figure]:
    """The verb `generate`, as `make demo` runs it, with nothing kept; then for a second picture."""
    quick = ("--frames", "8", "--num-steps", "2", "--preset", "preview") if plan.quick else ()
    yield from verb(plan, "generate", quick, pictures=2)


def verb(plan: Plan, name: str, flags: tuple[str, ...], pictures: int) -> Iterator[Figure]:
    """Seconds of a process: with nothing kept, and at later starts, of one picture or of several in turn."""
    files = [plan.folder / f"figure-{number}.png" for number in range(pictures)]
    for number, file in enumerate(files):
        draw_figure().rotate(8.0 * number).save(file)
    turn = count()

    def run(build: Checkout) -> float:
        picture, output = files[next(turn) // 2 % pictures], build.folder / f"{name}-output"
        start = time.perf_counter()
        build.sv3d(name, str(picture), "-o", str(output), "--overwrite", "-q", *flags)
        return time.perf_counter() - start

    yield Figure(f"{name}, nothing kept", *([run(build)] for build in plan.builds))
    later = "later start" if pictures == 1 else "second picture"
    yield Figure(f"{name}, {later}", *alternate([partial(run, build) for build in plan.builds], plan.rounds))


def rasterizer(plan: Plan) -> Iterator[Figure]:
    """The gradient of the vertices through antialiased coverage."""
    size, triangles = ("64", "2000") if plan.quick else ("512", "80000")

    def run(build: Checkout) -> float:
        found = script(build, "rasterizer.py", "--sizes", size, "--triangles", triangles, "--repeats", "7")
        return found["rasterizer"][0]["gradient_ms"] / 1000

    runs = [partial(run, build) for build in plan.builds]
    yield Figure(f"rasterizer, {triangles} triangles, {size} px", *alternate(runs, plan.rounds))


ROWS: dict[str, Row] = {
    "fast": reconstructions("fast"),
    "preview": reconstructions("preview"),
    "step": workers("guided step", "unet.py", 5, 320, 32),
    "step16": workers("guided step", "unet.py", 5, 320, 32, "bfloat16"),
    "torch": torch("float32"),
    "torch16": torch("bfloat16"),
    "train": workers("training step", "train_step.py", 21, 64, 24),
    "train16": workers("training step", "train_step.py", 21, 64, 24, "bfloat16"),
    "orbit": orbit,
    "demo": demo,
    "rasterizer": rasterizer,
}


if __name__ == "__main__":
    main()
