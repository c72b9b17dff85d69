"""The quality of sv3d-mini on held-out figures: `python benchmarks/mini_quality.py [--objects 64] [--json]`.

Prints the one-step and sampled PSNR, beside those of copying the input view, of the mean image and of the autoencoder
alone (the upper limit), the loss of PSNR with wrong cameras, and how often objects and frames are identified. Writes a
contact sheet with sampled rows above true ones. Exits with 1 if a result misses its threshold.
"""

import argparse
import json
import sys
from pathlib import Path

from sv3d_jax.progress import Progress
from sv3d_jax.train.evaluate import MUST, evaluate, held_out_orbits, write_contact_sheet
from sv3d_jax.weights.hub import load_weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="mini", help="a model folder or file")
    parser.add_argument("--objects", type=int, default=64, help="a multiple of 8")
    parser.add_argument("--steps", type=int, help="sampler steps (default: the model's)")
    parser.add_argument("--sheet", type=Path, default=Path("mini_quality.png"), help="contact sheet to write")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    arguments = parser.parse_args()

    params, model, _ = load_weights(arguments.weights, dtype="float32")
    with Progress() as progress:
        progress.stage("render")
        held_out = held_out_orbits(arguments.objects, model.num_frames, model.native_size)
        steps = arguments.steps or model.num_steps
        report, pictures = evaluate(params, model, held_out, steps, progress)
    write_contact_sheet(arguments.sheet, pictures, held_out.images)
    missed = [name for name, bar in MUST.items() if report[name] < bar]
    if arguments.json:
        print(json.dumps({**report, "steps": steps, "objects": arguments.objects, "missed": missed}))
    else:
        for name, value in report.items():
            bar = f"  (at least {MUST[name]:g})" if name in MUST else ""
            print(f"{name.replace('_', ' '):24s}{value:8.2f}{bar}{'  MISSED' if name in missed else ''}")
        print(f"contact sheet: {arguments.sheet}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
