"""The data of a glTF document: objects, accessors and images, with all indices and sizes checked (glTF 2.0, 3.6)."""

import base64
import binascii
import math
import reprlib
import struct
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.io.documents import parse_json
from sv3d_jax.io.surfaces import MAX_FACES, MAX_FILE_BYTES, Source
from sv3d_jax.io.textures import decode_picture

_TYPES = {
    5120: np.dtype("<i1"),
    5121: np.dtype("<u1"),
    5122: np.dtype("<i2"),
    5123: np.dtype("<u2"),
    5125: np.dtype("<u4"),
    5126: np.dtype("<f4"),
}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
# Numbers in all accessors together that are copied when they are read, because they are normalized or sparse; others
# are read where they lie. Twenty for each of ten million vertices: 800 MB.
MAX_COPIED = 20 * MAX_FACES
MAX_STRIDE = 252  # bytes from one element to the next (5.11.4)
MAX_WITHOUT_DATA = 3 * MAX_FACES  # numbers in accessors that no bytes of the file stand for
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")


@dataclass(eq=False)
class Document:
    """A glTF document with its buffers, accessors and images, which are read on demand and kept."""

    json: dict[str, Any]
    binary: memoryview | None  # the binary chunk of a GLB
    source: Source
    _buffers: dict[int, memoryview] = field(default_factory=dict)
    _accessors: dict[int, np.ndarray] = field(default_factory=dict)
    _pictures: dict[str, np.ndarray] = field(default_factory=dict)
    _copied: int = 0  # numbers in accessors that are not read where they lie, in total
    _without_data: int = 0  # numbers in accessors without a buffer view, in total

    def count(self, kind: str) -> int:
        """The number of objects of a kind: nodes, meshes, accessors ..."""
        return len(self._list(kind))

    def item(self, kind: str, index: Any, user: str = "the document") -> dict[str, Any]:
        """One object of a kind, for a user that messages name. Raises InputError if it does not exist."""
        items = self._list(kind)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(items):
            raise InputError(
                f"is damaged: {user} refers to {kind}[{str(index)[:50]}], there are {len(items)}"
            )
        return as_object(items[index], f"{kind}[{index}]")

    def accessor(self, index: int, user: str) -> np.ndarray:
        """The elements of an accessor (n or n c): float32 if they are floats or normalized, else integers."""
        accessor = self.item("accessors", index, user)
        if index not in self._accessors:
            self._accessors[index] = self._read_accessor(accessor, f"accessors[{index}]")
        return self._accessors[index]

    def view(self, index: Any, user: str) -> memoryview:
        """The bytes of a buffer view."""
        view, where = self.item("bufferViews", index, user), f"bufferViews[{index}]"
        for name in _MESHOPT:
            if name in as_object(view.get("extensions", {}), where) and not self._has_data(
                view.get("buffer"), where
            ):
                raise InputError(
                    f"is compressed by {name}, which is not read", hint="export without mesh compression"
                )
        data = self._buffer(view.get("buffer"), where)
        start, length = (
            whole(view, name, where, default) for name, default in (("byteOffset", 0), ("byteLength", None))
        )
        if start + length > len(data):
            raise InputError(f"is truncated: {where} ends at byte {start + length} of {len(data)}")
        return data[start : start + length]

    def picture(self, index: Any, user: str, among: int = 1) -> np.ndarray:
        """An image as uint8 (h w 3 or h w 4); the same array every time.

        It is downscaled to its share of the memory limit if it is one of `among` images.
        """
        image, where = self.item("images", index, user), f"images[{index}]"
        in_view, name = "bufferView" in image, image.get("name")
        uri = image.get("uri")
        if in_view:  # images with the same bytes are one image
            view = self.item("bufferViews", image["bufferView"], where)
            key = str([view.get(field) for field in ("buffer", "byteOffset", "byteLength")])
        elif isinstance(uri, str):
            key = uri
            name = name or (uri if uri[:5].lower() != "data:" else None)
        else:
            raise InputError(f"is damaged: {where} has neither bufferView nor uri")
        if key not in self._pictures:
            data = bytes(self.view(image["bufferView"], where)) if in_view else self._uri(uri, where)
            shown = f"{where} ({str(name)[:100]})" if name else where
            self._pictures[key] = decode_picture(data, shown, self.source, among)
        return self._pictures[key]

    def _list(self, kind: str) -> list[Any]:
        items = self.json.get(kind, [])
        if not isinstance(items, list):
            raise InputError(f"is damaged: {kind} is not a list")
        return items

    def _has_data(self, index: Any, user: str) -> bool:
        """Whether a buffer has data; a meshopt fallback buffer may have none."""
        buffer = self.item("buffers", index, user)
        announced = any(name in as_object(buffer.get("extensions", {}), user) for name in _MESHOPT)
        return "uri" in buffer or (index == 0 and self.binary is not None and not announced)

    def _buffer(self, index: Any, user: str) -> memoryview:
        buffer, where = self.item("buffers", index, user), f"buffers[{index}]"
        if index not in self._buffers:
            if "uri" in buffer:
                data = memoryview(self._uri(buffer["uri"], where))
            elif index == 0 and self.binary is not None:
                data = self.binary
            else:
                raise InputError(f"has no data for {where}: neither a binary chunk nor a uri")
            length = whole(buffer, "byteLength", where)
            if length > len(data):
                raise InputError(f"is truncated: {where} needs {length} bytes, {len(data)} are there")
            self._buffers[index] = data[:length]
        return self._buffers[index]

    def _uri(self, uri: Any, where: str) -> bytes:
        if not isinstance(uri, str):
            raise InputError(f"is damaged: the uri of {where} is not text")
        if uri[:5].lower() == "data:":
            return _data_uri(uri, where)
        try:
            return self.source.beside(unquote(uri))
        except InputError as error:
            raise InputError(f"{where} {error.message}", hint=error.hint) from error

    def _read_accessor(self, accessor: dict[str, Any], where: str) -> np.ndarray:
        width, kind = known(_WIDTHS, accessor.get("type")), known(_TYPES, accessor.get("componentType"))
        if width is None or kind is None:
            raise InputError(
                f"is damaged: {where} has type {str(accessor.get('type'))[:20]} of component type"
                f" {str(accessor.get('componentType'))[:20]}"
            )
        count = whole(accessor, "count", where)
        is_scaled = bool(accessor.get("normalized")) and kind.kind in "iu"
        if "bufferView" in accessor:
            values = self._strided(accessor, where, kind, width, count)
        else:
            self._without_data += count * width
            if self._without_data > MAX_WITHOUT_DATA:
                raise InputError(
                    f"claims {self._without_data} numbers without data, up to {where}, more than {MAX_WITHOUT_DATA}"
                )
            values = np.zeros((count, width), kind)
        if "sparse" in accessor or is_scaled:
            self._copied += count * width
            if self._copied > MAX_COPIED:
                raise InputError(
                    f"has {self._copied} numbers that are normalized or sparse, up to {where}, more than {MAX_COPIED}",
                    hint="simplify the mesh",
                )
        if "sparse" in accessor:
            values = self._sparse(as_object(accessor["sparse"], f"{where}.sparse"), where, values)
        if is_scaled:
            # 3.6.2.2: signed values are clamped at -1.
            values = np.maximum(values.astype(np.float32) / np.iinfo(kind).max, -1.0)
        return values[:, 0] if width == 1 else values

    def _strided(self, accessor, where: str, kind: np.dtype, width: int, count: int) -> np.ndarray:
        data = self.view(accessor.get("bufferView"), where)
        start = whole(accessor, "byteOffset", where, 0)
        packed = kind.itemsize * width
        view = self.item("bufferViews", accessor["bufferView"], where)
        stride = whole(view, "byteStride", f"bufferViews[{accessor['bufferView']}]", 0) or packed
        if (
            "byteStride" in view
            and stride != packed
            and (stride < packed or stride > MAX_STRIDE or stride % 4)
        ):
            raise InputError(
                f"is damaged: bufferViews[{accessor['bufferView']}].byteStride is {stride} below {where}, whose"
                f" elements have {packed} bytes; it must be a multiple of 4 from there to {MAX_STRIDE}"
            )
        end = start + (stride * (count - 1) + packed if count else 0)
        if end > len(data):
            raise InputError(
                f"is truncated: {where} claims {count} elements, up to byte {end} of {len(data)}"
            )
        return np.ndarray((count, width), kind, data, start, (stride, kind.itemsize))

    def _sparse(self, sparse: dict[str, Any], where: str, values: np.ndarray) -> np.ndarray:
        """Replace some elements by those of a sparse accessor (3.6.2.3)."""
        count = whole(sparse, "count", f"{where}.sparse")
        places, news = (
            as_object(sparse.get(name), f"{where}.sparse.{name}") for name in ("indices", "values")
        )
        index_kind = known(_TYPES, places.get("componentType"))
        if index_kind is None or index_kind.kind != "u":
            raise InputError(f"is damaged: {where}.sparse.indices has no whole numbers")
        index = self._strided(places, f"{where}.sparse.indices", index_kind, 1, count)[:, 0]
        new = self._strided(news, f"{where}.sparse.values", values.dtype, values.shape[1], count)
        if count and index.max() >= len(values):
            raise InputError(f"is damaged: {where}.sparse names element {index.max()} of {len(values)}")
        values = values.copy()
        values[index] = new
        return values


