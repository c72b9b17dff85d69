"""The primitives of a glTF mesh: attributes and triangles, morphed, with their materials (glTF 2.0, 3.7.2)."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.io.gltf_data import Document, as_object, extensions_of, known, number, whole
from sv3d_jax.io.gltf_materials import MaterialReader, TexturedMaterial, count_pictures
from sv3d_jax.io.surfaces import Material, Part, used_vertices

DRACO = "KHR_draco_mesh_compression"
_TRIANGLES, _STRIP, _FAN = 4, 5, 6  # values of `mode`
_SKIPPED_MODES = {0: "points", 1: "lines", 2: "lines", 3: "lines"}
MAX_SKIN_SETS = 8  # of joints and weights, four of each
_SKINNED_AT_ONCE = 1 << 18  # vertices, each of which has a matrix of its own


class Primitive(NamedTuple):
    """One or more glTF primitives with shared vertices and material, in the coordinates of their mesh."""

    values: dict[str, np.ndarray]  # float64, by attribute; a row for each vertex
    faces: np.ndarray  # integer, t 3
    textured: TexturedMaterial
    where: str  # for messages

    def instanced(self, matrices: np.ndarray) -> Part:
        """One copy of the triangles for each matrix (n 4 4), transformed by it."""
        points, normals = self._positions(), self._normals()
        linear, count = matrices[:, :3, :3], len(points)
        sign = np.sign(np.linalg.det(linear))
        vertices = points @ linear.swapaxes(1, 2) + matrices[:, None, :3, 3]
        if normals is not None:
            normals = (normals @ _cofactor(linear).swapaxes(1, 2) * sign[:, None, None]).reshape(-1, 3)
        # A mirroring matrix would turn the faces inside out.
        faces = np.where(sign[:, None, None] < 0, self.faces[:, ::-1], self.faces)
        faces = faces + count * np.arange(len(matrices))[:, None, None]
        return self._part(vertices.reshape(-1, 3), faces.reshape(-1, 3), normals, len(matrices))

    def skinned(self, matrices_of: Callable[[slice], np.ndarray]) -> Part:
        """The triangles with each vertex transformed by its own matrix; `matrices_of` gives those of some (v 4 4)."""
        points, normals = self._positions(), self._normals()
        vertices, sign = np.empty_like(points), np.empty(len(points))
        for start in range(0, len(points), _SKINNED_AT_ONCE):
            rows = slice(start, start + _SKINNED_AT_ONCE)
            matrices = matrices_of(rows)
            linear = matrices[:, :3, :3]
            sign[rows] = np.sign(np.linalg.det(linear))
            vertices[rows] = np.einsum("vij,vj->vi", linear, points[rows]) + matrices[:, :3, 3]
            if normals is not None:
                turned = np.einsum("vij,vj->vi", _cofactor(linear), normals[rows])
                normals[rows] = turned * sign[rows, None]
        faces = self.faces[:, ::-1] if np.median(sign) < 0 else self.faces
        return self._part(vertices, faces, normals, 1)

    def _positions(self) -> np.ndarray:
        return _columns(self.values["POSITION"], 3, f"{self.where}.POSITION")

    def _normals(self) -> np.ndarray | None:
        own = self.values.get("NORMAL")
        return None if own is None else _columns(own, 3, f"{self.where}.NORMAL")

    def _part(self, vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray | None, copies: int) -> Part:
        """The part with these vertices, which are those of `copies` copies, one after the other."""
        if normals is None:
            normals = np.zeros_like(vertices)  # 3.7.2.1: without normals, flat shading
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = normals / np.where(lengths > 0, lengths, 1.0)
        colors = self.values.get("COLOR_0")
        if colors is not None:
            colors = _columns(colors, min(4, max(3, colors.shape[-1])), f"{self.where}.COLOR_0")
            colors = np.tile(colors, (copies, 1))
        uv = None
        if self.textured.material.picture is not None:
            name, transform = f"TEXCOORD_{self.textured.set}", self.textured.transform
            uv = self.values.get(name)
            if uv is None:  # viewers take absent coordinates as zeros
                uv = np.zeros((len(vertices) // copies, 2))
            uv = _columns(uv, 2, f"{self.where}.{name}") @ transform[:2, :2].T + transform[:2, 2]
            uv = np.tile(np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1), (copies, 1))
        return Part(vertices, faces, self.textured.material, normals, colors, uv)


class PrimitiveReader:
    """Reads the primitives of a document's meshes: attributes, triangles, morph targets and materials."""

    def __init__(self, document: Document):
        self.document = document
        self.materials: dict[int, TexturedMaterial] = {}
        self.num_pictures = count_pictures(document)
        self._groups: dict[int, list[list[tuple[dict[str, Any], str]]]] = {}

    def primitives(self, mesh: dict[str, Any], mesh_index: int, node: dict[str, Any]) -> Iterator[Primitive]:
        """The mesh's triangles in its own coordinates; primitives that share vertices and a material are merged.

        The weights of morph targets are those of the node, else of the mesh. Points and lines are skipped and remarked.
        """
        weights = node.get("weights", mesh.get("weights", []))
        for group in self._groups_of(mesh, mesh_index):
            yield self._primitive(group, weights, "skin" in node)

    def declared_faces(self, mesh: dict[str, Any], mesh_index: int) -> int:
        """The number of triangles of a mesh as its accessors declare it; none of its data are read."""
        groups = self._groups_of(mesh, mesh_index)
        return sum(self._declared(*member) for group in groups for member in group)

    def _groups_of(self, mesh: dict[str, Any], mesh_index: int) -> list[list[tuple[dict[str, Any], str]]]:
        """Primitives that share vertices and a material, with their names for messages; sorted once for each mesh."""
        if mesh_index in self._groups:
            return self._groups[mesh_index]
        where = f"meshes[{mesh_index}]"
        primitives = mesh.get("primitives", [])
        if not isinstance(primitives, list):
            raise InputError(f"is damaged: {where}.primitives is not a list")
        groups: dict[Any, list[tuple[dict[str, Any], str]]] = {}
        for index, primitive in enumerate(primitives):
            here = f"{where}.primitives[{index}]"
            primitive = as_object(primitive, here)
            mode = primitive.get("mode", _TRIANGLES)
            if other := known(_SKIPPED_MODES, mode):
                self.document.source.remark(f"{other} are not drawn ({here} and others like it)"[:200])
                continue
            if mode not in (_TRIANGLES, _STRIP, _FAN):
                raise InputError(f"is damaged: {here} has mode {str(mode)[:20]}")
            attributes = as_object(primitive.get("attributes"), f"{here}.attributes")
            alike = [sorted(attributes.items(), key=str), primitive.get("material"), primitive.get("targets")]
            key = index if DRACO in extensions_of(primitive, here) else str(alike)
            groups.setdefault(key, []).append((primitive, here))
        self._groups[mesh_index] = [*groups.values()]
        return self._groups[mesh_index]

    def _declared(self, primitive: dict[str, Any], where: str) -> int:
        attributes = as_object(primitive["attributes"], f"{where}.attributes")
        index = primitive.get("indices", attributes.get("POSITION"))
        if index is None:
            raise InputError(f"is damaged: {where} has no POSITION")
        count = whole(self.document.item("accessors", index, where), "count", f"accessors[{index}]")
        return count // 3 if primitive.get("mode", _TRIANGLES) == _TRIANGLES else max(0, count - 2)

    def _primitive(self, group: list[tuple[dict[str, Any], str]], weights: Any, has_skin: bool) -> Primitive:
        primitive, where = group[0]
        textured = self._material(primitive, where)
        wanted = _wanted(textured, has_skin)
        if DRACO in extensions_of(primitive, where):
            values, faces = _decode_draco(self.document, primitive, where, wanted)
            if len(faces) > (declared := self._declared(primitive, where)):
                raise InputError(f"is damaged: {where} declares {declared} faces, its data hold {len(faces)}")
        else:
            named = as_object(primitive["attributes"], f"{where}.attributes")
            values = {
                name: self.document.accessor(index, f"{where}.attributes.{name}")
                for name, index in named.items()
                if name in wanted
            }
            faces = np.concatenate(
                [self._faces(*member, len(values.get("POSITION", ()))) for member in group]
            )
        positions = values.get("POSITION")
        if positions is None:
            raise InputError(f"is damaged: {where} has no POSITION")
        count = len(positions)
        for name, array in values.items():
            if len(array) != count:
                raise InputError(f"is damaged: {where} has {count} positions and {len(array)} of {name}")
        if faces.size and faces.max() >= count:
            raise InputError(f"is damaged: {where} names vertex {faces.max()} of {count}")
        used, faces = used_vertices(faces, count)
        color = values.get("COLOR_0")
        if color is not None and color.dtype.kind in "ui":  # some exporters forget "normalized"
            values["COLOR_0"] = color.astype(np.float32) / np.iinfo(color.dtype).max
        values = {name: np.asarray(array[used], np.float64) for name, array in values.items()}
        self._morph(values, primitive, where, weights, used, count)
        return Primitive(values, faces, textured, where)

    def _faces(self, primitive: dict[str, Any], where: str, count: int) -> np.ndarray:
        """Triangles (t 3) of a triangle list, strip or fan (3.7.2.1)."""
        if "indices" in primitive:
            index = self.document.accessor(primitive["indices"], f"{where}.indices")
            if index.ndim != 1 or index.dtype.kind != "u":
                raise InputError(f"is damaged: {where}.indices are not whole numbers")
            index = index.astype(np.int64)
        else:
            index = np.arange(count)
        mode = primitive.get("mode", _TRIANGLES)
        if mode == _TRIANGLES:
            return index[: len(index) // 3 * 3].reshape(-1, 3)
        if len(index) < 3:
            return np.zeros((0, 3), np.int64)
        if mode == _FAN:
            return np.stack([index[1:-1], index[2:], np.full(len(index) - 2, index[0])], axis=1)
        corners = np.stack([index[:-2], index[1:-1], index[2:]], axis=1)
        corners[1::2] = corners[1::2][:, [0, 2, 1]]  # every second triangle of a strip is wound the other way
        return corners

    def _morph(self, values, primitive, where: str, weights: Any, used: np.ndarray, count: int) -> None:
        """Add the morph targets, times their weights, to the attributes (3.7.2.2)."""
        targets = primitive.get("targets", [])
        if not isinstance(targets, list) or not isinstance(weights, list):
            raise InputError(f"is damaged: {where}.targets or their weights are not a list")
        for index, target in enumerate(targets):
            weight = (
                number({"weights": weights[index]}, "weights", where, 0.0) if index < len(weights) else 0.0
            )
            if not weight:
                continue
            here = f"{where}.targets[{index}]"
            for name, accessor in as_object(target, here).items():
                if name not in values:
                    continue
                moves = self.document.accessor(accessor, here)
                if moves.ndim != 2 or values[name].ndim != 2 or len(moves) != count:
                    raise InputError(f"is damaged: {here} has {len(moves)} of {name}, {count} are needed")
                width = min(moves.shape[1], values[name].shape[1])
                values[name][:, :width] += weight * moves[used][:, :width]

    def _material(self, primitive: dict[str, Any], where: str) -> TexturedMaterial:
        index = primitive.get("material")
        if index is None:
            return TexturedMaterial(Material(), 0, np.eye(3))
        material = self.document.item("materials", index, where)
        if index not in self.materials:
            self.materials[index] = MaterialReader(
                self.document, material, f"materials[{index}]", self.num_pictures
            ).read()
        return self.materials[index]


def _decode_draco(
    document: Document, primitive: dict[str, Any], where: str, wanted: set[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Attributes and triangles of a Draco-compressed primitive (KHR_draco_mesh_compression).

    Raises InputError where the optional package DracoPy is not installed.
    """
    try:
        import DracoPy
    except ImportError:
        raise InputError(
            f"is compressed by {DRACO}",
            hint='pip install "sv3d_jax[draco]", or export without mesh compression',
        ) from None
    extension = as_object(extensions_of(primitive, where)[DRACO], where)
    data = bytes(document.view(extension.get("bufferView"), where))
    try:
        decoded = DracoPy.decode(data)
        faces = np.asarray(decoded.faces, np.int64).reshape(-1, 3)
        by_id = {attribute["unique_id"]: np.asarray(attribute["data"]) for attribute in decoded.attributes}
    except MemoryError:
        raise
    except Exception as cause:  # the decoder raises errors of many kinds on damaged data
        raise InputError(
            f"is damaged: {where}, compressed by {DRACO}, cannot be decoded",
            hint="export without mesh compression",
        ) from cause
    values = {}
    for name, unique in as_object(extension.get("attributes"), where).items():
        if name in wanted:
            if unique not in by_id:
                raise InputError(f"is damaged: {where} has no {name} in its data compressed by {DRACO}")
            accessor = document.item("accessors", as_object(primitive["attributes"], where).get(name), where)
            values[name] = _draco_values(by_id[unique], accessor)
    return values, faces


def _draco_values(data: np.ndarray, accessor: dict[str, Any]) -> np.ndarray:
    if accessor.get("normalized") and data.dtype.kind in "iu":
        return np.maximum(data.astype(np.float32) / np.iinfo(data.dtype).max, -1.0)
    return data


def _wanted(textured: TexturedMaterial, has_skin: bool) -> set[str]:
    """The attributes that decide how a primitive looks; others are not read."""
    wanted = {"POSITION", "NORMAL", "COLOR_0"}
    if textured.material.picture is not None:
        wanted.add(f"TEXCOORD_{textured.set}")
    sets = range(MAX_SKIN_SETS if has_skin else 0)
    return wanted | {f"{name}_{number}" for name in ("JOINTS", "WEIGHTS") for number in sets}


def _cofactor(linear: np.ndarray) -> np.ndarray:
    """Cofactor matrices (... 3 3): they transform normals, up to length and the sign of the determinant."""
    return np.stack([np.cross(linear[..., i - 2], linear[..., i - 1]) for i in range(3)], axis=-1)


def _columns(values: np.ndarray, width: int, where: str) -> np.ndarray:
    """The first `width` numbers of every vertex, as float64 (v width)."""
    if values.ndim != 2 or values.shape[1] < width:
        raise InputError(f"is damaged: {where} needs {width} numbers for each vertex")
    return np.asarray(values[:, :width], np.float64)
