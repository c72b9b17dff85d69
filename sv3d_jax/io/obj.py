"""Writing OBJ files with their materials."""

from pathlib import Path

import numpy as np

from sv3d_jax.geometry.mesh import Mesh, vertex_normals
from sv3d_jax.io.outputs import write_atomic
from sv3d_jax.io.surfaces import check_writable, png, y_up


def write_obj(path: str | Path, mesh: Mesh, normals: np.ndarray | None = None) -> None:
    """Write a mesh as OBJ with y up; a texture goes to an MTL and a PNG file of the same name.

    Without vertex normals (v 3), each vertex gets the mean normal of its own faces. Positions and normals shared by
    several vertices are written once, so that other programs see a connected surface across the seams of a texture.
    """
    check_writable(path, mesh, normals)
    path = Path(path)
    normals = vertex_normals(mesh.vertices, mesh.faces) if normals is None else normals
    rows = y_up(mesh.vertices)
    if mesh.vertex_colors is not None:
        rows = np.column_stack([rows, mesh.vertex_colors])
    lines, corners = [], [mesh.faces]  # corners: indices of texture coordinates, position and normal
    if mesh.texture is not None:
        material, picture = path.with_suffix(".mtl"), path.with_suffix(".png")
        write_atomic(picture, png(mesh.texture))
        write_atomic(
            material, f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {picture.name}\n"
        )
        lines = [f"mtllib {material.name}", "usemtl surface", *_obj_rows("vt", mesh.uv)]
    for kind, values in ("v", rows), ("vn", y_up(normals)):
        different, place = _different(values)
        lines += _obj_rows(kind, different)
        corners.append(place[mesh.faces])
    form = "{1}/{0}/{2}" if mesh.texture is not None else "{1}//{2}"
    faces = [
        " ".join(form.format(*corner) for corner in face)
        for face in (np.stack(corners, axis=-1) + 1).tolist()
    ]
    write_atomic(path, "\n".join([*lines, *(f"f {face}" for face in faces), ""]))


def _different(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique rows in order of first occurrence, and the index of every row among them."""
    _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return rows[first[order]], np.argsort(order)[place.reshape(-1)]


def _obj_rows(kind: str, rows: np.ndarray) -> list[str]:
    return [f"{kind} {' '.join(f'{x:.7g}' for x in row)}" for row in rows]
