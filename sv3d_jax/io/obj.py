"""OBJ files and the materials beside them."""

from pathlib import Path

import numpy as np

from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.outputs import write_atomic
from sv3d_jax.io.surfaces import png, y_up


def write_obj(path: str | Path, mesh: Mesh) -> None:
    """Write a mesh as OBJ, y up, with a material and its picture beside it if it has a texture.

    With a texture, vertices that differ in uv alone are written once, so that programs see one connected surface.
    """
    path = Path(path)
    rows = y_up(mesh.vertices)
    if mesh.vertex_colors is not None:
        rows = np.column_stack([rows, mesh.vertex_colors])
    if mesh.texture is None:
        lines, faces = _obj_rows("v", rows), [" ".join(map(str, face)) for face in mesh.faces + 1]
    else:
        material, picture = path.with_suffix(".mtl"), path.with_suffix(".png")
        write_atomic(picture, png(mesh.texture))
        write_atomic(
            material, f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {picture.name}\n"
        )
        _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        lines = [f"mtllib {material.name}", *_obj_rows("v", rows[first]), "usemtl surface"]
        lines += _obj_rows("vt", mesh.uv)
        corners = np.stack([place.reshape(-1)[mesh.faces], mesh.faces], axis=-1) + 1
        faces = [" ".join(f"{v}/{vt}" for v, vt in face) for face in corners.tolist()]
    write_atomic(path, "\n".join([*lines, *(f"f {face}" for face in faces), ""]))


def _obj_rows(kind: str, rows: np.ndarray) -> list[str]:
    return [f"{kind} {' '.join(f'{x:.7g}' for x in row)}" for row in rows]
