"""Recovered against true albedo in several lights: `python benchmarks/relighting.py MESH... [--up z] [--json]`.

Each mesh is rendered from a sine orbit of 21 views in three different lights and reconstructed from each, with and
without the lighting model. The exported albedo, rendered from another sine orbit, is compared with the true one by
the mean absolute error where both are visible, after fitting one global scale. Writes a sheet with a row for each
light: the lit object, the albedo recovered with the lighting model, that without it, and the true albedo.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from reconstruct import HELD_OUT, camera_arrays, reconstruct_variants, rendered_frames
from scipy import ndimage

from sv3d_jax.cameras.orbit import sine_orbit
from sv3d_jax.devices import enable_compile_cache
from sv3d_jax.geometry.mesh import Mesh, to_world
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.recon.config import ReconstructConfig
from sv3d_jax.recon.export import render_mesh
from sv3d_jax.render.lighting import soft_light
from sv3d_jax.render.orbit import render_orbit

LIGHTS = 3
MAX_TILT_DEG = 70.0  # of the lights' axes from straight up
AMBIENT = 0.35  # darkest shading over brightest
RIM = 5  # side of the window that must be full of object
DARKEST = 0.05  # of true colours that are compared; the scale is the median ratio


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("meshes", nargs="+", type=Path)
    parser.add_argument("--up", choices=["y", "z"], default="y")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--darken", type=float, default=1.0, help="factor on the object's own colours")
    parser.add_argument("--sheet", type=Path, default=Path("relighting.png"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    enable_compile_cache()
    results, rows = [], []
    for path in options.meshes:
        mesh = darkened(to_world(read_mesh(path, options.up)), options.darken)
        for seed in range(LIGHTS):
            scores, row = measure(mesh, seed, options)
            results.append({"mesh": path.name, "light": seed, **scores})
            rows.append(row)
            print(results[-1], file=sys.stderr, flush=True)
            Image.fromarray(np.concatenate(rows)).save(options.sheet)
    if options.json:
        print(json.dumps({"device": jax.devices()[0].device_kind, "results": results}, indent=1))


def measure(mesh: Mesh, seed: int, options: argparse.Namespace) -> tuple[dict, np.ndarray]:
    light = soft_light(seed, MAX_TILT_DEG)._replace(ambient=AMBIENT)
    frames = rendered_frames(mesh, sine_orbit(options.frames), options.size, light)
    truth, alpha = render_orbit(mesh, HELD_OUT, options.size, None)
    shown, _ = render_orbit(mesh, HELD_OUT, options.size, light)
    variants = {
        "with_light": {"config": ReconstructConfig(preset=options.preset)},
        "without_light": {"config": ReconstructConfig(preset=options.preset, mesh={"num_lobes": 0})},
    }
    errors, pictures = {}, [shown[0]]
    for name, result in reconstruct_variants(frames, variants):
        rendered = render_mesh(
            result.mesh, *camera_arrays(HELD_OUT, options.size), options.size, options.size
        )
        error, scaled = albedo_error(rendered, truth, alpha)
        errors[name] = round(error, 4)
        pictures.append(scaled[0])
    errors["ratio"] = round(errors["with_light"] / errors["without_light"], 3)
    return errors, np.concatenate([*pictures, truth[0]], axis=1)


def darkened(mesh: Mesh, factor: float) -> Mesh:
    """The mesh with all colours multiplied by a factor."""
    ones = np.ones((len(mesh.vertices), 3), np.float32)
    colors = ones if mesh.vertex_colors is None else mesh.vertex_colors
    return replace(mesh, vertex_colors=factor * colors)


def albedo_error(rendered: np.ndarray, truth: np.ndarray, alpha: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean absolute error well inside the silhouettes after fitting one scale, and the scaled pictures."""
    rendered, truth = rendered / 255.0, truth / 255.0
    inside = ndimage.minimum_filter(alpha, (1, RIM, RIM)) == 255
    inside &= truth.max(axis=-1) > DARKEST
    ours, true = rendered[inside], truth[inside]
    scale = np.median(true.sum(axis=-1) / np.maximum(ours.sum(axis=-1), 1e-3))
    pictures = np.where(inside[..., None], np.clip(scale * rendered, 0, 1), rendered)
    return float(np.abs(np.clip(scale * ours, 0, 1) - true).mean()), np.round(255 * pictures).astype(np.uint8)


if __name__ == "__main__":
    main()
