"""OBJ files as surfaces: numbers are parsed a chunk of lines at a time, never one by one."""

import posixpath
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sv3d_jax.colors import linear_from_srgb
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.polygons import triangulate
from sv3d_jax.io.mtl import DEFAULT_MATERIAL, NUMBER, Libraries, MtlMaterial, decoded, shown, unquoted
from sv3d_jax.io.surfaces import MAX_FACES, Part, Source

MAX_VERTICES = 3 * MAX_FACES
MAX_NAMES = 10_000  # of libraries, and of materials
_CHUNK_BYTES = 1 << 22
MAX_LIBRARY_LINE = 4096  # letters
_NEWLINE, _JOINT, _SPACE, _HASH, _SLASH = 10, 1, 32, ord("#"), ord("/")
# All control characters but the newline are spaces; _JOINT then stands for the end of a line that goes on.
_BLANKS = bytes(byte if byte >= _SPACE or byte == _NEWLINE else _SPACE for byte in range(256))
_KINDS = (b"v", b"vt", b"vn", b"f")
_V, _VT, _VN, _F, _SKIPPED, _OTHER = range(6)
_NAMES = ("vertex", "texture coordinate", "normal")
_NOT_DRAWN = {
    "l": "lines are",
    "p": "points are",
    "curv": "curves are",
    "curv2": "curves are",
    "surf": "surfaces of control points are",
}
# Statements of curves and surfaces, and those that change nothing of shape and colour.
_IGNORED = set(
    "vp cstype deg bmat step parm trim hole scrv sp end con mg bevel c_interp d_interp lod maplib usemap"
    " shadow_obj trace_obj ctech stech g o".split()
)


def read_obj(data: bytes, source: Source) -> list[Part]:
    """The surfaces of an OBJ file, one for each material, in its axes; colours of vertices are display values there.

    A corner with a normal (vn) has it; one in a smoothing group has the mean of the group's faces around its vertex,
    weighted by area; others have their face's. Colours of materials: `Libraries`. What is missing beside the file, or
    is not drawn, is remarked. Raises InputError for lines that are damaged, by their number, for more than 10 million
    faces and for materials and pictures outside of the file's folder.
    """
    reader = _Reader(source)
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for chunk in _chunks(data):
        reader.take(chunk)
    return _parts(reader.rows(), reader, source)


def _chunks(data: bytes) -> Iterator[bytes]:
    """Whole lines of some megabytes; a line that goes on is not parted."""
    start = 0
    while start < len(data):
        end = start + _CHUNK_BYTES
        while True:
            end = data.find(b"\n", end) + 1 or len(data)
            if end == len(data) or data[end - 2 : end - 1] != b"\\":
                break
        yield data[start:end]
        start = end


class _Rows(NamedTuple):
    """A file in arrays."""

    vertices: np.ndarray  # v 3
    colors: np.ndarray | None  # v 3, display values
    uv: np.ndarray  # n 2
    normals: np.ndarray  # n 3
    corners: np.ndarray  # c 3: vertex, texture coordinate, normal; -1 where there is none
    counts: np.ndarray  # corners of each face
    material: np.ndarray  # of each face: index of its name, -1 without
    group: np.ndarray  # of each face: its smoothing group, 0 without


class _Words(NamedTuple):
    """The words of a chunk of lines."""

    text: np.ndarray  # uint8
    begin: np.ndarray  # where each word begins
    end: np.ndarray
    line: np.ndarray  # the line of each word, from 0; a line that goes on is one
    number: np.ndarray  # the number of each word's line in the file


