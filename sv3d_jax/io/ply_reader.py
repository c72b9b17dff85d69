"""The surfaces of a PLY file, with colours, normals and textures as scanners and MeshLab write them."""

import re
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sv3d_jax.colors import linear_from_srgb
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import vertex_normals
from sv3d_jax.geometry.polygons import triangulate
from sv3d_jax.io.surfaces import MAX_FACES, Material, Part, Source, used_vertices
from sv3d_jax.io.textures import decode_picture

MAX_HEADER_BYTES = 1 << 20
_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_COUNTS = {name for name, kind in _TYPES.items() if kind[0] != "f"}
_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_MOST_OF_REAL_COLORS = 2.0  # beyond, real numbers count up to 255
_UV = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"))
_FACE_LISTS = ("vertex_indices", "vertex_index")


def read_ply(data: bytes, source: Source) -> list[Part]:
    """The surfaces of a PLY file, one for each of its pictures, in its axes.

    Colours are display values; those of faces stand in for those of vertices, alpha is left out. Texture coordinates
    may be those of vertices or, as lists, of the corners of faces. Without normals surfaces are smooth. Pictures are
    those that comments name (`comment TextureFile NAME`), beside the file or below. Raises InputError for what is
    damaged or truncated, for more than 10 million faces, and for pictures that are missing or elsewhere.
    """
    header = _parsed_header(data)
    tables = _read_tables(data, header)
    if "vertex" not in tables:
        raise InputError("has no element vertex")
    vertices = _vertices(tables["vertex"])
    faces = _faces(tables, vertices.positions, source)
    has_uv = vertices.uv is not None or any(group.uv is not None for group in faces)
    pictures = _pictures(header, source) if has_uv else []
    return [part for group in faces for part in _parts(vertices, group, pictures, source)]


class _Property(NamedTuple):
    name: str
    kind: str  # of numpy, without byte order
    counts: str | None  # of a list's length; None: one number


class _Element(NamedTuple):
    name: str
    count: int
    properties: list[_Property]


class _Header(NamedTuple):
    order: str  # "<", ">", or "" for text
    elements: list[_Element]
    pictures: list[str]
    end: int  # where the data begin


class _Lists(NamedTuple):
    """Lists of different lengths, one after the other."""

    values: np.ndarray
    counts: np.ndarray


# Columns of an element, by name.
_Table = dict[str, np.ndarray | _Lists]


def _parsed_header(data: bytes) -> _Header:
    if not re.match(rb"ply[ \t]*[\r\n]", data):
        raise InputError("is not a PLY file: it does not begin with ply")
    end = re.compile(rb"[\r\n]end_header[ \t]*(\r\n|\r|\n|$)").search(data, 0, MAX_HEADER_BYTES)
    if end is None:
        raise InputError("is truncated: its header has no end")
    lines = data[: end.start()].decode("latin-1").splitlines()
    order, elements, pictures = None, [], []
    for line in lines[1:]:
        words = line.split()
        match words:
            case ["format", form, *_]:
                order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}.get(form)
            case ["comment", "TextureFile", _, *_]:
                pictures.append(line.split("TextureFile", 1)[1].strip())
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 19:
                if int(count) > len(data):  # each takes a byte at least
                    raise InputError(f"claims {count} elements of {name} in {len(data)} bytes")
                if name in (element.name for element in elements):
                    raise InputError(f"is damaged: its header has two elements {name[:80]}")
                elements.append(_Element(name, int(count), []))
            case ["property", *_, name] if elements and name in (p.name for p in elements[-1].properties):
                raise InputError(f"is damaged: its header has two properties {name[:80]} of one element")
            case ["property", "list", counts, kind, name] if (
                elements and counts in _COUNTS and kind in _TYPES
            ):
                elements[-1].properties.append(_Property(name, _TYPES[kind], _TYPES[counts]))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].properties.append(_Property(name, _TYPES[kind], None))
            case [] | ["comment", *_] | ["obj_info", *_]:
                pass
            case _:
                raise InputError(f"is damaged: its header says {line[:80]!r}")
    if order is None:
        raise InputError("is damaged: its header names no format that is known")
    return _Header(order, elements, pictures, end.end())


