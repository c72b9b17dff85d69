"""The effect of score distillation on views that an orbit does not show.

    python benchmarks/sds.py MESH [--up z] [--weights mini] [--size 128] [--sheet sds.png] [--json]

The mesh is rendered from a static orbit of 21 views at an elevation of 10 degrees. After one coarse stage the fine
stage runs three times: without distillation, with masked and with naive distillation. The score is the PSNR of eight
views each at 60 and -60 degrees, with the colours of the views. Mini is trained on upright figures, such as those of
`sv3d data objects`. The sheet has a row for the truth and one for each of the three runs.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from reconstruct import camera_arrays, reconstruct_variants, rendered_frames

from sv3d_jax.cameras.orbit import static_orbit
from sv3d_jax.devices import enable_compile_cache
from sv3d_jax.geometry.mesh import Mesh, to_world
from sv3d_jax.io.images import write_png
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.metrics.images import psnr
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.recon.config import ReconstructConfig
from sv3d_jax.recon.export import render_mesh
from sv3d_jax.render.lighting import soft_light
from sv3d_jax.render.orbit import render_orbit

UNSEEN = {"above": static_orbit(8, 60.0), "below": static_orbit(8, -60.0)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mesh", type=Path)
    parser.add_argument("--up", choices=["y", "z"], default="y")
    parser.add_argument("--weights", default="mini")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--steps", type=int, help="of the coarse stage (default: the preset's)")
    parser.add_argument("--fine-steps", type=int, help="of the fine stage (default: the preset's)")
    parser.add_argument("--sds", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of SDSConfig")
    parser.add_argument("--sheet", type=Path, default=Path("sds.png"))
    parser.add_argument("--compile-cache", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.compile_cache:
        enable_compile_cache()
    mesh = to_world(read_mesh(options.mesh, options.up))
    results, rows = measure(mesh, Pipeline.from_pretrained(options.weights), options)
    write_png(options.sheet, np.concatenate([np.concatenate(row, axis=1) for row in rows]))
    if options.json:
        print(json.dumps({"device": jax.devices()[0].device_kind, "results": results}, indent=1))


def measure(
    mesh: Mesh, pipeline: Pipeline, options: argparse.Namespace
) -> tuple[dict[str, dict], list[np.ndarray]]:
    """Scores by kind of distillation, and views (16 h w 3) of the truth and of each kind."""
    sds = {name: json.loads(value) for name, value in (item.split("=") for item in options.sds)}
    config = ReconstructConfig(preset=options.preset, steps=options.steps, fine_steps=options.fine_steps)
    kinds = {
        "without": {"config": config},
        "masked": {"config": replace(config, mesh={"sds": sds}), "sds": pipeline},
        "naive": {"config": replace(config, mesh={"sds": sds | {"masked": False}}), "sds": pipeline},
    }
    light = soft_light(0)
    frames = rendered_frames(mesh, static_orbit(options.frames, 10.0), options.size, light)
    truth = np.concatenate([render_orbit(mesh, orbit, options.size, light)[0] for orbit in UNSEEN.values()])
    results, rows = {}, [truth]
    for kind, result in reconstruct_variants(frames, kinds):
        shown, side = result.mesh if result.lit is None else result.lit, options.size
        views = [render_mesh(shown, *camera_arrays(orbit, side), side, side) for orbit in UNSEEN.values()]
        rows.append(np.concatenate(views))
        scores = np.mean(np.reshape(psnr(rows[-1] / 255.0, truth / 255.0), (len(UNSEEN), -1)), axis=1)
        results[kind] = {
            f"psnr_{name}": round(float(score), 2) for name, score in zip(UNSEEN, scores, strict=True)
        }
        results[kind]["timings"] = result.timings
        print({kind: results[kind]}, file=sys.stderr, flush=True)
    return results, rows


if __name__ == "__main__":
    main()
