"""Writing GLB files."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.colors import linear_from_srgb
from sv3d_jax.geometry.mesh import Mesh, vertex_normals
from sv3d_jax.io.outputs import write_atomic
from sv3d_jax.io.surfaces import FILE_FROM_WORLD, check_writable, png

# Constants of glTF, which are those of OpenGL.
_COMPONENT_TYPES = {"<u2": 5123, "<u4": 5125, "<f4": 5126}
_VERTICES, _INDICES = 34962, 34963
# Bilinear, clamped at the edges.
_SAMPLER = {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}


def write_glb(path: str | Path, mesh: Mesh, normals: np.ndarray | None = None) -> None:
    """Write a mesh as GLB. The same mesh gives the same bytes.

    Vertices are stored with z up, and the node rotates them to y up. The material is diffuse; vertex colours are stored
    as linear 16-bit values. Without vertex normals (v 3), each vertex gets the mean normal of its own faces, so
    shading has a seam where vertices are duplicated along the seams of a texture.
    """
    check_writable(path, mesh, normals)
    glb = _Glb()
    normals = vertex_normals(mesh.vertices, mesh.faces) if normals is None else normals
    attributes = {
        "POSITION": glb.vertices(mesh.vertices.astype("<f4"), bounds=True),
        "NORMAL": glb.vertices(normals.astype("<f4")),
    }
    if mesh.vertex_colors is not None:
        linear = linear_from_srgb(np.clip(mesh.vertex_colors, 0.0, 1.0).astype(np.float64))
        # With an alpha of 1, every vertex starts at a multiple of four bytes.
        opaque = np.pad(linear, ((0, 0), (0, 1)), constant_values=1.0)
        attributes["COLOR_0"] = glb.vertices(np.round(65535 * opaque).astype("<u2"))
    base: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    pictures: dict[str, Any] = {}
    if mesh.texture is not None and mesh.uv is not None:
        attributes["TEXCOORD_0"] = glb.vertices((mesh.uv * [1, -1] + [0, 1]).astype("<f4"))
        base["baseColorTexture"] = {"index": 0}
        pictures = {
            "images": [{"bufferView": glb.view(png(mesh.texture)), "mimeType": "image/png"}],
            "samplers": [_SAMPLER],
            "textures": [{"source": 0, "sampler": 0}],
        }
    indices = glb.accessor(mesh.faces.astype("<u4").reshape(-1), glb.view(mesh.faces.astype("<u4"), _INDICES))
    document = {
        "asset": {"version": "2.0", "generator": "sv3d_jax"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "object", "mesh": 0, "matrix": FILE_FROM_WORLD.T.ravel().tolist()}],
        "meshes": [
            {"name": "object", "primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}
        ],
        "materials": [{"name": "surface", "pbrMetallicRoughness": base}],
        **pictures,
    }
    write_atomic(path, glb.packed(document))


class _Glb:
    """A GLB under construction: its binary chunk, with buffer views and accessors."""

    def __init__(self) -> None:
        self.binary = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def vertices(self, rows: np.ndarray, bounds: bool = False) -> int:
        """Add a vertex attribute (v c); returns the index of its accessor. Integers are normalized to [0, 1]."""
        return self.accessor(rows, self.view(rows, _VERTICES), bounds)

    def accessor(self, rows: np.ndarray, view: int, bounds: bool = False) -> int:
        """Add an accessor of rows (n c), or of numbers (n), that fill a buffer view; returns its index."""
        accessor: dict[str, Any] = {
            "bufferView": view,
            "componentType": _COMPONENT_TYPES[rows.dtype.str],
            "count": len(rows),
            "type": f"VEC{rows.shape[1]}" if rows.ndim == 2 else "SCALAR",
        }
        if rows.dtype == np.uint16:
            accessor["normalized"] = True
        if bounds:
            accessor |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def view(self, data: bytes | np.ndarray, target: int | None = None) -> int:
        """Add bytes to the binary chunk; returns the index of their buffer view."""
        data = data if isinstance(data, bytes) else data.tobytes()
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)}
        self.views.append(view if target is None else view | {"target": target})
        self.binary += data + bytes(-len(data) % 4)
        return len(self.views) - 1

    def packed(self, document: dict[str, Any]) -> bytes:
        """The content of the file."""
        document |= {"accessors": self.accessors, "bufferViews": self.views}
        document["buffers"] = [{"byteLength": len(self.binary)}]
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        size = 12 + 8 + len(text) + 8 + len(self.binary)
        header = struct.pack("<4sII", b"glTF", 2, size)
        return (
            header
            + struct.pack("<I4s", len(text), b"JSON")
            + text
            + struct.pack("<I4s", len(self.binary), b"BIN\0")
            + self.binary
        )
