"""Seconds from the start of a process to its first sampling step and to its orbit: `benchmarks/start.py [--json]`.

Starts separate processes: with empty caches, with the programs that the first one stored, and with jax's compilation
cache alone. With --model, the published model with random weights is compiled but not run, which a CPU can do too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PICTURE = Path(__file__).parent.parent / "examples" / "figure.png"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="mini")
    parser.add_argument(
        "--model", choices=("u", "p"), help="random numbers in the shape of this published model"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="starts with filled caches, of which the fastest counts"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jax-cache-alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)  # when this process was started
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(start(options)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        results["nothing kept"] = run(folder)
        results["programs"] = fastest(folder, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        run(folder, "--jax-cache-alone")
        results["jax's cache"] = fastest(folder, options.rounds, "--jax-cache-alone")
    for name, row in results.items() if not options.json else ():
        print(f"{name:14}", *(f"{key} {value:.2f}" for key, value in row.items()))
    if options.json:
        print(json.dumps(results, indent=1))


def fastest(folder: str, rounds: int, *flags: str) -> dict[str, float]:
    return min((run(folder, *flags) for _ in range(rounds)), key=lambda row: row["ready_s"])


def run(folder: str, *flags: str) -> dict[str, float]:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    words = [sys.executable, *sys.argv, *flags, "--child", str(time.time())]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def start(options: argparse.Namespace) -> dict[str, float]:
    """Seconds since the parent started this process."""
    from sv3d_jax import runner
    from sv3d_jax.pipeline import Pipeline

    if options.jax_cache_alone:
        runner.load_or_compile = lambda _, compile_now, inputs: compile_now("program")
    times = {}

    def mark(name: str) -> None:
        times.setdefault(name, time.time() - options.child)

    if options.model is None:
        pipe = Pipeline.from_pretrained(options.weights)
        mark("loaded_s")
        pipe(PICTURE, callback=lambda info: mark("ready_s"))
        mark("orbit_s")
        return times
    import numpy as np

    from sv3d_jax.cameras.orbit import static_orbit
    from sv3d_jax.infer.bench import random_params
    from sv3d_jax.models.config import ModelConfig

    model = ModelConfig.published(options.model)
    pipe = Pipeline(random_params(model), model, dtype="bfloat16")
    mark("loaded_s")
    size, frames = model.native_size, model.num_frames
    noise, pixel_noise, keys = pipe.noise([0], frames, size)
    condition = pipe.condition(np.zeros((1, size, size, 3), np.float32), pixel_noise, static_orbit(frames))
    mark("conditioned_s")
    scale = np.ones(frames, np.float32)
    pipe.sampler(noise, condition, scale, pipe.sigmas(50), keys=keys, after_step=lambda *_: None)
    mark("ready_s")
    return times


if __name__ == "__main__":
    main()
