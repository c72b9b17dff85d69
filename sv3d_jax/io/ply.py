"""PLY files."""

from pathlib import Path

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.outputs import write_atomic
from sv3d_jax.io.surfaces import to_uint8, y_up


def write_ply(path: str | Path, mesh: Mesh) -> None:
    """Write a mesh as binary PLY with vertex colours, y up."""
    colors = mesh.vertex_colors
    vertex = [("position", "<f4", 3)] + ([("color", "u1", 3)] if colors is not None else [])
    vertices = np.zeros(len(mesh.vertices), vertex)
    vertices["position"] = y_up(mesh.vertices)
    if colors is not None:
        vertices["color"] = to_uint8(colors)
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")] if colors is not None else []
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    write_atomic(path, "\n".join(header).encode() + vertices.tobytes() + faces.tobytes())


def check_ply(data: bytes) -> None:
    """Refuse counts that the file cannot hold: each element takes a byte at least."""
    header = data[: data.find(b"end_header")].decode("ascii", "replace")
    for line in header.splitlines():
        words = line.split()
        if words[:1] == ["element"] and not 0 <= int(words[2]) <= len(data):
            raise InputError(f"claims {words[2]} elements of {words[1]} in {len(data)} bytes")
