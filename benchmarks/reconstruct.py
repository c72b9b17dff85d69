"""Reconstruction of rendered orbits: quality on held-out views, distance to the true surface, time.

    python benchmarks/reconstruct.py MESH... [--up z] [--preset fast] [--size 128] [--json]

Each mesh is rendered from a sine orbit of 21 views, reconstructed and exported. The exported file, with the colours of
the views, is rendered from another sine orbit and compared by PSNR, and its surface is compared with the mesh. CPU
seconds are the sum over all cores.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sv3d_jax.cameras.orbit import CameraPath, sine_orbit
from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.devices import enable_compile_cache
from sv3d_jax.geometry.mesh import Mesh, to_world
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.io.orbits import OrbitFrames
from sv3d_jax.metrics.geometry import color_error, compare_meshes
from sv3d_jax.metrics.images import psnr
from sv3d_jax.recon.config import ReconstructConfig
from sv3d_jax.recon.export import render_mesh, write_mesh
from sv3d_jax.recon.reconstruct import ReconstructResult, reconstruct
from sv3d_jax.recon.representations import Light
from sv3d_jax.render.lighting import soft_light
from sv3d_jax.render.orbit import render_orbit

HELD_OUT = sine_orbit(12, elevation_deg=0.0, amplitude_deg=20.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("meshes", nargs="+", type=Path)
    parser.add_argument("--up", choices=["y", "z"], default="y")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--nerf", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of NerfConfig")
    parser.add_argument("--mesh", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of MeshConfig")
    parser.add_argument("--compile-cache", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.compile_cache:
        enable_compile_cache()
    nerf, mesh = (
        {name: json.loads(value) for name, value in (item.split("=") for item in items)}
        for items in (options.nerf, options.mesh)
    )
    config = ReconstructConfig(preset=options.preset, nerf=nerf, mesh=mesh)
    results = []
    for path in options.meshes:
        results.append({"mesh": path.name, **measure(to_world(read_mesh(path, options.up)), config, options)})
        print(results[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"device": jax.devices()[0].device_kind, "results": results}, indent=1))


def measure(mesh: Mesh, config: ReconstructConfig, options: argparse.Namespace) -> dict:
    light = soft_light(0)
    frames = rendered_frames(mesh, sine_orbit(options.frames), options.size, light)
    wall, processor = time.monotonic(), time.process_time()
    result = reconstruct(frames, config)
    seconds = {"seconds": time.monotonic() - wall, "processor_seconds": time.process_time() - processor}
    truth, _ = render_orbit(mesh, HELD_OUT, options.size, light)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mesh.glb"
        write_mesh(file, result.mesh if result.lit is None else result.lit)
        exported = read_mesh(file)
    rendered = render_mesh(exported, *camera_arrays(HELD_OUT, options.size), options.size, options.size)
    scores = compare_meshes(exported, mesh, points=20_000)
    scores |= color_error(result.mesh, mesh, points=20_000) or {}  # albedo, not the lit colours of the file
    kept = ("chamfer", "pred_to_target", "target_to_pred", "f_score", "iou", "pred_closed")
    kept += ("color_error", "color_error_scaled")
    return {
        **{name: round(value, 2) for name, value in seconds.items()},
        "held_out_psnr": round(float(np.mean(psnr(rendered / 255.0, truth / 255.0))), 2),
        **{name: scores[name] for name in kept},
        **{name: result.facts[name] for name in ("density_level", "mask_iou", "faces")},
        "timings": result.timings,
    }


def reconstruct_variants(
    frames: OrbitFrames, variants: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, ReconstructResult]]:
    """Run `reconstruct` with several sets of arguments that share one coarse stage."""
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in variants.items():
            yield name, reconstruct(frames, scratch=Path(folder), **arguments)
            for later in ("fine.npz", "bake.npz"):
                (Path(folder) / later).unlink(missing_ok=True)


def camera_arrays(path: CameraPath, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses, focal lengths and centres in pixels."""
    focal, center = intrinsics(path.fov_deg, size)
    return path.camera_to_world, np.tile(focal, (len(path), 1)), np.tile(center, (len(path), 1))


def rendered_frames(mesh: Mesh, cameras: CameraPath, size: int, light: Light) -> OrbitFrames:
    """An orbit as `sv3d orbit` writes it: over white, without alpha."""
    images, _ = render_orbit(mesh, cameras, size, light)
    return OrbitFrames.from_views(images, cameras)


if __name__ == "__main__":
    main()
