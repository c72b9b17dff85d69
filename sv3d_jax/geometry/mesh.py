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
