"""Quality and time of approximate sampling: `python benchmarks/approximations.py [--objects 64] [--json]`.

sv3d-mini samples orbits of held-out figures, from the same noise with every method. PSNR is over all frames but the
input view, once against the true views and once against the exact orbit (Euler's solver, the model's own steps). Calls
of the full UNet are counted for one orbit, two for each guided step; calls of its first level alone are counted
separately.
"""

import argparse
import json
import statistics
import sys

import numpy as np

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.devices import enable_compile_cache
from sv3d_jax.diffusion.config import SamplingConfig, StepKind
from sv3d_jax.diffusion.solvers import SOLVERS
from sv3d_jax.metrics.images import psnr
from sv3d_jax.models.fast.quantize import FORMATS
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.preprocess import PreparedImage
from sv3d_jax.progress import Progress
from sv3d_jax.train.evaluate import HeldOut, held_out_orbits

# Noise levels with guidance; the last interval holds none.
INTERVALS = ((0.0, 10.0), (0.5, 60.0), (0.5, 10.0), (1e6, 1e6))
CACHE_INTERVALS = (2, 3, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options = parser.parse_args()
    enable_compile_cache()

    pipe = Pipeline.from_pretrained("mini")
    model, own_steps = pipe.config, pipe.config.num_steps
    held_out = held_out_orbits(options.objects, model.num_frames, model.native_size)
    methods = [
        SamplingConfig(solver=solver, num_steps=steps)
        for steps in (own_steps, own_steps // 2)
        for solver in SOLVERS
    ]
    methods += [SamplingConfig(guidance_interval=interval, num_steps=own_steps) for interval in INTERVALS]
    methods += [SamplingConfig(cache_interval=interval, num_steps=own_steps) for interval in CACHE_INTERVALS]
    runs = [(pipe, method) for method in methods]
    runs += [(Pipeline.from_pretrained("mini", quantize=kind), methods[0]) for kind in FORMATS]
    exact, rows = None, []
    with Progress() as progress:
        for pipe, sampling in runs:
            frames, seconds = orbits(pipe, held_out, sampling, progress)
            exact = frames if exact is None else exact
            rows.append(
                {
                    "solver": sampling.solver,
                    "num_steps": sampling.num_steps,
                    "guidance_interval": sampling.guidance_interval,
                    "cache_interval": sampling.cache_interval,
                    "quantize": pipe.runner.config.quantize,
                    **calls(sampling.step_kinds(pipe.sigmas(sampling.num_steps))),
                    "sample_s": round(seconds, 3),
                    "psnr_truth": round(likeness(frames, held_out.images / np.float32(255)), 2),
                    "psnr_exact": None if frames is exact else round(likeness(frames, exact), 2),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"objects": options.objects, "rows": rows}, indent=1))


def calls(kinds: list[StepKind]) -> dict[str, int]:
    """Numbers of calls of the full UNet and of its first level alone."""
    counts = {"calls": 0, "first_level_calls": 0}
    for kind in kinds:
        counts["first_level_calls" if kind.cache == "reuse" else "calls"] += 2 if kind.is_guided else 1
    return counts


def orbits(
    pipe: Pipeline, held_out: HeldOut, sampling: SamplingConfig, progress: Progress
) -> tuple[np.ndarray, float]:
    """Frames in [0, 1] `n f h w 3` and the median seconds of sampling an orbit."""
    frames, seconds = [], []
    progress.stage(f"{sampling.solver} {sampling.num_steps}", total=len(held_out.images))
    for seed, (views, cameras) in enumerate(zip(*held_out, strict=True)):
        side = views.shape[1]
        azimuths_deg = (cameras.azimuths_deg - cameras.azimuths_deg[-1]) % 360.0
        orbit = pipe(
            PreparedImage(views[-1], (0, 0, side, side)),
            sampling,
            cameras=CameraPath(azimuths_deg, cameras.elevations_deg),
            seed=seed,
            output_type="np",
        )
        frames.append(orbit.frames)
        seconds.append(orbit.timings["sample"])
        progress.advance()
    return np.stack(frames), statistics.median(seconds)


def likeness(frames: np.ndarray, others: np.ndarray) -> float:
    """Mean PSNR in dB of all frames but the last of each orbit."""
    return float(np.mean([psnr(a[:-1], b[:-1]).mean() for a, b in zip(frames, others, strict=True)]))


if __name__ == "__main__":
    main()