def split_glb(data: bytes) -> tuple[bytes, memoryview | None]:
    """The JSON and the binary chunk of a GLB (4.4)."""
    if data[:4] != b"glTF":
        raise InputError("is not a GLB file: it does not begin with glTF")
    if len(data) < 20:
        raise InputError("is truncated")
    version, length, json_length, json_kind = struct.unpack_from("<IIII", data, 4)
    if version != 2 or json_kind != 0x4E4F534A:
        raise InputError(f"is GLB of version {version}, only version 2 is read")
    if length > len(data) or 20 + json_length > length:
        raise InputError(f"is truncated: {length} bytes announced, {len(data)} found")
    rest = memoryview(data)[20 + json_length : length]
    if len(rest) < 8:
        return data[20 : 20 + json_length], None
    binary_length, _ = struct.unpack_from("<II", rest)
    if 8 + binary_length > len(rest):
        raise InputError(f"is truncated: a chunk of {binary_length} bytes announced, {len(rest) - 8} found")
    return data[20 : 20 + json_length], rest[8 : 8 + binary_length]


def parse_document(text: bytes, binary: memoryview | None, source: Source) -> Document:
    """Parse the JSON of a document. Raises InputError if it is not JSON."""
    document = parse_json(text, "its glTF part")
    return Document(as_object(document, "its glTF part"), binary, source)


