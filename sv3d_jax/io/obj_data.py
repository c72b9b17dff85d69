"""Parsing of OBJ files into arrays. For speed, numbers are parsed a chunk of lines at a time, not one by one."""

import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.io.mtl import NUMBER, decoded, shown, unquoted
from sv3d_jax.io.surfaces import MAX_FACES, MAX_VERTICES, Source

MAX_NAMES = 10_000  # of material libraries, and of materials

_CHUNK_BYTES = 1 << 22

_NEWLINE, _JOINT, _SPACE, _HASH, _SLASH = 10, 1, 32, ord("#"), ord("/")

# Control characters become spaces, except newlines. _JOINT marks the end of a line that ends in a backslash.
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

# Statements of free-form curves and surfaces, and statements that affect neither shape nor colour.
_IGNORED = set(
    "vp cstype deg bmat step parm trim hole scrv sp end con mg bevel c_interp d_interp lod maplib usemap"
    " shadow_obj trace_obj ctech stech g o".split()
)


class ObjData(NamedTuple):
    """The content of an OBJ file."""

    vertices: np.ndarray  # v 3
    colors: np.ndarray | None  # v 3, sRGB
    uv: np.ndarray  # n 2
    normals: np.ndarray  # n 3
    corners: np.ndarray  # c 3: vertex, texture coordinate, normal; -1 where there is none
    counts: np.ndarray  # number of corners of each face
    material: np.ndarray  # of each face: index into material_names, -1 without a material
    group: np.ndarray  # of each face: its smoothing group, 0 without one
    material_names: list[str]
    libraries: list[str]  # arguments of the mtllib lines


def parse_obj(data: bytes, source: Source) -> ObjData:
    """The content of an OBJ file as arrays.

    Statements that are skipped are recorded as remarks of the source. Raises InputError, which names the line, for
    damaged lines, and for more than 10 million faces.
    """
    parser = _Parser(source)
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for chunk in _chunks(data):
        parser.take(chunk)
    return parser.result()


def _chunks(data: bytes) -> Iterator[bytes]:
    """Chunks of some megabytes of whole lines; lines joined by a backslash stay together."""
    start = 0
    while start < len(data):
        end = start + _CHUNK_BYTES
        while True:
            end = data.find(b"\n", end) + 1 or len(data)
            if end == len(data) or data[end - 2 : end - 1] != b"\\":
                break
        yield data[start:end]
        start = end


class _Words(NamedTuple):
    """Positions of the words in a chunk of lines."""

    text: np.ndarray  # uint8
    begin: np.ndarray  # where each word begins
    end: np.ndarray
    line: np.ndarray  # index of each word's line in the chunk; lines joined by a backslash count as one
    number: np.ndarray  # line number in the file, for messages


class _Parser:
    """The state of parsing: everything read so far."""

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
        """Parse a chunk of lines."""
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
        """Handle all statements but v, vt, vn and f; returns material and smoothing group (n 2) at each line."""
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
                self.source.remark(
                    f"unknown statements are skipped, the first in line {number}: {shown(line)[:40]}"
                )
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
        """Append the colours of vertices, NaN for vertices without."""
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
                        number[at],
                        f"names {name} {corners[at, which]} relative to its line, but fewer come before it",
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

    def result(self) -> ObjData:
        """The content of the file, after its last chunk."""
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
        colors = self._all_colors()
        return ObjData(
            vertices,
            colors,
            uv,
            normals,
            corners,
            counts,
            material,
            group,
            [*self.materials],
            [*self.libraries],
        )

    def _all_colors(self) -> np.ndarray | None:
        """Colours of all vertices (v 3), white for vertices without; None if no vertex has one."""
        if not self.has_colors:
            return None
        colors = np.concatenate(self.colors)
        given = np.isfinite(colors)
        if colors[given].max(initial=0.0) > 2.0:
            self.source.remark("colours of vertices are taken as 0 to 255")
            colors /= 255.0
        return np.where(given, np.clip(colors, 0.0, 1.0), 1.0)


def _joined(text: bytes) -> bytes:
    """Join lines that end in a backslash with the next line; comments are not continued."""
    text = re.sub(rb"(?m)^( *#[^\n]*?)\\+$", rb"\1", text)
    return text.replace(b"\\\n", b" \x01")


def _words(text: bytes, line: int) -> _Words:
    """The words of lines, without comments; `line` is the number of the first line in the file."""
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
    """Begin and end of each run of True, alternating."""
    padded = np.zeros(len(is_letter) + 2, bool)
    padded[1:-1] = is_letter
    return np.flatnonzero(padded[1:] != padded[:-1])


def _kinds(words: _Words, first: np.ndarray) -> np.ndarray:
    """The kind of each line (_V, _VT, ...), from its first word."""
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
    """The selected words as numbers. Raises InputError for words that are none."""
    begin, end = words.begin[wanted], words.end[wanted]
    text = _only(words.text, begin, end)
    values = _parsed(text, dtype, len(begin))
    if values is None:
        raise _not_a_number(words, wanted)
    return values


def _parsed(text: np.ndarray, dtype: type, count: int) -> np.ndarray | None:
    """The numbers in a text; None unless it consists of exactly `count` numbers."""
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
    """The text with everything but the selected words replaced by spaces."""
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
    """Indices of the corners of faces (int64, n 3), as in the file, 0 where there is none; and their line numbers.

    A corner is written as v, v/vt, v/vt/vn or v//vn.
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
        corners[corner, place] = values  # pyright: ignore[reportCallIssue]
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
