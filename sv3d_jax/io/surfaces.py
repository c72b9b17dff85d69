"""What all mesh formats share: axes, size limits, files next to a mesh file, and the surfaces that readers return."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.names import leads_out, outside_reason
from sv3d_jax.io.outputs import check_finite

Up = Literal["y", "z"]
Wrap = Literal["repeat", "clamp", "mirror"]

MAX_FILE_BYTES = 1 << 30
# Ten million faces, with three vertices each where none are shared: with normals, colours and texture coordinates they
# take 8 GB while they are read.
MAX_FACES = 10_000_000
MAX_VERTICES = 3 * MAX_FACES
MAX_TEXTURE_PIXELS = 64_000_000  # of a texture that this package makes

# The world's +x, where the camera of the input view stands, becomes +z, the front of an object in glTF and its viewers.
FILE_FROM_WORLD = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


@dataclass(frozen=True, eq=False)
class Material:
    """How a surface is coloured: colour and alpha are those of `color` times those of `picture`, in linear light."""

    color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # linear red, green, blue, and alpha
    # Texture: uint8, h w 3 or h w 4, sRGB and alpha. Materials with the same texture share the array.
    picture: np.ndarray | None = None
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")  # along u and v
    nearest: bool = False  # nearest-neighbour instead of bilinear filtering
    alpha: Literal["opaque", "mask", "blend"] = "opaque"
    cutoff: float = 0.5  # with "mask": where alpha is less, the surface has a hole
    one_sided: bool = False  # with "blend": back faces are not drawn


@dataclass(eq=False)
class Part:
    """A surface with one material, in the axes of its file."""

    vertices: np.ndarray  # float64, v 3
    faces: np.ndarray  # integer, t 3, counter-clockwise from outside
    material: Material = field(default_factory=Material)
    # Float, v 3. Zeros mean flat shading at that vertex; None means smooth shading (area-weighted face normals).
    normals: np.ndarray | None = None
    colors: np.ndarray | None = None  # float, v 3 or v 4, linear
    uv: np.ndarray | None = None  # float, v 2, origin at the bottom left of the texture


@dataclass(eq=False)
class Source:
    """A mesh file that is being read: access to files next to it, and remarks on what was approximated or skipped."""

    path: Path
    remarks: list[str] = field(default_factory=list)
    decoded_pixels: int = 0  # of all textures so far

    def remark(self, text: str) -> None:
        """Record what was approximated or skipped; the same text only once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def beside(self, name: str) -> bytes:
        """The content of a file in the folder of the mesh file or in a folder below it.

        Raises InputError for URLs, paths and symbolic links that lead out of the folder, and for files that do not
        exist or are too large.
        """
        if outside_reason(name):
            raise outside_error(name)
        file = self.path.parent / name.replace("\\", "/")
        if leads_out(file, self.path.parent):
            raise InputError(
                f"refers to {name[:200]}, a link that leads out of the mesh's folder", hint=_ONLY_BELOW
            )
        try:
            if not file.is_file():
                raise InputError(f"refers to {name[:200]}, which is not beside it")
            if (size := file.stat().st_size) > MAX_FILE_BYTES:
                raise InputError(f"refers to {name[:200]} of {size} bytes, more than {MAX_FILE_BYTES}")
            return file.read_bytes()
        except (OSError, ValueError):  # impossible file names, cycles of links
            raise InputError(f"refers to {name[:200]}, which cannot be read") from None


def outside_error(name: str) -> InputError:
    """The error for a file name that leads out of the folder of the mesh file."""
    return InputError(f"refers to another place: {name[:200]}", hint=_ONLY_BELOW)


_ONLY_BELOW = "only files beside the mesh or in folders below it are opened"


def used_vertices(faces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the vertices that faces use, out of `count`, and the faces with indices into these."""
    if 8 * faces.size < count:  # a few of many
        used, index = np.unique(faces, return_inverse=True)
        return used, index.reshape(faces.shape)
    is_used = np.zeros(count, bool)
    is_used[faces.reshape(-1)] = True
    return np.flatnonzero(is_used), (np.cumsum(is_used) - 1)[faces]


def world_from_file(up: Up) -> np.ndarray:
    """The rotation (4, 4) from the axes of a file to the world, where z is up.

    A file with y up has its front at +z, which becomes the world's +x. Raises InputError for another axis.
    """
    if up not in ("y", "z"):
        raise InputError(f"up must be y or z, got {up!r}")
    return FILE_FROM_WORLD.T if up == "y" else np.eye(4)


def y_up(vectors: np.ndarray) -> np.ndarray:
    """World vectors (n 3) in the axes of a file with y up: (x, y, z) becomes (y, z, x)."""
    return vectors @ FILE_FROM_WORLD[:3, :3].T


def check_writable(path: str | Path, mesh: Mesh, normals: np.ndarray | None = None) -> None:
    """Raise InputError for a mesh with `materials`, which the writers do not support.

    Raises SV3DError, which says what and where, for values that are not finite in single precision.
    """
    if mesh.materials is not None:
        raise InputError(
            "a mesh with several materials, as read from a file, cannot be written",
            hint="give it vertex colours, or a single texture",
        )
    values = {
        "vertices": mesh.vertices,
        "vertex normals": normals,
        "vertex colours": mesh.vertex_colors,
        "texture coordinates": mesh.uv,
    }
    for name, array in values.items():
        if array is not None:
            check_finite(array, f"{path} is not written: {name}")
    if mesh.texture is not None:
        check_finite(mesh.texture, f"{path} is not written: rows of the texture")


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as 8-bit levels; uint8 arrays as they are. Raises SV3DError for values that are not finite."""
    if values.dtype == np.uint8:
        return values
    check_finite(values, "rows of a picture")
    return np.round(255.0 * np.clip(values, 0.0, 1.0)).astype(np.uint8)


def png(picture: np.ndarray) -> bytes:
    """The content of a PNG file with an image (h w 3), uint8 or in [0, 1]."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(buffer, "PNG")
    return buffer.getvalue()
