"""Compare our renderings of mesh files with those of three.js and Blender.

    python benchmarks/viewers.py -o OUT --three NODE_MODULES --blender-python PYTHON
    python benchmarks/viewers.py -o OUT --three NODE_MODULES --blender-python PYTHON --exports RESULTS

The first renders twelve GLBs (viewers_objects.py) by `sv3d data render` without light, and by three.js and Blender from
the cameras.json that it wrote. The second takes a folder of `sv3d reconstruct`, writes its mesh in every form, and
compares size, place, colours and normals of each as these programs open it. Differences are means over colour
channels in levels of 255, where both pictures are fully covered; overlap is of the masks. Sheets show ours, theirs and
four times the difference. What is half transparent is composited in display values by us and by browsers, in linear
light by Blender. Either program may be left out. To install them outside of the package's environment:

    npm install --prefix three three@0.187.0 playwright-core@1.65.1     # NODE_MODULES: three/node_modules
    apt-get install chromium
    python3.11 -m venv blender && blender/bin/pip install bpy==5.0.1   # PYTHON: blender/bin/python
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from viewers_objects import write_objects

from sv3d_jax.colors import srgb_from_linear
from sv3d_jax.errors import SV3DError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.meshes import read_mesh, world_from_file
from sv3d_jax.io.orbits import OrbitFrames, read_orbit
from sv3d_jax.progress import NullProgress
from sv3d_jax.recon.export import render_shaded, show_colors, show_normals, write_mesh
from sv3d_jax.train.data.config import RenderConfig
from sv3d_jax.train.data.render import run_render

HERE = Path(__file__).parent
SUPERSAMPLE = 3  # points along a pixel's side, as `sv3d data render` takes
EXPORT_SUPERSAMPLE = 2  # as `sv3d reconstruct` does
FULL, HALF = 254, 128  # alphas of pixels that are covered, and of those that belong to the object
# Blender's importers turn what is y up to z up: (x, y, z) to (x, -z, y).
FILE_FROM_BLENDER = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
UNREAD = {("three", "specular")}  # three.js has no specular-glossiness


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--three", type=Path, help="node_modules with three and playwright-core")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--blender-python", help="a Python that has bpy")
    parser.add_argument(
        "--exports", type=Path, help="folder with a mesh.glb, as `sv3d reconstruct` leaves it"
    )
    parser.add_argument("--only", nargs="+", default=[], help="names of objects")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = list(exports(options) if options.exports else colors(options))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            "  ".join(
                f"{value:.3f}" if isinstance(value, float) else f"{value!s:12}" for value in row.values()
            )
        )


def colors(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each of the twelve objects and each program."""
    orbits: dict[str, OrbitFrames] = {}
    for path in write_objects(options.output / "meshes"):
        if options.only and path.stem not in options.only:
            continue
        folder = options.output / "ours" / path.stem
        folder.parent.mkdir(exist_ok=True)
        config = RenderConfig(
            meshes=(path,), output=folder, frames=options.frames, size=options.size, light="none",
            background="transparent", elevation=20.0, overwrite=True,
        )  # fmt: skip
        try:
            run_render(config, NullProgress())
            orbits[path.stem] = read_orbit(folder)
        except SV3DError as error:
            yield {"object": path.stem, "by": "ours", "refused": error.message}
    for program, world_from_opened in programs(options):
        job = [
            job_item(
                options, program, options.output / "meshes" / f"{name}.glb", "colors", SUPERSAMPLE,
                orbit.object_to_world @ world_from_opened, orbit,
            )
            for name, orbit in orbits.items() if (program, name) not in UNREAD
        ]  # fmt: skip
        for item, _ in run(options, program, job):
            name = Path(item["file"]).stem
            orbit = orbits[name]
            ours = np.concatenate([orbit_colors(orbit), orbit.alphas[..., None]], axis=-1) * 255
            theirs = np.stack([filtered(view, item, program, SUPERSAMPLE) for view in item["views"]])
            sheet(options.output / f"{item['name']}_{program}.png", ours, theirs)
            yield {"object": name, "by": program, **compared(ours, theirs)}