def _read_tables(data: bytes, header: _Header) -> dict[str, _Table]:
    """Columns of all elements, by name."""
    body = _Text(data[header.end :]) if not header.order else _Binary(data, header.end, header.order)
    return {element.name: body.table(element) for element in header.elements}


def _truncated(element: _Element) -> InputError:
    return InputError(f"is truncated: its {element.count} elements of {element.name} end beyond the file")


@dataclass
class _Binary:
    """Numbers at places of a file's bytes."""

    data: bytes
    place: int
    order: str

    def table(self, element: _Element) -> _Table:
        if not element.properties:
            return {}
        lengths = self._first_lengths(element)
        fields, names = [], []
        for index, item in enumerate(element.properties):
            if item.counts:
                fields.append((f"n{index}", self.order + item.counts))
            fields.append((f"v{index}", self.order + item.kind, *((lengths[index],) if item.counts else ())))
            names.append(item.name)
        kind = np.dtype(fields)
        if self.place + element.count * kind.itemsize <= len(self.data):
            rows = np.frombuffer(self.data, kind, element.count, self.place)
            lists = [i for i, item in enumerate(element.properties) if item.counts]
            if all((rows[f"n{index}"] == lengths[index]).all() for index in lists):
                self.place += rows.nbytes
                return {
                    item.name: _Lists(rows[f"v{i}"].reshape(-1), rows[f"n{i}"].astype(np.int64))
                    if item.counts
                    else rows[f"v{i}"]
                    for i, item in enumerate(element.properties)
                }
            return self._uneven(element)
        if not any(item.counts for item in element.properties):
            raise _truncated(element)
        return self._uneven(element)

    def _first_lengths(self, element: _Element) -> list[int]:
        """Lengths of the lists in the first row."""
        place, lengths = self.place, []
        for item in element.properties:
            length = 1
            if item.counts:
                size = np.dtype(item.counts).itemsize
                if not element.count or place + size > len(self.data):
                    lengths.append(0)
                    continue
                length = int(np.frombuffer(self.data, self.order + item.counts, 1, place)[0])
                place += size
                if not 0 <= length * np.dtype(item.kind).itemsize <= len(self.data):
                    raise InputError(f"is damaged: element {element.name} has a list of {length} numbers")
            place += length * np.dtype(item.kind).itemsize
            lengths.append(length)
        return lengths

    def _uneven(self, element: _Element) -> _Table:
        """Row by row, since lists have different lengths."""
        least = sum(np.dtype(item.counts or item.kind).itemsize for item in element.properties)
        if self.place + element.count * least > len(self.data):
            raise _truncated(element)
        sizes = [np.dtype(item.kind).itemsize for item in element.properties]
        counts = [np.dtype(self.order + item.counts) if item.counts else None for item in element.properties]
        begins = np.zeros((len(element.properties), element.count), np.int64)
        lengths = np.ones_like(begins)
        place, end = self.place, len(self.data)
        signed = [kind is not None and kind.kind == "i" for kind in counts]
        order = "little" if self.order == "<" else "big"
        for row in range(element.count):
            for column, kind in enumerate(counts):
                length = 1
                if kind is not None:
                    head = self.data[place : place + kind.itemsize]
                    place += kind.itemsize
                    length = int.from_bytes(head, order, signed=signed[column])
                    if length < 0:
                        raise InputError(f"is damaged: element {element.name} has a list of {length} numbers")
                    lengths[column, row] = length
                begins[column, row] = place
                place += length * sizes[column]
            if place > end:
                raise _truncated(element)
        self.place = place
        return {
            item.name: self._gathered(item, begins[column], lengths[column])
            for column, item in enumerate(element.properties)
        }

    def _gathered(self, item: _Property, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray | _Lists:
        kind = np.dtype(self.order + item.kind)
        places = np.repeat(begins - (np.cumsum(lengths) - lengths) * kind.itemsize, lengths)
        places += np.arange(len(places)) * kind.itemsize
        raw = np.frombuffer(self.data, np.uint8)
        values = np.stack([raw[places + byte] for byte in range(kind.itemsize)], axis=1)
        values = np.ascontiguousarray(values).view(kind).reshape(-1)
        return _Lists(values, lengths) if item.counts else values


class _Text:
    """Numbers of a text, in order."""

    def __init__(self, text: bytes):
        self.numbers = _numbers(text.decode("latin-1"))
        self.place = 0

    def table(self, element: _Element) -> _Table:
        width = len(element.properties)
        lists = [item for item in element.properties if item.counts]
        if not lists:
            rows = self._taken(element.count * width, element).reshape(element.count, width)
            return {p.name: _typed(rows[:, i], p.kind, element) for i, p in enumerate(element.properties)}
        if width == 1 and element.count:  # the usual faces, perhaps all of one length
            length = self._length(self.place, element)
            rows = self.numbers[self.place : self.place + element.count * (length + 1)]
            if len(rows) == element.count * (length + 1):
                rows = rows.reshape(element.count, length + 1)
                if (rows[:, 0] == length).all():
                    self.place += rows.size
                    values = _typed(rows[:, 1:].reshape(-1), lists[0].kind, element)
                    return {lists[0].name: _Lists(values, np.full(element.count, length, np.int64))}
        return self._uneven(element)

    def _uneven(self, element: _Element) -> _Table:
        if self.place + element.count * len(element.properties) > len(self.numbers):
            raise self._ended(element)
        begins = np.zeros((len(element.properties), element.count), np.int64)
        lengths = np.ones_like(begins)
        is_list = [item.counts is not None for item in element.properties]
        place = self.place
        for row in range(element.count):
            for column, listed in enumerate(is_list):
                length = 1
                if listed:
                    length = self._length(place, element)
                    place += 1
                    lengths[column, row] = length
                begins[column, row] = place
                place += length
        if place > len(self.numbers):
            raise self._ended(element)
        self.place = place
        table: _Table = {}
        for column, item in enumerate(element.properties):
            count = lengths[column]
            places = np.repeat(begins[column] - (np.cumsum(count) - count), count)
            values = _typed(self.numbers[places + np.arange(len(places))], item.kind, element)
            table[item.name] = _Lists(values, count) if item.counts else values
        return table

    def _length(self, place: int, element: _Element) -> int:
        if place >= len(self.numbers):
            raise self._ended(element)
        length = self.numbers[place]
        if not (0 <= length <= len(self.numbers) and length == int(length)):
            raise InputError(f"is damaged: element {element.name} has a list of {length:g} numbers")
        return int(length)

    def _taken(self, count: int, element: _Element) -> np.ndarray:
        if self.place + count > len(self.numbers):
            raise self._ended(element)
        self.place += count
        return self.numbers[self.place - count : self.place]

    def _ended(self, element: _Element) -> InputError:
        return InputError(
            f"is truncated, or holds what is no number: {len(self.numbers)} numbers are read,"
            f" {element.name} needs more"
        )


def _numbers(text: str) -> np.ndarray:
    """The numbers that a text begins with."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", DeprecationWarning
            )  # older versions stop at what is no number, and warn
            return np.fromstring(text, np.float64, sep=" ")
    except (ValueError, DeprecationWarning):
        pass
    numbers = []
    for word in text.split():
        try:
            numbers.append(float(word))
        except ValueError:
            break
    return np.array(numbers)


def _typed(values: np.ndarray, kind: str, element: _Element) -> np.ndarray:
    """Numbers of a text in the type that the header gives them."""
    if kind[0] == "f":
        return values
    limits = np.iinfo(kind)
    if not ((values >= limits.min) & (values <= limits.max)).all():
        raise InputError(f"is damaged: element {element.name} has numbers that {kind} does not hold")
    return values.astype(kind)


class _Vertices(NamedTuple):
    positions: np.ndarray  # float64, v 3
    normals: np.ndarray | None
    colors: np.ndarray | None  # linear, v 3
    uv: np.ndarray | None


class _Faces(NamedTuple):
    """Triangles, and what belongs to their corners."""

    corners: np.ndarray  # vertices, t 3
    colors: np.ndarray | None  # linear, t 3
    uv: np.ndarray | None  # of corners, t 3 2
    picture: np.ndarray | None  # number of its picture, t


def _vertices(table: _Table) -> _Vertices:
    positions = _columns(table, ("x", "y", "z"))
    if positions is None:
        raise InputError("is damaged: its vertices have no x, y and z")
    uv = next((found for names in _UV if (found := _columns(table, names)) is not None), None)
    return _Vertices(positions, _columns(table, ("nx", "ny", "nz")), _colors(table), uv)


def _faces(tables: dict[str, _Table], positions: np.ndarray, source: Source) -> list[_Faces]:
    """Triangles of polygons, and of strips."""
    groups = [_polygons(tables, positions, source), _Faces(_strips(tables, len(positions)), None, None, None)]
    return [group for group in groups if len(group.corners)]


def _polygons(tables: dict[str, _Table], positions: np.ndarray, source: Source) -> _Faces:
    table = tables.get("face", {})
    listed = next((table[name] for name in _FACE_LISTS if isinstance(table.get(name), _Lists)), None)
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
        None if number is None or isinstance(number, _Lists) else number.astype(np.int64)[polygon],
    )


def _checked_indices(values: np.ndarray, count: int) -> np.ndarray:
    if values.dtype.kind not in "iu":
        raise InputError("is damaged: its faces name vertices by numbers that are not whole")
    indices = values.astype(np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < count:
        wrong = indices[(indices < 0) | (indices >= count)][0]
        raise InputError(f"is damaged: a face names vertex {wrong} of {count}")
    return indices


def _corner_uv(table: _Table, listed: _Lists, triangles, polygon, source: Source) -> np.ndarray | None:
    """Texture coordinates of corners (t 3 2): two numbers for each corner of a face, or none for a face."""
    uv = table.get("texcoord")
    if not isinstance(uv, _Lists) or len(uv.values) < 2:
        return None
    has_uv = uv.counts == 2 * listed.counts
    if not (has_uv | (uv.counts == 0)).all():
        source.remark("texture coordinates of faces that do not fit their corners are left out")
    # Corners are counted over all faces; their coordinates over those that have some.
    first, first_uv = np.cumsum(listed.counts) - listed.counts, np.cumsum(uv.counts) - uv.counts
    local = triangles - first[polygon][:, None]
    place = np.where(has_uv[polygon][:, None], first_uv[polygon][:, None] + 2 * local, 0)
    found = np.stack([uv.values[place], uv.values[place + 1]], axis=-1).astype(np.float64)
    return np.where(has_uv[polygon][:, None, None], found, 0.0)


def _strips(tables: dict[str, _Table], count: int) -> np.ndarray:
    """Triangles (t 3) of strips: -1 begins a new one, every second triangle of each turns the other way."""
    table = tables.get("tristrips", {})
    listed = next((table[name] for name in _FACE_LISTS if isinstance(table.get(name), _Lists)), None)
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


def _columns(table: _Table, names: tuple[str, ...]) -> np.ndarray | None:
    """Numbers of these names side by side (n k) as float64, None if one is missing."""
    found = [table.get(name) for name in names]
    if any(column is None or isinstance(column, _Lists) for column in found):
        return None
    return np.stack(found, axis=1).astype(np.float64)


def _colors(table: _Table) -> np.ndarray | None:
    """Colours (n 3) in linear light: real numbers in [0, 1], 16 bits without a sign, or else 8 bits in any type."""
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


def _pictures(header: _Header, source: Source) -> list[np.ndarray]:
    """The pictures that comments name."""
    count = len(header.pictures)
    return [decode_picture(source.beside(name), name[:200], source, count) for name in header.pictures]


def _parts(
    vertices: _Vertices, faces: _Faces, pictures: list[np.ndarray | None], source: Source
) -> list[Part]:
    """A part for each picture that faces show; corners that differ from face to face get vertices of their own."""
    number = np.zeros(len(faces.corners), np.int64) if faces.picture is None else faces.picture
    shown = (number >= 0) & (number < len(pictures))
    number = np.where(shown, number, -1)
    if vertices.colors is None and faces.colors is None and not shown.all():
        source.remark("has no colour: white is taken")
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
    if normals is None and len(used) == 3 * len(corners):  # copies are shaded smooth as the vertex was
        normals = vertex_normals(vertices.positions, faces.corners)
    return Part(
        vertices.positions[used],
        triangles,
        material,
        None if normals is None else normals[used],
        colors,
        uv,
    )
