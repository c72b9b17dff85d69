"""Time of the rasterizer as pictures and meshes grow, and of the figure renderer.

    python benchmarks/rasterizer.py [--sizes 128 512 1024] [--triangles 5000 80000 500000] [--json]

Spheres in one view: visible face, barycentrics and depth (forward), and the gradient of the vertices through
antialiased coverage (gradient, which includes the forward pass). Then antialiased 64x64 pictures of figures. Medians
of several runs, after compilation.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.cameras.pose import intrinsics, look_at
from sv3d_jax.render.antialias import antialias, mesh_edges
from sv3d_jax.render.rasterize import project, rasterize
from sv3d_jax.train.data.figure_batches import pack_figures, render_figures


def sphere(rings: int, sectors: int) -> tuple[jax.Array, jax.Array]:
    """Vertices and 2 rings sectors faces of a sphere of radius 0.5."""
    polar, azimuth = np.mgrid[0 : np.pi : (rings + 1) * 1j, 0 : 2 * np.pi : (sectors + 1) * 1j]
    directions = [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)]
    vertices = 0.5 * np.stack(directions, axis=-1).reshape(-1, 3)
    grid = np.arange(len(vertices)).reshape(rings + 1, sectors + 1)
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    return jnp.asarray(vertices, jnp.float32), jnp.asarray(faces)


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median of several runs, the first one left out."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(triangles: int, size: int, repeats: int) -> dict:
    rings = round((triangles / 3.2) ** 0.5)
    vertices, faces = sphere(rings, round(1.6 * rings))
    focal, center = (jnp.asarray(value, jnp.float32)[None] for value in intrinsics(33.8, size))
    camera = jnp.asarray(look_at(np.array([30.0]), np.array([20.0]), 2.0), jnp.float32)

    @jax.jit
    def draw(vertices, faces):
        return rasterize(project(vertices, camera, focal, center), faces, size, size)

    @jax.jit
    @jax.grad
    def gradient(vertices, faces):
        screen = project(vertices, camera, focal, center)
        fragments = rasterize(screen, faces, size, size)
        covered = (fragments.face_id >= 0).astype(jnp.float32)[..., None]
        return jnp.sum(antialias(covered, fragments, screen, faces, mesh_edges(faces)) ** 2)

    forward, backward = (median_seconds(partial(way, vertices, faces), repeats) for way in (draw, gradient))
    return {
        "triangles": len(faces),
        "size": size,
        "forward_ms": round(1e3 * forward, 2),
        "million_triangles_per_second": round(len(faces) / forward / 1e6, 3),
        "million_pixels_per_second": round(size**2 / forward / 1e6, 3),
        "gradient_ms": round(1e3 * backward, 2),
    }


def figures_per_second(count: int = 32, frames: int = 7) -> float:
    figures = pack_figures(range(count))
    azimuths = np.tile(np.arange(frames) * 360.0 / frames, (count, 1))
    draw = partial(render_figures, figures, azimuths, np.full_like(azimuths, 10.0), 64)
    return count * frames / median_seconds(draw, 5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--triangles", type=int, nargs="+", default=[5_000, 80_000, 500_000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    results = {"device": jax.devices()[0].device_kind, "rasterizer": []}
    for triangles in options.triangles:
        for size in options.sizes:
            results["rasterizer"].append(measure(triangles, size, options.repeats))
            print(results["rasterizer"][-1], file=sys.stderr, flush=True)
    results["figures_64_per_s"] = round(figures_per_second(), 1)
    print(json.dumps(results, indent=1) if options.json else results["figures_64_per_s"])


if __name__ == "__main__":
    main()