def as_object(value: Any, where: str) -> dict[str, Any]:
    """The value, if it is a JSON object. Raises InputError for anything else."""
    if not isinstance(value, dict):
        raise InputError(f"is damaged: {where} is not an object")
    return value


def extensions_of(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The extensions of a JSON object, by name."""
    return as_object(record.get("extensions", {}), f"{where}.extensions")


def whole(record: dict[str, Any], name: str, where: str, default: int | None = None) -> int:
    """A non-negative integer of a JSON object. Raises InputError for anything else."""
    value = record.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2**53:
        raise InputError(
            f"is damaged: {where}.{name} is {reprlib.repr(value)}, a whole number from 0 to 2^53 is needed"
        )
    return value


def numbers(record: dict[str, Any], name: str, where: str, default: list[float]) -> np.ndarray:
    """A list of finite numbers, as long as the default. Raises InputError for anything else."""
    value = record.get(name, default)
    if not (isinstance(value, list) and len(value) == len(default) and all(map(_is_finite, value))):
        raise InputError(f"is damaged: {where}.{name} needs {len(default)} finite numbers")
    return np.array(value, np.float64)


def number(record: dict[str, Any], name: str, where: str, default: float) -> float:
    """A finite number of a JSON object. Raises InputError for anything else."""
    return float(numbers({name: [record.get(name, default)]}, name, where, [default])[0])


def known(table: dict[Any, Any], key: Any) -> Any:
    """The table's value for a key from a file, None for unknown keys and keys of a wrong type."""
    return table.get(key) if isinstance(key, (int, str)) else None


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def _data_uri(uri: str, where: str) -> bytes:
    kind, _, data = uri.partition(",")
    if len(uri) > 2 * MAX_FILE_BYTES:
        raise InputError(f"the data URI of {where} is too long")
    if not kind.lower().endswith(";base64"):
        return unquote_to_bytes(data)
    try:
        return base64.b64decode(unquote(data), validate=True)
    except (binascii.Error, ValueError) as cause:
        raise InputError(f"the data URI of {where} is not base64") from cause
