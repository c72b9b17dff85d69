"""Parsing of PLY files: the header, and text or binary data, into columns of numbers for each element."""

import re
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.io.surfaces import MAX_FACES, MAX_VERTICES

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


class _Property(NamedTuple):
    name: str
    kind: str  # numpy type, without byte order
    counts: str | None  # numpy type of a list's length; None if the property is a single number


class _Element(NamedTuple):
    name: str
    count: int
    properties: list[_Property]


class Header(NamedTuple):
    """The header of a PLY file."""

    order: str  # "<", ">", or "" for text
    elements: list[_Element]
    pictures: list[str]
    end: int  # offset of the data


class Lists(NamedTuple):
    """Lists of varying length, concatenated."""

    values: np.ndarray
    counts: np.ndarray


# The properties of an element, by name.
Table = dict[str, np.ndarray | Lists]


def parse_header(data: bytes) -> Header:
    """The header at the beginning of a PLY file. Raises InputError if it is damaged or too long."""
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
                if int(count) > len(data):  # each takes at least one byte
                    raise InputError(f"claims {count} elements of {name} in {len(data)} bytes")
                if int(count) > (most := MAX_FACES if name == "face" else MAX_VERTICES):
                    raise InputError(
                        f"has {count} elements of {name}, more than {most}", hint="simplify the mesh"
                    )
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
        raise InputError("is damaged: its header has no known format")
    return Header(order, elements, pictures, end.end())


def read_tables(data: bytes, header: Header) -> dict[str, Table]:
    """The properties of all elements, by the name of the element."""
    body = _Text(data[header.end :]) if not header.order else _Binary(data, header.end, header.order)
    return {element.name: body.table(element) for element in header.elements}


def _truncated(element: _Element) -> InputError:
    return InputError(f"is truncated: its {element.count} elements of {element.name} end beyond the file")


@dataclass
class _Binary:
    """Reads binary elements one after the other."""

    data: bytes
    place: int
    order: str

    def table(self, element: _Element) -> Table:
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
                    item.name: Lists(rows[f"v{i}"].reshape(-1), rows[f"n{i}"].astype(np.int64))
                    if item.counts
                    else rows[f"v{i}"]
                    for i, item in enumerate(element.properties)
                }
            return self._uneven(element)
        if not any(item.counts for item in element.properties):
            raise _truncated(element)
        return self._uneven(element)

    def _first_lengths(self, element: _Element) -> list[int]:
        """Lengths of the lists in the first row, 1 for single numbers."""
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

    def _uneven(self, element: _Element) -> Table:
        """Read an element row by row, because its lists have different lengths."""
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

    def _gathered(self, item: _Property, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray | Lists:
        kind = np.dtype(self.order + item.kind)
        places = np.repeat(begins - (np.cumsum(lengths) - lengths) * kind.itemsize, lengths)
        places += np.arange(len(places)) * kind.itemsize
        raw = np.frombuffer(self.data, np.uint8)
        values = np.stack([raw[places + byte] for byte in range(kind.itemsize)], axis=1)
        values = np.ascontiguousarray(values).view(kind).reshape(-1)
        return Lists(values, lengths) if item.counts else values


class _Text:
    """Reads text elements one after the other."""

    def __init__(self, text: bytes):
        self.numbers = _numbers(text.decode("latin-1"))
        self.place = 0

    def table(self, element: _Element) -> Table:
        width = len(element.properties)
        lists = [item for item in element.properties if item.counts]
        if not lists:
            rows = self._taken(element.count * width, element).reshape(element.count, width)
            return {p.name: _typed(rows[:, i], p.kind, element) for i, p in enumerate(element.properties)}
        if width == 1 and element.count:  # usual faces: try first whether all lists have the same length
            length = self._length(self.place, element)
            rows = self.numbers[self.place : self.place + element.count * (length + 1)]
            if len(rows) == element.count * (length + 1):
                rows = rows.reshape(element.count, length + 1)
                if (rows[:, 0] == length).all():
                    self.place += rows.size
                    values = _typed(rows[:, 1:].reshape(-1), lists[0].kind, element)
                    return {lists[0].name: Lists(values, np.full(element.count, length, np.int64))}
        return self._uneven(element)

    def _uneven(self, element: _Element) -> Table:
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
        table: Table = {}
        for column, item in enumerate(element.properties):
            count = lengths[column]
            places = np.repeat(begins[column] - (np.cumsum(count) - count), count)
            values = _typed(self.numbers[places + np.arange(len(places))], item.kind, element)
            table[item.name] = Lists(values, count) if item.counts else values
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
            f"is truncated, or contains something that is no number: {len(self.numbers)} numbers are read,"
            f" {element.name} needs more"
        )


def _numbers(text: str) -> np.ndarray:
    """The numbers of a text, up to the first word that is no number."""
    try:
        with warnings.catch_warnings():
            # Older versions stop at the first word that is not a number, and warn.
            warnings.simplefilter("error", DeprecationWarning)
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
    """Numbers converted to the type that the header states."""
    if kind[0] == "f":
        return values
    limits = np.iinfo(kind)
    if not ((values >= limits.min) & (values <= limits.max)).all():
        raise InputError(f"is damaged: element {element.name} has numbers that {kind} does not hold")
    return values.astype(kind)
