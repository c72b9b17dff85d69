"""Mesh files: GLB, glTF, OBJ and PLY are read; GLB, OBJ, PLY and USDZ are written.

Files have y up unless told otherwise; a `Mesh` in memory has z up. Readers open only files in the folder of the mesh
or below it, and limit time and memory whatever sizes a damaged header claims.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.atlas import merge_parts
from sv3d_jax.io.gltf import write_glb
from sv3d_jax.io.gltf_data import parse_document, split_glb
from sv3d_jax.io.gltf_scene import read_gltf
from sv3d_jax.io.images import PICTURE_SUFFIXES
from sv3d_jax.io.obj import write_obj
from sv3d_jax.io.obj_reader import read_obj
from sv3d_jax.io.ply import stated_axes, write_ply
from sv3d_jax.io.ply_data import MAX_HEADER_BYTES
from sv3d_jax.io.ply_reader import read_ply
from sv3d_jax.io.reading import read_file, reading
from sv3d_jax.io.surfaces import MAX_FACES, MAX_FILE_BYTES, Part, Source, Up, world_from_file
from sv3d_jax.io.usd import write_usdz

__all__ = [
    "MESH_SUFFIXES",
    "read_mesh",
    "world_from_file",
    "world_from_mesh_file",
    "write_glb",
    "write_obj",
    "write_ply",
    "write_usdz",
]

MAX_COORDINATE = 1e100  # its square does not overflow float64
MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
_DAMAGED = "is damaged: it does not follow its format"


def read_mesh(path: str | Path, up: Up = "y") -> Mesh:
    """All surfaces of a mesh file as one mesh, with z up and node transforms applied.

    Textures, vertex colours and material colours are kept; several textures become one atlas. The mesh's `remarks` say
    what was approximated or skipped. PLY files of this package state their axes; `up` is the up axis of all others.

    Raises InputError for files that are damaged, too large or empty, that require unsupported features, or that refer
    to files outside their own folder.
    """
    path = Path(path)
    suffix = check_mesh_file(path)
    source = Source(path)
    with reading(path, _DAMAGED, "-v shows where"):
        data = read_file(path, MAX_FILE_BYTES)
        with _naming(path), np.errstate(all="ignore"):
            parts = _read_parts(data, suffix, source)
    turn = world_from_mesh_file(path, up)
    with _naming(path), np.errstate(all="ignore"):  # overflow shows as vertices that are not finite
        return _checked(merge_parts(_drawn(parts), turn, source))


def check_mesh_file(path: Path) -> str:
    """The suffix of a mesh file, in lower case. Raises InputError for another kind of file."""
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        hint = f"known: {', '.join(MESH_SUFFIXES)}"
        if suffix in PICTURE_SUFFIXES:
            hint += f"; sv3d orbit {path} -o DIR makes an orbit of a picture"
        raise InputError(f"{path} is not a mesh file", hint=hint)
    return suffix


def mesh_files(folder: Path) -> list[Path]:
    """All mesh files below a folder, sorted. Raises InputError if there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MESH_SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no mesh", hint=f"known: {', '.join(MESH_SUFFIXES)}")
    return files


def world_from_mesh_file(path: str | Path, up: Up = "y") -> np.ndarray:
    """The rotation (4, 4) that `read_mesh` applies: from the axes stated in the file, else from the axis `up`."""
    path = Path(path)
    if path.suffix.lower() == ".ply":
        with reading(path, _DAMAGED), path.open("rb") as file:
            header = file.read(MAX_HEADER_BYTES)
        if (stated := stated_axes(header)) is not None:
            return stated
    return world_from_file(up)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A context whose InputErrors begin with the name of the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error


def _read_parts(data: bytes, suffix: str, source: Source) -> list[Part]:
    match suffix:
        case ".glb":
            return read_gltf(parse_document(*split_glb(data), source))
        case ".gltf":
            return read_gltf(parse_document(data, None, source))
        case ".obj":
            return read_obj(data, source)
        case _:
            return read_ply(data, source)


def _drawn(parts: list[Part]) -> list[Part]:
    """The parts that have faces. Raises InputError if there are none, or too many faces."""
    parts = [part for part in parts if len(part.faces)]
    count = sum(len(part.faces) for part in parts)
    if count == 0:
        raise InputError("has no faces", hint="point clouds and lines cannot be drawn")
    if count > MAX_FACES:
        raise InputError(f"has {count} faces, more than {MAX_FACES}", hint="simplify the mesh")
    return parts


def _checked(mesh: Mesh) -> Mesh:
    used = mesh.vertices[mesh.faces]
    if not np.isfinite(used).all():
        raise InputError(
            f"{(~np.isfinite(used)).any((1, 2)).sum()} faces have vertices that are not finite numbers"
        )
    if np.abs(used).max() > MAX_COORDINATE:
        raise InputError(
            f"has vertices up to {np.abs(used).max():.3g} from the origin, more than {MAX_COORDINATE:g}"
        )
    attributes = {"texture coordinates": mesh.uv, "normals": mesh.normals, "colours": mesh.vertex_colors}
    for name, values in attributes.items():
        if values is not None and not np.isfinite(values[mesh.faces]).all():
            raise InputError(f"has {name} that are not finite numbers")
    if np.ptp(used.reshape(-1, 3), axis=0).max() < 1 / MAX_COORDINATE:
        raise InputError("all vertices lie in one point")
    return mesh
