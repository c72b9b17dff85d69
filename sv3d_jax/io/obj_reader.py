"""Surfaces of OBJ files: polygons are triangulated, shading normals computed, materials looked up."""

import posixpath
import re

import numpy as np

from sv3d_jax.colors import linear_from_srgb
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.polygons import triangulate
from sv3d_jax.io.mtl import DEFAULT_MATERIAL, Libraries, MtlMaterial, shown, unquoted
from sv3d_jax.io.obj_data import ObjData, parse_obj
from sv3d_jax.io.surfaces import Part, Source

MAX_LIBRARY_LINE = 4096  # characters


def read_obj(data: bytes, source: Source) -> list[Part]:
    """The surfaces of an OBJ file, one for each material, in the axes of the file.

    A corner with a normal (vn) has that normal; in a smoothing group, the area-weighted mean of the group's faces at
    the vertex; otherwise the normal of its face. For colours see `Libraries`. Missing materials and textures, and
    statements that are not drawn, become remarks of the source. Raises InputError for damaged lines, more than 10
    million faces, and materials or textures outside the file's folder.
    """
    return _parts(parse_obj(data, source), source)


def _parts(obj: ObjData, source: Source) -> list[Part]:
    triangles, polygon = triangulate(obj.vertices, obj.corners[:, 0], obj.counts, source.remark)
    normals, normal_of_corner = _normals(obj, triangles, polygon)
    materials = _materials(obj, source)
    different = {id(mtl): mtl for mtl in materials}
    rank = {key: index for index, key in enumerate(different)}
    index_of_name = np.array([rank[id(mtl)] for mtl in materials])
    of_triangle = index_of_name[obj.material[polygon]]  # -1, no material, selects the last entry
    order = np.argsort(of_triangle, kind="stable")
    sizes = np.bincount(of_triangle, minlength=len(different))
    colors = None if obj.colors is None else linear_from_srgb(obj.colors)
    parts, uncolored, start = [], 0, 0
    for mtl, size in zip(different.values(), sizes.tolist(), strict=True):
        chosen = triangles[order[start : start + size]]
        start += size
        if not size:
            continue
        uncolored += size if colors is None and not mtl.has_color else 0
        parts.append(_part(obj, mtl, chosen, normals, normal_of_corner, colors, source))
    if uncolored:
        share = "has" if uncolored == len(triangles) else f"{uncolored} of its triangles have"
        source.remark(f"{share} no colour: white is used")
    return parts


def _part(
    obj: ObjData, mtl: MtlMaterial, triangles, normals, normal_of_corner, colors, source: Source
) -> Part:
    """The triangles (t 3, corner numbers) of one material; corners with equal attributes share a vertex."""
    numbers = triangles.reshape(-1)
    vertex, texture, normal = obj.corners[numbers, 0], obj.corners[numbers, 1], normal_of_corner[numbers]
    is_textured = mtl.material.picture is not None
    kept, faces = _different([vertex, normal, *([texture] if is_textured else [])])
    uv = None
    if is_textured:
        if (texture < 0).all():
            source.remark("a textured surface has no texture coordinates: zeros are used")
        has_uv = (texture[kept] >= 0)[:, None]
        uv = np.zeros((len(kept), 2))
        np.copyto(uv, obj.uv[texture[kept]] if len(obj.uv) else 0.0, where=has_uv)
        uv = uv * mtl.scale + mtl.offset
    return Part(
        obj.vertices[vertex[kept]],
        faces.reshape(-1, 3),
        mtl.material,
        normals[normal[kept]],
        None if colors is None else colors[vertex[kept]],
        uv,
    )


def _different(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Index of the first occurrence of every distinct row of the columns, and for each row which of these it is."""
    key, done = columns[0].astype(np.int64), [columns[0]]
    for column in columns[1:]:
        if (column == column[0]).all() or any(np.array_equal(column, other) for other in done):
            continue
        done.append(column)
        _, key = np.unique(key, return_inverse=True)
        key = key.reshape(-1) * (int(column.max()) + 2) + column + 1
    _, kept, place = np.unique(key, return_index=True, return_inverse=True)
    return kept, place.reshape(-1)


def _normals(obj: ObjData, triangles: np.ndarray, polygon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A table of unit normals (n 3), whose last row is zero, and the row of each corner; -1 means flat shading."""
    table, place = [obj.normals], obj.corners[:, 2].astype(np.int64)
    is_grouped = np.repeat(obj.group > 0, obj.counts)
    is_smooth = is_grouped & (place < 0)
    if is_smooth.any():
        # A face has the same weight at all its corners, however it is triangulated, even at corners with own normals.
        corner = np.flatnonzero(is_grouped)
        groups = int(obj.group.max()) + 1
        face = np.repeat(np.arange(len(obj.counts)), obj.counts)[corner]
        key = obj.corners[corner, 0].astype(np.int64)
        if groups > 2:
            _, key = np.unique(key * groups + obj.group[face], return_inverse=True)
            key = key.reshape(-1)
        areas = _area_vectors(obj, triangles, polygon)
        table.append(np.stack([np.bincount(key, axis[face]) for axis in areas], axis=1))
        smooth = is_smooth[corner]
        place[corner[smooth]] = len(obj.normals) + key[smooth]
    normals = np.concatenate([*table, np.zeros((1, 3))])
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = normals / lengths
    normals[~np.isfinite(normals).all(axis=1)] = 0.0
    return normals, place


def _area_vectors(obj: ObjData, triangles: np.ndarray, polygon: np.ndarray) -> list[np.ndarray]:
    """x, y and z of each face's normal, times twice its area."""
    with np.errstate(all="ignore"):
        a, b, c = (obj.vertices[obj.corners[corner, 0]].T for corner in triangles.T)
        u, v = b - a, c - a
        areas = [u[i - 2] * v[i - 1] - u[i - 1] * v[i - 2] for i in range(3)]
    return [np.bincount(polygon, np.where(np.isfinite(axis), axis, 0.0), len(obj.counts)) for axis in areas]


def _materials(obj: ObjData, source: Source) -> list[MtlMaterial]:
    """The material of each name in the file, then the default material of faces that name none."""
    libraries = Libraries(source)
    for line in obj.libraries:
        for name in _library_names(line, libraries):
            if not libraries.read(name):
                source.remark(f"{shown(name)} is missing: its materials are not read")
    if not all(libraries.knows(name) for name in obj.material_names):
        libraries.read(posixpath.splitext(source.path.name)[0] + ".mtl")  # as Blender does
    materials = [libraries.material(name) for name in obj.material_names]
    libraries.remark()
    return [*materials, DEFAULT_MATERIAL]


def _library_names(line: str, libraries: Libraries) -> list[str]:
    """File names in a mtllib line: the whole line if that file exists, else what ends in .mtl, else its words."""
    if len(line) > MAX_LIBRARY_LINE:
        raise InputError(f"is damaged: a mtllib line has {len(line)} letters")
    whole = unquoted(line)
    if libraries.read(whole):
        return [whole]
    names = [unquoted(name) for name in re.findall(r'"[^"]+"|\S[^"]*?\.mtl(?=\s|$)', line, re.IGNORECASE)]
    return names or line.split()