def exports(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each form of a mesh, each program, and colours and normals."""
    from sv3d_jax.cameras.orbit import sine_orbit
    from sv3d_jax.cameras.pose import intrinsics

    folder = options.output / "exported"
    folder.mkdir(exist_ok=True)
    mesh = read_mesh(options.exports / "mesh.glb")
    for suffix in ("glb", "obj", "ply", "usdz"):
        write_mesh(folder / f"mesh.{suffix}", mesh)
    write_mesh(folder / "mesh_z.ply", mesh, "z")
    cameras = sine_orbit(options.frames, 10.0)
    focal, center = intrinsics(cameras.fov_deg, options.size)
    views = OrbitFrames(
        images=np.zeros((options.frames, options.size, options.size, 3), np.float32), alphas=None,
        camera_to_world=cameras.camera_to_world, focal_px=np.tile(focal, (options.frames, 1)),
        center_px=np.tile(center, (options.frames, 1)), azimuths_deg=None, elevations_deg=None, radius=None,
        input_frame=options.frames - 1, fov_deg=cameras.fov_deg, object_to_world=None, files=[],
    )  # fmt: skip
    ours = our_looks(mesh, views)
    for program, world_from_opened in programs(options):
        # Blender takes a PLY as it is; the other one with y up would lie there.
        files = {"blender": ["mesh.glb", "mesh.obj", "mesh.usdz", "mesh_z.ply"]}.get(
            program, ["mesh.glb", "mesh.obj", "mesh.usdz", "mesh.ply"]
        )
        place = world_from_file("y") @ world_from_opened
        job = [
            job_item(options, program, folder / file, look, EXPORT_SUPERSAMPLE, place, views)
            for file in files
            for look in ("colors", "normals")
        ]
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        for item, box in run(options, program, job):
            corners = np.array([box["low"], box["high"]]) @ place[:3, :3].T
            off = np.abs(np.sort(corners, axis=0) - [low, high]).max() / np.ptp(mesh.vertices, axis=0).max()
            theirs = np.stack([filtered(view, item, program, EXPORT_SUPERSAMPLE) for view in item["views"]])
            sheet(options.output / f"{item['name']}_{program}.png", ours[item["look"]], theirs)
            yield {
                "file": item["file"],
                "by": program,
                "look": item["look"],
                **compared(ours[item["look"]], theirs),
                "box_off": float(off),
            }


def programs(options: argparse.Namespace) -> Iterator[tuple[str, np.ndarray]]:
    """The programs that are there, and the rotation from their axes to those of a file with y up."""
    if options.three:
        yield "three", np.eye(4)
    if options.blender_python:
        yield "blender", FILE_FROM_BLENDER


def job_item(
    options: argparse.Namespace,
    program: str,
    path: Path,
    look: str,
    supersample: int,
    world_from_viewer: np.ndarray,
    orbit: OrbitFrames,
) -> dict[str, Any]:
    """A job for a program: draw the colours or the normals of a file from the cameras of an orbit."""
    name, raw = f"{path.name.replace('.', '_')}_{look}", options.output / "raw"
    raw.mkdir(exist_ok=True)
    cameras = zip(orbit.camera_to_world, orbit.focal_px, orbit.center_px, strict=True)
    return {
        "name": name,
        "file": path.name,
        "folder": str(path.parent.absolute()),
        "look": look,
        "world_from_viewer": world_from_viewer.tolist(),
        "side": options.size * supersample,
        "views": [
            {
                "camera_to_world": pose.tolist(),
                "focal": (focal * supersample).tolist(),
                "center": (center * supersample).tolist(),
                "output": str((raw / f"{name}_{program}_{index}.raw").absolute()),
            }
            for index, (pose, focal, center) in enumerate(cameras)
        ],
    }


def run(options, program: str, job: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The drawn items of the job, each with the report of the program."""
    file = options.output / f"{program}.json"
    file.write_text(json.dumps(job))
    command = {
        "three": ["node", str(HERE / "viewers_three.mjs"), str(file), str(options.three), options.chromium],
        "blender": [options.blender_python, str(HERE / "viewers_blender.py"), str(file)],
    }[program]
    with open(options.output / f"{program}.log", "w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
    if done.returncode:
        sys.exit(f"{program} failed, see {log.name}")
    said = {entry["name"]: entry for entry in map(json.loads, done.stdout.splitlines())}
    for item in job:
        yield item, said[item["name"]]


def filtered(view: dict[str, Any], item: dict[str, Any], program: str, supersample: int) -> np.ndarray:
    """A view (h w 4, up to 255) whose pixels are means of display values of their samples, as in our renderer."""
    side = item["side"]
    if program == "three":
        pixels = np.fromfile(view["output"], np.uint8) / 255.0
    else:
        pixels = np.fromfile(view["output"], "<f4").astype(np.float64)
    pixels = pixels.reshape(side, side, 4)[::-1]
    alpha = np.clip(pixels[..., 3:], 0.0, 1.0)
    color = np.clip(pixels[..., :3] / np.maximum(alpha, 1e-6), 0.0, 1.0)
    if program == "blender" and item["look"] == "colors":
        color = srgb_from_linear(color)
    points = np.concatenate([color * alpha, alpha], axis=-1)
    size = side // supersample
    mean = points.reshape(size, supersample, size, supersample, 4).mean((1, 3))
    mean[..., :3] /= np.maximum(mean[..., 3:], 1e-6)
    return 255 * mean


def orbit_colors(orbit: OrbitFrames) -> np.ndarray:
    """The frames' colours without the white background that reading added."""
    alpha = orbit.alphas[..., None]
    return np.clip((orbit.images - 1.0 + alpha) / np.maximum(alpha, 1e-6), 0.0, 1.0)


def our_looks(mesh: Mesh, views: OrbitFrames) -> dict[str, np.ndarray]:
    """Colours and normals of a mesh as `sv3d reconstruct` shows them (f h w 4, up to 255)."""
    size = views.images.shape[1]
    cameras = views.camera_to_world, views.focal_px, views.center_px, size, size
    black = Mesh(mesh.vertices, mesh.faces, vertex_colors=np.zeros(mesh.vertices.shape, np.float32))
    over_white = render_shaded(mesh, *cameras, shaders=(show_colors, show_normals)).astype(float)
    alpha = 255 - render_shaded(black, *cameras, shaders=(show_colors,))[0, ..., :1].astype(float)
    share = np.maximum(alpha / 255, 1e-6)
    colors, normals = ((picture - 255 + alpha) / share for picture in over_white)
    return {
        "colors": np.concatenate([colors, alpha], axis=-1).clip(0, 255),
        "normals": np.concatenate([normals, alpha], axis=-1).clip(0, 255),
    }


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Measures of the difference of two sets of pictures (f h w 4, up to 255)."""
    both = (ours[..., 3] >= FULL) & (theirs[..., 3] >= FULL)
    mine, other = ours[..., 3] >= HALF, theirs[..., 3] >= HALF
    difference = np.abs(ours[..., :3] - theirs[..., :3])[both]
    return {
        "difference": float(difference.mean()) if both.any() else float("nan"),
        "share_above_16": float((difference.max(-1) > 16).mean()) if both.any() else float("nan"),
        "overlap": float((mine & other).sum() / max((mine | other).sum(), 1)),
    }


def sheet(path: Path, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Ours, theirs, and four times the difference, a column for each view."""
    shown = []
    for pictures in (ours, theirs):
        alpha = pictures[..., 3:] / 255
        shown.append(pictures[..., :3] * alpha + 128 * (1 - alpha))
    shown.append(np.clip(4 * np.abs(shown[0] - shown[1]), 0, 255))
    rows = [np.concatenate(list(row), axis=1) for row in shown]
    Image.fromarray(np.round(np.concatenate(rows)).astype(np.uint8)).save(path)


if __name__ == "__main__":
    main()
