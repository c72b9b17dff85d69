"""Time and memory of reading and drawing mesh files, each in a process of its own.

    python benchmarks/mesh_files.py [FILE ...] [--size 64] [--json]

Without files it measures those of tests/cases/meshes, and 80,000 triangles in one buffer as one primitive and as a
hundred. Memory is the peak of `sv3d data render` minus that of the smallest mesh, in a second run that finds its
programs compiled. Ratios are of a file to its control. The median time of reading is compared with that of trimesh.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
CONTROLS = {"repeat64.glb": "repeat1.glb", "shared_buffer_100.glb": "shared_buffer_1.glb"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = options.files or own_files(Path(folder))
        rows = [measure(file, options.size, Path(folder)) for file in files]
    least = min(row["peak_mb"] for row in rows if row["peak_mb"])
    peaks = {row["file"]: row["peak_mb"] for row in rows}
    for row in rows:
        row["above_mb"] = row["peak_mb"] and round(row["peak_mb"] - least)
        if control := peaks.get(CONTROLS.get(row["file"], "")):
            row["to_control"] = round(row["peak_mb"] / control, 3)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        line = f"{row['file']:32} "
        if row["peak_mb"] is None:
            print(line + row["refused"])
            continue
        line += f"{row['above_mb']:5} MB above {least:.0f}"
        line += f"  read {row['read_s']:.3f} s" + (
            f" (trimesh {row['trimesh_s']:.3f})" if row["trimesh_s"] else ""
        )
        print(line + (f"  {row['to_control']:.3f} of its control" if "to_control" in row else ""))


def own_files(folder: Path) -> list[Path]:
    """The test cases, and two generated meshes that are too large to store."""
    cases = sorted(
        path
        for path in (ROOT / "tests" / "cases" / "meshes").iterdir()
        if path.suffix in (".glb", ".obj", ".ply")
    )
    for primitives in (1, 100):
        cases.append(folder / f"shared_buffer_{primitives}.glb")
        write_sphere(cases[-1], primitives)
    return cases


def write_sphere(path: Path, primitives: int, rings: int = 200) -> None:
    """Write a sphere of 2 rings^2 - 2 rings triangles in several primitives with a material each, in one buffer."""
    polar, azimuth = np.meshgrid(
        np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, rings + 1), indexing="ij"
    )
    points = np.stack([np.sin(polar) * np.cos(azimuth), np.cos(polar), np.sin(polar) * np.sin(azimuth)], -1)
    grid = np.arange(points[..., 0].size).reshape(rings, rings + 1)
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], 2).reshape(-1, 3).astype("<u4")
    blobs = [points.reshape(-1, 3).astype("<f4"), *np.array_split(faces, primitives)]
    views, accessors, binary = [], [], b""
    for number, blob in enumerate(blobs):
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": blob.nbytes})
        kind = {"componentType": 5125, "count": blob.size, "type": "SCALAR"}
        if number == 0:
            kind = {
                "componentType": 5126,
                "count": len(blob),
                "type": "VEC3",
                "min": [-1] * 3,
                "max": [1] * 3,
            }
        accessors.append({"bufferView": number, **kind})
        binary += blob.tobytes()
    parts = [
        {"attributes": {"POSITION": 0}, "indices": 1 + number, "material": number}
        for number in range(primitives)
    ]
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": parts}],
        "materials": [{"name": str(number)} for number in range(primitives)],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<II", len(text), 0x4E4F534A)
        + text
        + struct.pack("<II", len(binary), 0x004E4942)
        + binary
    )
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


def measure(file: Path, size: int, folder: Path) -> dict:
    """Peak memory of rendering a file and seconds of reading it, or the error message if it is refused."""
    row = {"file": file.name, "peak_mb": None, "refused": ""}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for attempt in range(2):
        output = folder / f"{file.name}_{attempt}"
        words = [sys.executable, "-m", "sv3d_jax", "data", "render", str(file), "-o", str(output)]
        words += ["--size", str(size), "--light", "none", "--device", "cpu"]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode:
            return row | {
                "refused": done.stderr.splitlines()[0] if done.stderr else f"exit {done.returncode}"
            }
    peak = json.loads((output / "run.json").read_text())["peak_memory_bytes"]
    return row | {"peak_mb": peak / 1e6, "read_s": reading(file), "trimesh_s": trimesh_reading(file)}


def reading(file: Path) -> float:
    from sv3d_jax.io.meshes import read_mesh

    return median_seconds(lambda: read_mesh(file))


def trimesh_reading(file: Path) -> float | None:
    import trimesh

    try:
        return median_seconds(lambda: trimesh.load_scene(file, process=False))
    except Exception:  # it cannot read this one
        return None


def median_seconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
