"""What score distillation does to views that an orbit does not show.

    python benchmarks/sds.py MESH [--up z] [--weights mini] [--size 128] [--sheet sds.png] [--json]

The mesh is rendered from a static orbit of 21 views at 10 degrees. From one coarse stage the fine stage runs three
times: without distillation, with masked, with naive. Scored is the PSNR, in the colours that the views show, of eight
views each from 60 degrees above and below. Mini knows upright figures, such as those of `sv3d data objects`. The sheet
has a row for the truth and one for each of the three.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from sv3d_jax.cameras.orbit import static_orbit
from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.devices import enable_compile_cache
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.images import write_png
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.io.orbits import read_orbit, write_orbit
from sv3d_jax.metrics.images import psnr
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.recon.config import ReconstructConfig
from sv3d_jax.recon.export import render_mesh
from sv3d_jax.recon.reconstruct import reconstruct
from sv3d_jax.render.lighting import soft_light
from sv3d_jax.train.data.render import render_orbit, to_world

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
        "without": (config, None),
        "masked": (replace(config, mesh={"sds": sds}), pipeline),
        "naive": (replace(config, mesh={"sds": sds | {"masked": False}}), pipeline),
    }
    light = soft_light(0)
    truth = np.concatenate([render_orbit(mesh, orbit, options.size, light)[0] for orbit in UNSEEN.values()])
    results, rows = {}, [truth]
    with tempfile.TemporaryDirectory() as folder:
        orbit, coarse = Path(folder) / "orbit", Path(folder) / "without" / "coarse.npz"
        cameras = static_orbit(options.frames, 10.0)
        write_orbit(orbit, render_orbit(mesh, cameras, options.size, light)[0], cameras)
        for kind, (config, model) in kinds.items():
            scratch = Path(folder) / kind
            scratch.mkdir()
            if coarse.exists():
                shutil.copy(coarse, scratch)
            start = time.monotonic()
            result = reconstruct(read_orbit(orbit), config, scratch=scratch, sds=model)
            seconds = round(time.monotonic() - start, 1)
            pictures = unseen_views(result.mesh if result.lit is None else result.lit, options.size)
            rows.append(pictures)
            scores = np.mean(np.reshape(psnr(pictures / 255.0, truth / 255.0), (len(UNSEEN), -1)), axis=1)
            psnrs = {
                f"psnr_{side}": round(float(score), 2) for side, score in zip(UNSEEN, scores, strict=True)
            }
            results[kind] = {**psnrs, "seconds": seconds, "timings": result.timings}
            print({kind: results[kind]}, file=sys.stderr, flush=True)
    return results, rows


def unseen_views(mesh: Mesh, size: int) -> np.ndarray:
    """The mesh from above and below, (16 h w 3) in 8 bits."""
    poses = np.concatenate([orbit.camera_to_world for orbit in UNSEEN.values()])
    focal, center = (np.tile(x, (len(poses), 1)) for x in intrinsics(UNSEEN["above"].fov_deg, size))
    return render_mesh(mesh, poses, focal, center, size, size)


if __name__ == "__main__":
    main()
