"""What mesh formats have in common: axes, limits, pictures."""

import io
from typing import Literal

import numpy as np

Up = Literal["y", "z"]

MAX_FILE_BYTES = 1 << 30
MAX_FACES = 10_000_000
MAX_TEXTURE_PIXELS = 64_000_000
MAX_ALL_TEXTURES_PIXELS = 4 * MAX_TEXTURE_PIXELS  # of one file

FILE_FROM_WORLD = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def world_from_file(up: Up) -> np.ndarray:
    """The rotation (4, 4) from coordinates of a file with this axis up to z up."""
    return FILE_FROM_WORLD.T if up == "y" else np.eye(4)


def y_up(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n 3) of the world in the axes of a file with y up."""
    return vectors @ FILE_FROM_WORLD[:3, :3].T


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as whole numbers up to 255."""
    return np.round(255.0 * np.clip(values, 0.0, 1.0)).astype(np.uint8)


def png(picture: np.ndarray) -> bytes:
    """A picture (h w 3) in [0, 1] as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(buffer, "PNG")
    return buffer.getvalue()
