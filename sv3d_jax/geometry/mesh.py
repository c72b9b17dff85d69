"""The triangle mesh that every area passes around."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with colours per vertex, or a texture with uv per vertex, or the product of both, or white.

    Arrays are numpy: vertices float64 `v 3`, faces int32 `t 3` counter-clockwise from outside, vertex_colors
    float32 `v 3` in [0, 1] (display values), uv float32 `v 2` with the origin at the bottom left, texture float32
    `h w 3` in [0, 1] with row 0 on top.
    """

    vertices: np.ndarray
    faces: np.ndarray
    vertex_colors: np.ndarray | None = None
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None
    extras: dict[str, Any] = field(default_factory=dict)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (v 3) of vertices (v 3): the normals of their faces (t 3), weighted by area.

    These are the normals that the renderer shades with. A vertex without faces, or with faces of no area, gets +z.
    """
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    area_vectors = np.cross(b - a, c - a)
    total = np.zeros(vertices.shape)
    for corner in faces.T:
        np.add.at(total, corner, area_vectors)
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(lengths > 0, total / np.where(lengths > 0, lengths, 1.0), [0.0, 0.0, 1.0])
