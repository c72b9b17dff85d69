"""Surfaces of PLY files, with colours, normals and textures as scanners and MeshLab write them."""

from typing import NamedTuple

import numpy as np

from sv3d_jax.colors import linear_from_srgb
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import vertex_normals
from sv3d_jax.geometry.polygons import triangulate
from sv3d_jax.io.ply_data import Header, Lists, Table, parse_header, read_tables
from sv3d_jax.io.surfaces import MAX_FACES, Material, Part, Source, used_vertices
from sv3d_jax.io.textures import decode_picture

_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_MOST_OF_REAL_COLORS = 2.0  # above it, floating-point colours are taken as 0 to 255
_UV = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"))
_FACE_LISTS = ("vertex_indices", "vertex_index")


def read_ply(data: bytes, source: Source) -> list[Part]:
    """The surfaces of a PLY file, one for each of its textures, in the axes of the file.

    Colours are sRGB; face colours override vertex colours, alpha is ignored. Texture coordinates belong to vertices or,
    as lists, to the corners of faces. Without normals, shading is smooth. Textures are named by comments
    (`comment TextureFile NAME`). Raises InputError for damaged or truncated files, for more than 10 million faces, and
    for textures that are missing or outside the file's folder.
    """
    header = parse_header(data)
    tables = read_tables(data, header)
    if "vertex" not in tables:
        raise InputError("has no element vertex")
    vertices = _vertices(tables["vertex"])
    faces = _faces(tables, vertices.positions, source)
    has_uv = vertices.uv is not None or any(group.uv is not None for group in faces)
    pictures = _pictures(header, source) if has_uv else []
    return [part for group in faces for part in _parts(vertices, group, pictures, source)]


class _Vertices(NamedTuple):
    positions: np.ndarray  # float64, v 3
    normals: np.ndarray | None
    colors: np.ndarray | None  # linear, v 3
    uv: np.ndarray | None


class _Faces(NamedTuple):
    """Triangles with the attributes of their corners."""

    corners: np.ndarray  # vertices, t 3
    colors: np.ndarray | None  # linear, t 3
    uv: np.ndarray | None  # of corners, t 3 2
    picture: np.ndarray | None  # index of the texture of each triangle


def _vertices(table: Table) -> _Vertices:
    positions = _columns(table, ("x", "y", "z"))
    if positions is None:
        raise InputError("is damaged: its vertices have no x, y and z")
    uv = next((found for names in _UV if (found := _columns(table, names)) is not None), None)
    return _Vertices(positions, _columns(table, ("nx", "ny", "nz")), _colors(table), uv)


def _faces(tables: dict[str, Table], positions: np.ndarray, source: Source) -> list[_Faces]:
    """Triangles of the polygons and of the triangle strips."""
    groups = [_polygons(tables, positions, source), _Faces(_strips(tables, len(positions)), None, None, None)]
    return [group for group in groups if len(group.corners)]


def _polygons(tables: dict[str, Table], positions: np.ndarray, source: Source) -> _Faces:
    table = tables.get("face", {})
    listed = next((table[name] for name in _FACE_LISTS if isinstance(table.get(name), Lists)), None)
    if listed is None or not len(listed.values):
        return _Faces(np.zeros((0, 3), np.int64), None, None, None)
    indices = _checked_indices(listed.values, len(positions))
    if np.maximum(listed.counts - 2, 0).sum() > MAX_FACES:
        raise InputError(f"has more than {MAX_FACES} faces", hint="simplify the mesh")
    triangles, polygon = triangulate(positions, indices, listed.counts, source.remark)
    colors = _colors(table)
    number = table.get("texnumber")
    return _Faces(
        indices[triangles],
        None if colors is None else colors[polygon],
        _corner_uv(table, listed, triangles, polygon, source),
        None if number is None or isinstance(number, Lists) else number.astype(np.int64)[polygon],
    )