class _Reader:
    """What was read of a file so far."""

    def __init__(self, source: Source):
        self.source = source
        self.libraries: dict[str, None] = {}
        self.materials: dict[str, int] = {}
        self.line = 1  # the number of the next line
        self.material, self.group = -1, 0
        self.groups: dict[str, int] = {}
        self.count = [0, 0, 0]  # of vertices, texture coordinates, normals
        self.triangles = 0
        self.values: list[list[np.ndarray]] = [[], [], []]
        self.colors: list[np.ndarray] = []
        self.has_colors, self.has_foreign = False, False
        self.faces: list[tuple[np.ndarray, ...]] = []

    def take(self, chunk: bytes) -> None:
        """Read the lines of a chunk."""
        text = chunk.translate(_BLANKS)
        if b"\\\n" in text:
            text = _joined(text)
        words = _words(text, self.line)
        self.line += text.count(b"\n") + text.count(b"\x01")
        if not len(words.begin):
            return
        first = np.flatnonzero(np.diff(words.line, prepend=-1))
        size = np.diff(first, append=len(words.begin))  # words of each line
        kind = _kinds(words, first)
        before = [np.cumsum(kind == which) - (kind == which) + self.count[which] for which in range(3)]
        states = self._statements(text, words, first, kind)
        kind_of_word = np.repeat(kind, size)
        kind_of_word[first] = _SKIPPED
        self._take_values(words, first, size - 1, kind, kind_of_word)
        self._take_faces(words, first, size - 1, kind, kind_of_word == _F, before, states)

    def _statements(self, text: bytes, words: _Words, first: np.ndarray, kind: np.ndarray) -> np.ndarray:
        """Material and smoothing group (n 2) at each line of the chunk."""
        at, states = [0], [(self.material, self.group)]
        for row in np.flatnonzero(kind == _OTHER):
            begin, number = int(words.begin[first[row]]), int(words.number[first[row]])
            end = text.find(b"\n", begin)
            line = decoded(text[begin : len(text) if end < 0 else end].replace(b"\x01", b" ")).strip()
            keyword, _, rest = line.partition(" ")
            rest = rest.strip()
            if keyword == "usemtl":
                self.material = self.materials.setdefault(unquoted(rest), len(self.materials))
            elif keyword == "s":
                rest = rest.split(" ")[0].lower()
                self.group = (
                    0 if rest in ("off", "0", "") else self.groups.setdefault(rest, len(self.groups) + 1)
                )
            elif keyword == "mtllib":
                self.libraries[rest] = None
            elif keyword in _NOT_DRAWN:
                self.source.remark(f"{_NOT_DRAWN[keyword]} not drawn")
            elif keyword not in _IGNORED and not self.has_foreign:
                self.has_foreign = True
                self.source.remark(f"what is not OBJ is skipped, in line {number} first: {shown(line)[:40]}")
            if max(len(self.materials), len(self.libraries)) > MAX_NAMES:
                raise InputError(f"names more than {MAX_NAMES} materials or libraries")
            if (self.material, self.group) != states[-1]:
                at.append(row)
                states.append((self.material, self.group))
        return np.repeat(np.array(states), np.diff(at, append=len(first)), axis=0)

    def _take_values(self, words, first, size, kind, kind_of_word) -> None:
        wanted = kind_of_word <= _VN
        if not wanted.any():
            return
        values = _numbers(words, wanted, np.float64)
        rows = np.flatnonzero(kind <= _VN)
        start = np.cumsum(size[rows]) - size[rows]
        for which, (least, name) in enumerate(zip((3, 1, 3), _NAMES, strict=True)):
            of_kind = kind[rows] == which
            if not of_kind.any():
                continue
            length, begin = size[rows][of_kind], start[of_kind]
            if length.min() < least:
                number = words.number[first[rows[of_kind][np.argmax(length < least)]]]
                raise _damaged(number, f"has too few numbers for a {name}")
            self.count[which] += len(length)
            if self.count[which] > MAX_VERTICES:
                raise InputError(f"has more than {MAX_VERTICES} of {name}", hint="simplify the mesh")
            if which == _VT:
                taken = np.stack([values[begin], values[begin + (length > 1)]], axis=1)
                taken[length < 2, 1] = 0.0
            else:
                taken = values[begin[:, None] + np.arange(3)]
            self.values[which].append(taken)
            if which == _V:
                self._take_colors(values, begin, length)

    def _take_colors(self, values: np.ndarray, begin: np.ndarray, length: np.ndarray) -> None:
        """Colours of vertices; for those without, not a number in the place of each channel."""
        has_color = length >= 6
        self.has_colors |= bool(has_color.any())
        colors = np.broadcast_to(np.float32(np.nan), (len(begin), 3))
        if has_color.any():
            colors = values[np.where(has_color, begin + 3, 0)[:, None] + np.arange(3)].astype(np.float32)
            colors[~has_color] = np.nan
        self.colors.append(colors)

    def _take_faces(self, words, first, size, kind, wanted, before, states) -> None:
        rows = np.flatnonzero(kind == _F)
        if not len(rows):
            return
        size = size[rows]
        if (size < 3).any():
            number = words.number[first[rows[np.argmax(size < 3)]]]
            self.source.remark(f"faces of fewer than three corners are skipped, in line {number} first")
        self.triangles += int(np.maximum(size - 2, 0).sum())
        if self.triangles > MAX_FACES:
            raise InputError(f"has more than {MAX_FACES} faces", hint="simplify the mesh")
        corners, number = _corners(words, wanted)
        row_of_corner = np.repeat(rows, size)
        for which, name in enumerate(_NAMES):
            column = corners[:, which]
            relative = column < 0
            if relative.any():
                column = np.where(relative, column + before[which][row_of_corner] + 1, column)
                if (bad := relative & (column < 1)).any():
                    at = np.argmax(bad)
                    raise _damaged(
                        number[at], f"names {name} {corners[at, which]} of those before it, which are fewer"
                    )
            corners[:, which] = np.minimum(column - 1, np.iinfo(np.int32).max)
        self.faces.append(
            (
                corners.astype(np.int32),
                size,
                states[rows, 0].astype(np.int32),
                states[rows, 1].astype(np.int32),
                words.number[first[rows]],
            )
        )

    def rows(self) -> _Rows:
        """All that was read, when nothing is left."""
        widths = (3, 2, 3)
        vertices, uv, normals = (
            np.concatenate(values) if values else np.zeros((0, width))
            for values, width in zip(self.values, widths, strict=True)
        )
        self.values = [[], [], []]
        if not self.faces:
            raise InputError("has no faces", hint="point clouds and lines cannot be drawn")
        corners, counts, material, group, number = (
            np.concatenate(arrays) for arrays in zip(*self.faces, strict=True)
        )
        self.faces = []
        for which, name in enumerate(_NAMES):
            if corners[:, which].max(initial=-1) >= self.count[which]:
                at = int(np.argmax(corners[:, which] >= self.count[which]))
                line = number[np.searchsorted(np.cumsum(counts), at, side="right")]
                raise _damaged(line, f"names {name} {int(corners[at, which]) + 1} of {self.count[which]}")
        return _Rows(vertices, self._all_colors(), uv, normals, corners, counts, material, group)

    def _all_colors(self) -> np.ndarray | None:
        """Colours of all vertices (v 3), white where there is none; None if no vertex has one."""
        if not self.has_colors:
            return None
        colors = np.concatenate(self.colors)
        given = np.isfinite(colors)
        if colors[given].max(initial=0.0) > 2.0:
            self.source.remark("colours of vertices are taken as 0 to 255")
            colors /= 255.0
        return np.where(given, np.clip(colors, 0.0, 1.0), 1.0)


