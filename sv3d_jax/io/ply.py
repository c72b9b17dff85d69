"""Writing PLY files, and the comment in their header that states their axes."""

from pathlib import Path

import numpy as np

from sv3d_jax.geometry.mesh import Mesh, vertex_normals
from sv3d_jax.io.outputs import write_atomic
from sv3d_jax.io.surfaces import Up, check_writable, to_uint8, world_from_file

# The comment in the header, and the rotation from these axes to the world. With z up, programs that import glTF's
# (x, y, z) as (x, -z, y), such as Blender, show the file in the same orientation as a GLB.
AXES = {
    "y": ("comment axes: +Y up, +Z front", world_from_file("y")),
    "z": (
        "comment axes: +Z up, -Y front",
        np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ),
}


def write_ply(path: str | Path, mesh: Mesh, normals: np.ndarray | None = None, up: Up = "y") -> None:
    """Write a mesh as binary PLY with normals and vertex colours; a comment states its axes.

    Without vertex normals (v 3), each vertex gets the mean normal of its own faces. `up` is "y", with the front at +z
    as in a GLB, or "z", with the front at -y as in Blender.
    """
    check_writable(path, mesh, normals)
    axes, world_from_ply = AXES[up]
    normals = vertex_normals(mesh.vertices, mesh.faces) if normals is None else normals
    colors = mesh.vertex_colors
    vertex = [("position", "<f4", 3), ("normal", "<f4", 3)]
    vertex += [("color", "u1", 3)] if colors is not None else []
    vertices = np.zeros(len(mesh.vertices), vertex)
    vertices["position"] = mesh.vertices @ world_from_ply[:3, :3]
    vertices["normal"] = normals @ world_from_ply[:3, :3]
    if colors is not None:
        vertices["color"] = to_uint8(colors)
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", axes, f"element vertex {len(vertices)}"]
    header += [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")] if colors is not None else []
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    write_atomic(path, "\n".join(header).encode() + vertices.tobytes() + faces.tobytes())


def stated_axes(data: bytes) -> np.ndarray | None:
    """The rotation (4, 4) to the world if the header of a PLY file states its axes; None if it does not."""
    header = data[: data.find(b"end_header")].splitlines()
    for comment, world_from_ply in AXES.values():
        if comment.encode() in header:
            return world_from_ply
    return None
