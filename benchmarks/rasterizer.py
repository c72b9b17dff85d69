"""Time of the rasterizer and of the figure renderer.

    python benchmarks/rasterizer.py [--json]

A sphere of 5 thousand triangles at 128x128 and of 82 thousand at 576x576, one view each: visible face,
barycentrics and depth; then antialiased 64x64 pictures of figures. Best of several runs, after compilation.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.cameras.pose import intrinsics, look_at
from sv3d_jax.render.rasterize import project, rasterize
from sv3d_jax.train.data.render import pack_figures, render_figures


def sphere(rings: int, sectors: int) -> tuple[jax.Array, jax.Array]:
    """Vertices and 2 rings sectors faces of a sphere of radius 0.5."""
    polar, azimuth = np.mgrid[0 : np.pi : (rings + 1) * 1j, 0 : 2 * np.pi : (sectors + 1) * 1j]
    directions = [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)]
    vertices = 0.5 * np.stack(directions, axis=-1).reshape(-1, 3)
    grid = np.arange(len(vertices)).reshape(rings + 1, sectors + 1)
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    return jnp.asarray(vertices, jnp.float32), jnp.asarray(faces)


def best_seconds(function: Callable[[], object], repeats: int) -> float:
    """Shortest of several runs, the first one left out."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times)


def rasterize_ms(rings: int, sectors: int, size: int) -> float:
    vertices, faces = sphere(rings, sectors)
    focal, center = (jnp.asarray(value, jnp.float32)[None] for value in intrinsics(33.8, size))
    camera = jnp.asarray(look_at(np.array([30.0]), np.array([20.0]), 2.0), jnp.float32)

    @jax.jit
    def draw(vertices):
        return rasterize(project(vertices, camera, focal, center), faces, size, size)

    return 1e3 * best_seconds(partial(draw, vertices), 20)


def figures_per_second(count: int = 32, frames: int = 7) -> float:
    figures = pack_figures(range(count))
    azimuths = np.tile(np.arange(frames) * 360.0 / frames, (count, 1))
    draw = partial(render_figures, figures, azimuths, np.full_like(azimuths, 10.0), 64)
    return count * frames / best_seconds(draw, 5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    results = {
        "device": jax.devices()[0].device_kind,
        "faces_5k_size_128_ms": rasterize_ms(40, 64, 128),
        "faces_82k_size_576_ms": rasterize_ms(160, 256, 576),
        "figures_64_per_s": figures_per_second(),
    }
    if arguments.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name}: {value if isinstance(value, str) else round(value, 2)}")


if __name__ == "__main__":
    main()