def _joined(text: bytes) -> bytes:
    """Lines that end in a backslash with the next one; comments never go on."""
    text = re.sub(rb"(?m)^( *#[^\n]*?)\\+$", rb"\1", text)
    return text.replace(b"\\\n", b" \x01")


def _words(text: bytes, line: int) -> _Words:
    """The words of lines, the first of which has that number, without comments."""
    letters = np.frombuffer(text, np.uint8)
    edges = _edges(letters > _SPACE)
    begin, end = edges[::2], edges[1::2]
    of_word = np.searchsorted(np.flatnonzero(letters == _NEWLINE), begin)
    if b"\x01" in text:
        number = np.searchsorted(np.flatnonzero((letters == _NEWLINE) | (letters == _JOINT)), begin) + line
    else:
        number = of_word + line
    if b"#" in text:
        is_comment = np.maximum.accumulate(np.where(letters[begin] == _HASH, of_word, -1)) == of_word
        begin, end, of_word, number = (a[~is_comment] for a in (begin, end, of_word, number))
    return _Words(letters, begin, end, of_word, number)


def _edges(is_letter: np.ndarray) -> np.ndarray:
    """Where runs of letters begin and end, in turns."""
    padded = np.zeros(len(is_letter) + 2, bool)
    padded[1:-1] = is_letter
    return np.flatnonzero(padded[1:] != padded[:-1])


def _kinds(words: _Words, first: np.ndarray) -> np.ndarray:
    """What each line is, by its first word."""
    begin, length = words.begin[first], words.end[first] - words.begin[first]
    one = words.text[begin]
    two = np.where(length == 2, words.text[np.minimum(begin + 1, len(words.text) - 1)], 0)
    kind = np.full(len(first), _OTHER)
    for which, name in enumerate(_KINDS):
        second = name[1] if len(name) == 2 else 0
        kind[(length == len(name)) & (one == name[0]) & (two == second)] = which
    kind[(length == 1) & ((one == ord("g")) | (one == ord("o")))] = _SKIPPED
    return kind


