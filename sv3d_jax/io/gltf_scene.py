"""The surfaces that a glTF document shows: its scene in the pose of its nodes, with colours in linear light (glTF 2.0).

What the reader does with every feature is listed in docs/data.md.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.io.gltf_data import Document, as_object, extensions_of, known, number, numbers
from sv3d_jax.io.gltf_materials import MaterialReader, TexturedMaterial, count_pictures
from sv3d_jax.io.surfaces import MAX_FACES, Material, Part, used_vertices

MAX_NODES = 100_000
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_DRAWN_OTHERWISE = {0: "points", 1: "lines", 2: "lines", 3: "lines"}
_DRACO = "KHR_draco_mesh_compression"

# Extensions that a file may require: read, or without effect on shape and base colour.
_READ_EXTENSIONS = (
    "KHR_texture_transform",
    "KHR_texture_basisu",  # its fallback, or refused where a surface needs it
    "KHR_mesh_quantization",
    "KHR_materials_",
    "KHR_lights_",
    "KHR_xmp",
    "KHR_animation_pointer",
    "KHR_node_visibility",
    "EXT_mesh_gpu_instancing",
    "EXT_texture_webp",
    "EXT_texture_avif",
    "EXT_lights_",
    "EXT_mesh_features",
    "EXT_structural_metadata",
    "EXT_meshopt_compression",  # its fallback, or refused
    "KHR_meshopt_compression",
    "VRM",
    _DRACO,
)


def read_gltf(document: Document) -> list[Part]:
    """The surfaces of the document's scene, in its axes: y up, the front towards +z.

    Raises InputError for what is damaged or needs an extension that is not read.
    """
    required = document.json.get("extensionsRequired", [])
    required = [str(name) for name in required] if isinstance(required, list) else []
    if unknown := [name for name in required if not name.startswith(_READ_EXTENSIONS)]:
        raise InputError(
            f"needs glTF extensions that are not read: {', '.join(unknown)}", hint="export without"
        )
    return _Scene(document).parts()


class _Node(NamedTuple):
    """A node that shows a mesh."""

    index: int
    node: dict[str, Any]


class _Scene:
    """A document on its way to surfaces."""

    def __init__(self, document: Document):
        self.document = document
        self.count = document.count("nodes")
        if self.count > MAX_NODES:
            raise InputError(f"has {self.count} nodes, more than {MAX_NODES}")
        self.nodes = [document.item("nodes", index) for index in range(self.count)]
        self.parents = _parents(self.nodes)
        self.world = self._world_from_nodes()
        self.materials: dict[int, TexturedMaterial] = {}
        self.joints: dict[int, np.ndarray] = {}
        self.num_pictures = count_pictures(document)
        self.faces = 0

    def parts(self) -> list[Part]:
        parts = []
        for node in self._shown_nodes():
            index = node.node["mesh"]
            mesh = self.document.item("meshes", index, f"nodes[{node.index}]")
            for surface in self._surfaces(mesh, index, node.node):
                parts.append(self._placed(surface, node))
        return parts

    def _shown_nodes(self) -> Iterator[_Node]:
        """Nodes with a mesh below the roots of the document's scene, in the order of the file."""
        shown, open_nodes = np.zeros(self.count, bool), self._roots()
        while open_nodes:
            index = open_nodes.pop()
            node = self.nodes[index]
            visibility = extensions_of(node, f"nodes[{index}]").get("KHR_node_visibility", {})
            if shown[index] or (isinstance(visibility, dict) and visibility.get("visible") is False):
                continue
            shown[index] = True
            open_nodes += node.get("children", [])
        return (_Node(i, self.nodes[i]) for i in np.flatnonzero(shown) if "mesh" in self.nodes[i])

    def _roots(self) -> list[int]:
        """Roots of the scene that the document names, of the first one, or of all that have no parent."""
        document = self.document
        if "scene" not in document.json and not document.count("scenes"):
            return [int(index) for index in np.flatnonzero(self.parents < 0)]
        scene = document.json.get("scene", 0)
        roots = document.item("scenes", scene).get("nodes", [])
        for root in roots if isinstance(roots, list) else [roots]:
            document.item("nodes", root, f"scenes[{scene}]")
        return list(roots)

    def _world_from_nodes(self) -> np.ndarray:
        """The matrices (n 4 4) of all nodes, parents before children, so that depth costs nothing."""
        world = np.zeros((self.count, 4, 4))
        children: list[list[int]] = [[] for _ in range(self.count)]
        for index, parent in enumerate(self.parents):
            if parent >= 0:
                children[parent].append(index)
        open_nodes = [int(index) for index in np.flatnonzero(self.parents < 0)]
        while open_nodes:
            index = open_nodes.pop()
            local = _local_matrix(self.nodes[index], f"nodes[{index}]")
            parent = self.parents[index]
            with np.errstate(all="ignore"):  # what overflows is found as vertices that are not finite
                world[index] = local if parent < 0 else world[parent] @ local
            open_nodes += children[index]
        return world

    def _surfaces(
        self, mesh: dict[str, Any], mesh_index: int, node: dict[str, Any]
    ) -> Iterator["_Primitive"]:
        """The mesh's primitives in their own coordinates; those that share vertices and a material are one."""
        where = f"meshes[{mesh_index}]"
        primitives = mesh.get("primitives", [])
        if not isinstance(primitives, list):
            raise InputError(f"is damaged: {where}.primitives is not a list")
        weights = node.get("weights", mesh.get("weights", []))
        groups: dict[Any, list[tuple[dict[str, Any], str]]] = {}
        for index, primitive in enumerate(primitives):
            here = f"{where}.primitives[{index}]"
            primitive = as_object(primitive, here)
            mode = primitive.get("mode", _TRIANGLES)
            if other := known(_DRAWN_OTHERWISE, mode):
                self.document.source.remark(f"{other} are not drawn ({here} and others like it)"[:200])
                continue
            if mode not in (_TRIANGLES, _STRIP, _FAN):
                raise InputError(f"is damaged: {here} has mode {str(mode)[:20]}")
            attributes = as_object(primitive.get("attributes"), f"{here}.attributes")
            alike = [sorted(attributes.items(), key=str), primitive.get("material"), primitive.get("targets")]
            key = index if _DRACO in extensions_of(primitive, here) else str(alike)
            groups.setdefault(key, []).append((primitive, here))
        for group in groups.values():
            yield self._surface(group, weights)

    def _surface(self, group: list[tuple[dict[str, Any], str]], weights: Any) -> "_Primitive":
        primitive, where = group[0]
        if _DRACO in extensions_of(primitive, where):
            values, faces = _decode_draco(self.document, primitive, where)
        else:
            named = as_object(primitive["attributes"], f"{where}.attributes")
            values = {
                name: self.document.accessor(index, f"{where}.attributes.{name}")
                for name, index in named.items()
                if name.startswith(_USED_ATTRIBUTES)
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
        self._count_faces(len(faces))
        used, faces = used_vertices(faces, count)
        color = values.get("COLOR_0")
        if (
            color is not None and color.dtype.kind in "ui"
        ):  # some writers forget to say that they are normalized
            values["COLOR_0"] = color.astype(np.float32) / np.iinfo(color.dtype).max
        values = {name: np.asarray(array[used], np.float64) for name, array in values.items()}
        self._morph(values, primitive, where, weights, used, count)
        return _Primitive(values, faces, self._material(primitive, where), where)

    def _faces(self, primitive: dict[str, Any], where: str, count: int) -> np.ndarray:
        """Triangles (t 3) out of a list, a strip or a fan (3.7.2.1)."""
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
        corners[1::2] = corners[1::2][:, [0, 2, 1]]  # every second one runs the other way
        return corners

    def _morph(self, values, primitive, where: str, weights: Any, used: np.ndarray, count: int) -> None:
        """Add the morph targets by their default weights (3.7.2.2)."""
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

    def _placed(self, surface: "_Primitive", node: _Node) -> Part:
        """A surface where its skin, its instances or its node put it."""
        where = f"nodes[{node.index}]"
        if "skin" in node.node:
            return surface.skinned(self._skinned(surface, node.node["skin"], where))
        matrices = self.world[node.index][None]
        instancing = extensions_of(node.node, where).get("EXT_mesh_gpu_instancing")
        if instancing is not None:
            matrices = matrices @ self._instances(as_object(instancing, where), where, len(surface.faces))
        return surface.copied(matrices)

    def _joints(self, index: Any, where: str) -> np.ndarray:
        """What the joints of a skin do to vertices in their bind pose (j 4 4)."""
        skin, here = self.document.item("skins", index, where), f"skins[{index}]"
        if index in self.joints:
            return self.joints[index]
        joints = skin.get("joints")
        if not isinstance(joints, list) or not joints:
            raise InputError(f"is damaged: {here} has no joints")
        for joint in joints:
            self.document.item("nodes", joint, here)
        matrices = self.world[joints]
        if "inverseBindMatrices" in skin:
            inverse = self.document.accessor(skin["inverseBindMatrices"], here)
            if inverse.ndim != 2 or inverse.shape[1] != 16 or len(inverse) < len(joints):
                raise InputError(f"is damaged: {here} needs {len(joints)} inverse bind matrices")
            inverse = inverse[: len(joints)].reshape(-1, 4, 4).swapaxes(1, 2)
            matrices = matrices @ inverse.astype(np.float64)
        self.joints[index] = matrices
        return matrices

    def _skinned(self, surface: "_Primitive", index: Any, where: str) -> np.ndarray:
        """The matrix of every vertex (v 4 4) in the pose of the joints; the node's own counts for nothing (3.7.3)."""
        matrices = self._joints(index, where)
        count = len(surface.values["POSITION"])
        blended, total = np.zeros((count, 4, 4)), np.zeros(count)
        for number_of_set in range(8):
            numbers_of_joints = surface.values.get(f"JOINTS_{number_of_set}")
            weights = surface.values.get(f"WEIGHTS_{number_of_set}")
            if numbers_of_joints is None or weights is None:
                break
            if numbers_of_joints.ndim != 2 or numbers_of_joints.shape != weights.shape:
                raise InputError(f"is damaged: joints and weights of {surface.where} differ in shape")
            for joint, weight in zip(numbers_of_joints.T.astype(np.int64), weights.T, strict=True):
                joint = np.where(weight == 0, 0, joint)
                if len(joint) and not 0 <= joint.min() <= joint.max() < len(matrices):
                    wrong = joint.max() if joint.min() >= 0 else joint.min()
                    raise InputError(f"is damaged: {surface.where} names joint {wrong} of {len(matrices)}")
                blended += weight[:, None, None] * matrices[joint]
                total += weight
        if not total.any():
            raise InputError(f"is damaged: {surface.where} has a skin, but no joints and weights")
        blended /= np.where(total > 0, total, 1.0)[:, None, None]
        blended[total <= 0] = matrices[0]
        return blended

    def _count_faces(self, count: int) -> None:
        self.faces += count
        if self.faces > MAX_FACES:
            raise InputError(f"has {self.faces} faces, more than {MAX_FACES}", hint="simplify the mesh")

    def _instances(self, extension: dict[str, Any], where: str, faces: int) -> np.ndarray:
        """The matrices (n 4 4) of EXT_mesh_gpu_instancing's copies of so many faces."""
        attributes = as_object(extension.get("attributes"), f"{where}.EXT_mesh_gpu_instancing.attributes")
        values = {
            name: self.document.accessor(attributes[name], where) for name in _TRS if name in attributes
        }
        counts = {len(array) for array in values.values()}
        if len(counts) != 1 or any(
            array.ndim != 2 or array.shape[1] != _TRS[n] for n, array in values.items()
        ):
            raise InputError(f"is damaged: the instances of {where} differ in number or have no TRANSLATION")
        count = counts.pop()
        self._count_faces((count - 1) * max(faces, 1))
        move = values.get("TRANSLATION", np.zeros((count, 3)))
        turn = values.get("ROTATION", np.tile([0.0, 0.0, 0.0, 1.0], (count, 1)))
        scale = values.get("SCALE", np.ones((count, 3)))
        return _trs(move.astype(np.float64), turn.astype(np.float64), scale.astype(np.float64))

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


_USED_ATTRIBUTES = ("POSITION", "NORMAL", "COLOR_0", "TEXCOORD_", "JOINTS_", "WEIGHTS_")
_TRS = {"TRANSLATION": 3, "ROTATION": 4, "SCALE": 3}


class _Primitive(NamedTuple):
    """One or more glTF primitives with shared vertices and material, in the coordinates of their mesh."""

    values: dict[str, np.ndarray]
    faces: np.ndarray
    textured: TexturedMaterial
    where: str

    def copied(self, matrices: np.ndarray) -> Part:
        """The surface as many times as there are matrices (n 4 4), each moved by one."""
        points, normals = self._positions(), self._normals()
        linear, count = matrices[:, :3, :3], len(points)
        sign = np.sign(np.linalg.det(linear))
        vertices = points @ linear.swapaxes(1, 2) + matrices[:, None, :3, 3]
        if normals is not None:
            normals = (normals @ _cofactor(linear).swapaxes(1, 2) * sign[:, None, None]).reshape(-1, 3)
        faces = np.where(
            sign[:, None, None] < 0, self.faces[:, ::-1], self.faces
        )  # a mirror turns them inside out
        faces = faces + count * np.arange(len(matrices))[:, None, None]
        return self._part(vertices.reshape(-1, 3), faces.reshape(-1, 3), normals, len(matrices))

    def skinned(self, matrices: np.ndarray) -> Part:
        """The surface with each vertex moved by its own matrix (v 4 4)."""
        points, normals = self._positions(), self._normals()
        linear = matrices[:, :3, :3]
        sign = np.sign(np.linalg.det(linear))
        vertices = np.einsum("vij,vj->vi", linear, points) + matrices[:, :3, 3]
        if normals is not None:
            normals = np.einsum("vij,vj->vi", _cofactor(linear), normals) * sign[:, None]
        faces = self.faces[:, ::-1] if np.median(sign) < 0 else self.faces
        return self._part(vertices, faces, normals, 1)

    def _positions(self) -> np.ndarray:
        return _columns(self.values["POSITION"], 3, f"{self.where}.POSITION")

    def _normals(self) -> np.ndarray | None:
        own = self.values.get("NORMAL")
        return None if own is None else _columns(own, 3, f"{self.where}.NORMAL")

    def _part(self, vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray | None, copies: int) -> Part:
        """The surface at these vertices: as often as there are copies, one after the other."""
        if normals is None:
            normals = np.zeros_like(vertices)  # 3.7.2.1: without normals, those of the faces
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = normals / np.where(lengths > 0, lengths, 1.0)
        colors = self.values.get("COLOR_0")
        if colors is not None:
            colors = _columns(colors, min(4, max(3, colors.shape[-1])), f"{self.where}.COLOR_0")
            colors = np.tile(colors, (copies, 1))
        uv = None
        if self.textured.material.picture is not None:
            uv = self.values.get(f"TEXCOORD_{self.textured.set}")
            if uv is None:
                uv = np.zeros(
                    (len(vertices) // copies, 2)
                )  # as if they were there and zero, as viewers take it
            uv = (
                _columns(uv, 2, f"{self.where}.TEXCOORD_{self.textured.set}")
                @ self.textured.transform[:2, :2].T
            )
            uv = uv + self.textured.transform[:2, 2]
            uv = np.tile(np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1), (copies, 1))
        return Part(vertices, faces, self.textured.material, normals, colors, uv)


def _parents(nodes: list[dict[str, Any]]) -> np.ndarray:
    """The parent of each node, -1 for roots. Nodes must form trees: one parent at most, and no cycle."""
    parents = np.full(len(nodes), -1)
    for index, node in enumerate(nodes):
        children = node.get("children", [])
        for child in children if isinstance(children, list) else [None]:
            if isinstance(child, bool) or not isinstance(child, int) or not 0 <= child < len(nodes):
                raise InputError(
                    f"is damaged: nodes[{index}] has child {str(child)[:20]} of {len(nodes)} nodes"
                )
            if parents[child] >= 0:
                raise InputError(f"is damaged: nodes[{child}] has two parents")
            parents[child] = index
    ancestors = parents
    for _ in range(len(nodes).bit_length()):  # doubles the distance to the ancestor each time
        ancestors = np.where(ancestors >= 0, ancestors[ancestors], -1)
    if (ancestors >= 0).any():
        raise InputError(
            f"is damaged: nodes[{int(np.argmax(ancestors >= 0))}] is among its own descendants, or below such a node"
        )
    return parents


def _local_matrix(node: dict[str, Any], where: str) -> np.ndarray:
    """Parent-from-node (3.5.3)."""
    if "matrix" in node:
        return numbers(node, "matrix", where, [0.0] * 16).reshape(4, 4).T
    move = numbers(node, "translation", where, [0.0] * 3)
    turn = numbers(node, "rotation", where, [0.0, 0.0, 0.0, 1.0])
    scale = numbers(node, "scale", where, [1.0] * 3)
    return _trs(move[None], turn[None], scale[None])[0]


def _trs(move: np.ndarray, turn: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Matrices (n 4 4) of translations, quaternions x y z w and scales."""
    lengths = np.linalg.norm(turn, axis=1, keepdims=True)
    x, y, z, w = (turn / np.where(lengths > 0, lengths, 1.0)).T
    matrices = np.zeros((len(move), 4, 4))
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 2, 2] = (
        1 - 2 * (y * y + z * z),
        1 - 2 * (x * x + z * z),
        1 - 2 * (x * x + y * y),
    )
    matrices[:, 0, 1], matrices[:, 1, 0] = 2 * (x * y - z * w), 2 * (x * y + z * w)
    matrices[:, 0, 2], matrices[:, 2, 0] = 2 * (x * z + y * w), 2 * (x * z - y * w)
    matrices[:, 1, 2], matrices[:, 2, 1] = 2 * (y * z - x * w), 2 * (y * z + x * w)
    matrices[:, :3, :3] *= scale[:, None]
    matrices[:, :3, 3], matrices[:, 3, 3] = move, 1.0
    return matrices


def _decode_draco(
    document: Document, primitive: dict[str, Any], where: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Attributes and triangles of a primitive that KHR_draco_mesh_compression packs, by the extra `draco`."""
    try:
        import DracoPy
    except ImportError:
        raise InputError(
            f"is compressed by {_DRACO}",
            hint='pip install "sv3d_jax[draco]", or export without mesh compression',
        ) from None
    extension = as_object(extensions_of(primitive, where)[_DRACO], where)
    data = bytes(document.view(extension.get("bufferView"), where))
    try:
        decoded = DracoPy.decode(data)
        faces = np.asarray(decoded.faces, np.int64).reshape(-1, 3)
        by_id = {attribute["unique_id"]: np.asarray(attribute["data"]) for attribute in decoded.attributes}
    except MemoryError:
        raise
    except Exception:  # whatever the decoder trips over in a damaged file
        raise InputError(
            f"is damaged: what {where} packs by {_DRACO} cannot be decoded",
            hint="export without mesh compression",
        ) from None
    values = {}
    for name, unique in as_object(extension.get("attributes"), where).items():
        if name.startswith(_USED_ATTRIBUTES):
            if unique not in by_id:
                raise InputError(f"is damaged: {where} lacks {name} in what {_DRACO} packs")
            accessor = document.item("accessors", as_object(primitive["attributes"], where).get(name), where)
            values[name] = _draco_values(by_id[unique], accessor)
    return values, faces


def _draco_values(data: np.ndarray, accessor: dict[str, Any]) -> np.ndarray:
    if accessor.get("normalized") and data.dtype.kind in "iu":
        return np.maximum(data.astype(np.float32) / np.iinfo(data.dtype).max, -1.0)
    return data


def _cofactor(linear: np.ndarray) -> np.ndarray:
    """Cofactors (... 3 3): up to the sign of the determinant, the directions that normals turn to."""
    return np.stack([np.cross(linear[..., i - 2], linear[..., i - 1]) for i in range(3)], axis=-1)


def _columns(values: np.ndarray, width: int, where: str) -> np.ndarray:
    """Values (v width) as float64."""
    if values.ndim != 2 or values.shape[1] < width:
        raise InputError(f"is damaged: {where} needs {width} numbers for each vertex")
    return np.asarray(values[:, :width], np.float64)