def _checked_indices(values: np.ndarray, count: int) -> np.ndarray:
    if values.dtype.kind not in "iu":
        raise InputError("is damaged: its faces name vertices by numbers that are not integers")
    indices = values.astype(np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < count:
        wrong = indices[(indices < 0) | (indices >= count)][0]
        raise InputError(f"is damaged: a face names vertex {wrong} of {count}")
    return indices


def _corner_uv(table: Table, listed: Lists, triangles, polygon, source: Source) -> np.ndarray | None:
    """Texture coordinates of corners (t 3 2), zeros for faces without; None if no face has any."""
    uv = table.get("texcoord")
    if not isinstance(uv, Lists) or len(uv.values) < 2:
        return None
    has_uv = uv.counts == 2 * listed.counts
    if not (has_uv | (uv.counts == 0)).all():
        source.remark("texture coordinates of faces that do not match their corners are ignored")
    # Corners are counted over all faces, texture coordinates only over faces that have some.
    first, first_uv = np.cumsum(listed.counts) - listed.counts, np.cumsum(uv.counts) - uv.counts
    local = triangles - first[polygon][:, None]
    place = np.where(has_uv[polygon][:, None], first_uv[polygon][:, None] + 2 * local, 0)
    found = np.stack([uv.values[place], uv.values[place + 1]], axis=-1).astype(np.float64)
    return np.where(has_uv[polygon][:, None, None], found, 0.0)


def _strips(tables: dict[str, Table], count: int) -> np.ndarray:
    """Triangles (t 3) of strips; -1 starts a new strip. Every second triangle of a strip is wound the other way."""
    table = tables.get("tristrips", {})
    listed = next((table[name] for name in _FACE_LISTS if isinstance(table.get(name), Lists)), None)
    if listed is None:
        return np.zeros((0, 3), np.int64)
    values = listed.values.astype(np.int64)
    if len(values) > MAX_FACES:
        raise InputError(f"has more than {MAX_FACES} faces", hint="simplify the mesh")
    _checked_indices(values[values != -1], count)
    begins = np.zeros(len(values), bool)
    ends = np.cumsum(listed.counts)
    begins[(ends - listed.counts)[listed.counts > 0]] = True
    begins[1:] |= values[:-1] == -1
    number = np.cumsum(begins)  # of the strip
    place = np.arange(len(values)) - np.maximum.accumulate(np.where(begins, np.arange(len(values)), 0))
    corner = np.arange(max(len(values) - 2, 0))
    whole = (number[corner] == number[corner + 2]) & (values[corner] >= 0)
    whole &= (values[corner + 1] >= 0) & (values[corner + 2] >= 0)
    corner = corner[whole]
    odd = place[corner] % 2
    return np.stack([values[corner], values[corner + 1 + odd], values[corner + 2 - odd]], axis=1)


def _columns(table: Table, names: tuple[str, ...]) -> np.ndarray | None:
    """Properties side by side (n k) as float64; None if one is missing."""
    found = [table.get(name) for name in names]
    if any(column is None or isinstance(column, Lists) for column in found):
        return None
    return np.stack(found, axis=1).astype(np.float64)  # pyright: ignore[reportCallIssue]


def _colors(table: Table) -> np.ndarray | None:
    """Linear colours (n 3). They are stored as floats in [0, 1], as unsigned 16-bit, or as 0 to 255 in any type."""
    for names in _COLORS:
        colors = _columns(table, names)
        if colors is None:
            continue
        kind = table[names[0]].dtype
        scale = 65535.0 if kind == np.uint16 else 255.0
        if kind.kind == "f" and not (colors > _MOST_OF_REAL_COLORS).any():
            scale = 1.0
        return linear_from_srgb(np.clip(np.nan_to_num(colors / scale), 0.0, 1.0)).astype(np.float32)
    return None


def _pictures(header: Header, source: Source) -> list[np.ndarray]:
    """The textures that comments name."""
    count = len(header.pictures)
    return [decode_picture(source.beside(name), name[:200], source, count) for name in header.pictures]


def _parts(
    vertices: _Vertices, faces: _Faces, pictures: list[np.ndarray | None], source: Source
) -> list[Part]:
    """A part for each texture that faces use, and one for faces without."""
    number = np.zeros(len(faces.corners), np.int64) if faces.picture is None else faces.picture
    shown = (number >= 0) & (number < len(pictures))
    number = np.where(shown, number, -1)
    if vertices.colors is None and faces.colors is None and not shown.all():
        source.remark("has no colour: white is used")
    parts = []
    for index in np.unique(number):
        chosen = number == index
        picture = pictures[index] if index >= 0 else None
        parts.append(_part(vertices, faces, chosen, Material(picture=picture)))
    return parts


def _part(vertices: _Vertices, faces: _Faces, chosen: np.ndarray, material: Material) -> Part:
    corners = faces.corners[chosen]
    corner_uv = faces.uv if material.picture is not None else None
    if faces.colors is None and corner_uv is None:
        used, triangles = used_vertices(corners, len(vertices.positions))
        colors, uv = (None if values is None else values[used] for values in (vertices.colors, vertices.uv))
    else:
        used = corners.reshape(-1)
        triangles = np.arange(len(used)).reshape(-1, 3)
        colors = None if vertices.colors is None else vertices.colors[used]
        if faces.colors is not None:
            colors = np.repeat(faces.colors[chosen], 3, axis=0)
        uv = None if vertices.uv is None else vertices.uv[used]
        if corner_uv is not None:
            uv = corner_uv[chosen].reshape(-1, 2)
    normals = vertices.normals
    # Corners that have become separate vertices keep the smooth normal of the vertex that they shared.
    if normals is None and len(used) == 3 * len(corners):
        normals = vertex_normals(vertices.positions, faces.corners)
    return Part(
        vertices.positions[used],
        triangles,
        material,
        None if normals is None else normals[used],
        colors,
        uv,
    )