def _numbers(words: _Words, wanted: np.ndarray, dtype: type) -> np.ndarray:
    """The wanted words as numbers."""
    begin, end = words.begin[wanted], words.end[wanted]
    text = _only(words.text, begin, end)
    values = _parsed(text, dtype, len(begin))
    if values is None:
        raise _not_a_number(words, wanted)
    return values


def _parsed(text: np.ndarray, dtype: type, count: int) -> np.ndarray | None:
    """All numbers of a text; None if they are not so many, or something else is among them."""
    if not count:
        return np.zeros(0, dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = np.fromstring(text.tobytes(), dtype, sep=" ")
    except (ValueError, DeprecationWarning):
        return None
    return values if len(values) == count else None


def _only(text: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """A text with spaces in the place of all other words."""
    steps = np.zeros(len(text) + 1, np.int8)
    steps[begin] = 1
    steps[end] = -1
    return np.where(np.cumsum(steps[:-1], dtype=np.int8).view(bool), text, np.uint8(_SPACE))


def _not_a_number(words: _Words, wanted: np.ndarray) -> InputError:
    for at in np.flatnonzero(wanted):
        word = decoded(words.text[words.begin[at] : words.end[at]].tobytes())
        if not NUMBER.match(word) and word.lower().lstrip("+-") not in ("nan", "inf", "infinity"):
            return _damaged(words.number[at], f"has {shown(word)[:40]} where a number is needed")
    return _damaged(words.number[np.argmax(wanted)], "or one after it has a number that cannot be read")


def _corners(words: _Words, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of faces as the file counts them (int64, n 3), 0 where nothing is said, and the number of their line.

    A corner is v, v/vt, v/vt/vn or v//vn.
    """
    begin, end, number = words.begin[wanted], words.end[wanted], words.number[wanted]
    text = _only(words.text, begin, end)
    is_slash = text == _SLASH
    slashes = np.cumsum(is_slash, dtype=np.int32)
    text[is_slash] = _SPACE
    part = _edges(text > _SPACE)[::2]
    corner = np.searchsorted(begin, part, side="right") - 1
    place = slashes[part] - (slashes - is_slash)[begin[corner]]
    values = _parsed(text, np.int64, len(part))
    corners = np.zeros((len(begin), 3), np.int64)
    is_right = values is not None and place.max(initial=0) <= 2 and (values != 0).all()
    if is_right:
        corners[corner, place] = values
        is_right = (corners[:, 0] != 0).all()
    if is_right:
        return corners, number
    for row in range(len(begin)):
        word = decoded(words.text[begin[row] : end[row]].tobytes())
        if not re.match(r"[+-]?\d+(/([+-]?\d+)?){0,2}\Z", word) or re.search(r"(?<!\d)0+(?!\d)", word):
            raise _damaged(number[row], f"has {shown(word)[:40]} where the corner of a face is needed")
    raise _damaged(number[0], "or one after it has a face that cannot be read")


def _damaged(line: int, what: str) -> InputError:
    return InputError(f"is damaged: line {int(line)} {what}")


def _parts(rows: _Rows, reader: _Reader, source: Source) -> list[Part]:
    triangles, polygon = triangulate(rows.vertices, rows.corners[:, 0], rows.counts, source.remark)
    normals, normal_of_corner = _normals(rows, triangles, polygon)
    materials = _materials(reader, source)
    different = {id(mtl): mtl for mtl in materials}
    rank = {key: index for index, key in enumerate(different)}
    index_of_name = np.array([rank[id(mtl)] for mtl in materials])
    of_triangle = index_of_name[rows.material[polygon]]  # the last one is that of faces without a material
    order = np.argsort(of_triangle, kind="stable")
    sizes = np.bincount(of_triangle, minlength=len(different))
    colors = None if rows.colors is None else linear_from_srgb(rows.colors)
    parts, uncolored, start = [], 0, 0
    for mtl, size in zip(different.values(), sizes.tolist(), strict=True):
        chosen = triangles[order[start : start + size]]
        start += size
        if not size:
            continue
        uncolored += size if colors is None and not mtl.has_color else 0
        parts.append(_part(rows, mtl, chosen, normals, normal_of_corner, colors, source))
    if uncolored:
        share = "has" if uncolored == len(triangles) else f"{uncolored} of its triangles have"
        source.remark(f"{share} no colour: white is taken")
    return parts


def _part(rows, mtl: MtlMaterial, triangles, normals, normal_of_corner, colors, source: Source) -> Part:
    """The triangles (t 3, of corner numbers) of one material, with as few vertices as tell their corners apart."""
    numbers = triangles.reshape(-1)
    vertex, texture, normal = rows.corners[numbers, 0], rows.corners[numbers, 1], normal_of_corner[numbers]
    is_textured = mtl.material.picture is not None
    kept, faces = _different([vertex, normal, *([texture] if is_textured else [])])
    uv = None
    if is_textured:
        if (texture < 0).all():
            source.remark("a surface with a picture has no texture coordinates: zeros are taken")
        has_uv = (texture[kept] >= 0)[:, None]
        uv = np.zeros((len(kept), 2))
        np.copyto(uv, rows.uv[texture[kept]] if len(rows.uv) else 0.0, where=has_uv)
        uv = uv * mtl.scale + mtl.offset
    return Part(
        rows.vertices[vertex[kept]],
        faces.reshape(-1, 3),
        mtl.material,
        normals[normal[kept]],
        None if colors is None else colors[vertex[kept]],
        uv,
    )


def _different(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Where the different rows of columns first are, and which of them each row is."""
    key, done = columns[0].astype(np.int64), [columns[0]]
    for column in columns[1:]:
        if (column == column[0]).all() or any(np.array_equal(column, other) for other in done):
            continue
        done.append(column)
        _, key = np.unique(key, return_inverse=True)
        key = key.reshape(-1) * (int(column.max()) + 2) + column + 1
    _, kept, place = np.unique(key, return_index=True, return_inverse=True)
    return kept, place.reshape(-1)


def _normals(rows: _Rows, triangles: np.ndarray, polygon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different normals (n 3), the last one zeros, and which of them each corner has; -1 where its face's."""
    table, place = [rows.normals], rows.corners[:, 2].astype(np.int64)
    is_grouped = np.repeat(rows.group > 0, rows.counts)
    is_smooth = is_grouped & (place < 0)
    if is_smooth.any():
        # A face counts at each of its corners alike, however it is cut, and also where it has normals of its own.
        corner = np.flatnonzero(is_grouped)
        groups = int(rows.group.max()) + 1
        face = np.repeat(np.arange(len(rows.counts)), rows.counts)[corner]
        key = rows.corners[corner, 0].astype(np.int64)
        if groups > 2:
            _, key = np.unique(key * groups + rows.group[face], return_inverse=True)
            key = key.reshape(-1)
        areas = _area_vectors(rows, triangles, polygon)
        table.append(np.stack([np.bincount(key, axis[face]) for axis in areas], axis=1))
        smooth = is_smooth[corner]
        place[corner[smooth]] = len(rows.normals) + key[smooth]
    normals = np.concatenate([*table, np.zeros((1, 3))])
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = normals / lengths
    normals[~np.isfinite(normals).all(axis=1)] = 0.0
    return normals, place


def _area_vectors(rows: _Rows, triangles: np.ndarray, polygon: np.ndarray) -> list[np.ndarray]:
    """Components x, y, z of the normal times twice the area of each face."""
    with np.errstate(all="ignore"):
        a, b, c = (rows.vertices[rows.corners[corner, 0]].T for corner in triangles.T)
        u, v = b - a, c - a
        areas = [u[i - 2] * v[i - 1] - u[i - 1] * v[i - 2] for i in range(3)]
    return [np.bincount(polygon, np.where(np.isfinite(axis), axis, 0.0), len(rows.counts)) for axis in areas]


def _materials(reader: _Reader, source: Source) -> list[MtlMaterial]:
    """The material of each name in the file, then the default material of faces that name none."""
    libraries = Libraries(source)
    for line in reader.libraries:
        for name in _library_names(line, libraries):
            if not libraries.read(name):
                source.remark(f"{shown(name)} is missing: its materials are not read")
    if not all(libraries.knows(name) for name in reader.materials):
        libraries.read(posixpath.splitext(source.path.name)[0] + ".mtl")  # as Blender does
    materials = [libraries.material(name) for name in reader.materials]
    libraries.remark()
    return [*materials, DEFAULT_MATERIAL]


def _library_names(line: str, libraries: Libraries) -> list[str]:
    """The names in a mtllib line: all of it if there is such a file, else what ends in .mtl, else its words."""
    if len(line) > MAX_LIBRARY_LINE:
        raise InputError(f"is damaged: a mtllib line has {len(line)} letters")
    whole = unquoted(line)
    if libraries.read(whole):
        return [whole]
    names = [unquoted(name) for name in re.findall(r'"[^"]+"|\S[^"]*?\.mtl(?=\s|$)', line, re.IGNORECASE)]
    return names or line.split()
