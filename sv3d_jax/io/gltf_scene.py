"""The scene of a glTF document as surfaces: node hierarchy, skins and instances (glTF 2.0, 3.5 and 3.7.3).

docs/data.md lists which features are read, approximated and refused.
"""

import re
import reprlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sv3d_jax.cameras.pose import quaternion_rotations
from sv3d_jax.errors import InputError
from sv3d_jax.io.gltf_data import Document, as_object, extensions_of, numbers, whole
from sv3d_jax.io.gltf_primitives import DRACO, MAX_SKIN_SETS, Primitive, PrimitiveReader
from sv3d_jax.io.surfaces import MAX_FACES, Part

MAX_NODES = 100_000
AFFINE_TOLERANCE = 1e-3  # of the last row of a matrix, which exporters may round
QUATERNION_LENGTHS = (1e-2, 1e2)  # of the largest number; others have no direction that could be trusted
_LAST_ROW = np.array([0.0, 0.0, 0.0, 1.0])
_TRS = {"TRANSLATION": 3, "ROTATION": 4, "SCALE": 3}  # numbers of each

# Extensions that a file may require: those that are read, and those that change neither shape nor base colour.
_READ_EXTENSIONS = (
    "KHR_texture_transform",
    "KHR_texture_basisu",  # the fallback image is used; refused later if there is none
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
    "EXT_meshopt_compression",  # the fallback buffer is used; refused later if there is none
    "KHR_meshopt_compression",
    "VRM",
    DRACO,
)


def read_gltf(document: Document) -> list[Part]:
    """The surfaces of the document's scene in glTF's axes: y up, the front towards +z.

    Raises InputError for damaged documents, other versions of glTF, and required extensions that are not read.
    """
    _check_version(document)
    required = document.json.get("extensionsRequired", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise InputError(
            f"is damaged: extensionsRequired is {reprlib.repr(required)}, a list of names is needed"
        )
    if unknown := [name for name in required if not name.startswith(_READ_EXTENSIONS)]:
        raise InputError(
            f"needs glTF extensions that are not read: {', '.join(unknown)}", hint="export without"
        )
    return _Scene(document).parts()


def _check_version(document: Document) -> None:
    """Raise InputError unless the document is glTF 2 and asks for no later minor version (3.2)."""
    asset = as_object(document.json.get("asset"), "asset")
    version, least = asset.get("version"), asset.get("minVersion", "2.0")
    if not isinstance(version, str) or not re.fullmatch(r"2\.[0-9]+", version) or least != "2.0":
        raise InputError(
            f"is glTF of asset.version {reprlib.repr(version)}"
            + ("" if least == "2.0" else f" and minVersion {reprlib.repr(least)}")
            + ", only version 2.0 is read",
            hint="export as glTF 2.0",
        )


class _Node(NamedTuple):
    """A node that shows a mesh."""

    index: int
    node: dict[str, Any]


class _Scene:
    """The nodes of a document, with their world matrices and the joints of its skins."""

    def __init__(self, document: Document):
        self.document = document
        self.count = document.count("nodes")
        if self.count > MAX_NODES:
            raise InputError(f"has {self.count} nodes, more than {MAX_NODES}")
        self.nodes = [document.item("nodes", index) for index in range(self.count)]
        self.parents = _parents(self.nodes)
        self.world = self._world_from_nodes()
        self.joints: dict[int, np.ndarray] = {}
        self.reader = PrimitiveReader(document)

    def parts(self) -> list[Part]:
        """The surfaces of all visible nodes, in the coordinates of the scene."""
        parts, shown = [], list(self._shown_nodes())
        self._check_faces(shown)
        for node in shown:
            index = node.node["mesh"]
            mesh = self.document.item("meshes", index, f"nodes[{node.index}]")
            for primitive in self.reader.primitives(mesh, index, node.node):
                parts.append(self._placed(primitive, node))
        return parts

    def _check_faces(self, nodes: list[_Node]) -> None:
        """Raise InputError if accessors declare too many faces, counted once for every node and instance."""
        faces = 0
        for index, node in nodes:
            where = f"nodes[{index}]"
            mesh = self.document.item("meshes", node["mesh"], where)
            attributes = self._instance_attributes(node, where)
            copies = [
                whole(self.document.item("accessors", accessor, where), "count", f"accessors[{accessor}]")
                for accessor in (attributes or {}).values()
            ]
            faces += self.reader.declared_faces(mesh, node["mesh"]) * max(copies, default=1)
        if faces > MAX_FACES:
            raise InputError(
                f"has {faces} faces with all its copies, more than {MAX_FACES}", hint="simplify the mesh"
            )

    def _shown_nodes(self) -> Iterator[_Node]:
        """The visible nodes of the scene that have a mesh, in the order of the file."""
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
        """Root nodes of the default scene, else of the first scene; all nodes without a parent if there is no scene."""
        document = self.document
        if "scene" not in document.json and not document.count("scenes"):
            return [int(index) for index in np.flatnonzero(self.parents < 0)]
        scene = document.json.get("scene", 0)
        roots = document.item("scenes", scene).get("nodes", [])
        for root in roots if isinstance(roots, list) else [roots]:
            document.item("nodes", root, f"scenes[{scene}]")
        return list(roots)

    def _world_from_nodes(self) -> np.ndarray:
        """World-from-node matrices (n 4 4). Each node is visited once, after its parent."""
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
            with np.errstate(all="ignore"):  # overflow shows later as vertices that are not finite
                world[index] = local if parent < 0 else world[parent] @ local
            open_nodes += children[index]
        return world

    def _placed(self, primitive: Primitive, node: _Node) -> Part:
        """A primitive in the coordinates of the scene: deformed by its skin, or copied to its instances or its node."""
        where = f"nodes[{node.index}]"
        if "skin" in node.node:
            matrices, weighted = self._skin(primitive, node.node["skin"], where)
            return primitive.skinned(lambda rows: _blended(matrices, weighted, rows))
        matrices = self.world[node.index][None]
        attributes = self._instance_attributes(node.node, where)
        if attributes is not None:
            matrices = matrices @ self._instances(attributes, where)
        return primitive.instanced(matrices)

    def _joints(self, index: Any, where: str) -> np.ndarray:
        """Joint matrices (j 4 4) of a skin: world-from-joint times the inverse bind matrix."""
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
            if (np.abs(inverse[:, 3] - _LAST_ROW) > AFFINE_TOLERANCE).any():
                raise InputError(
                    f"is damaged: inverse bind matrices of {here} do not end with the row 0 0 0 1"
                )
            matrices = matrices @ inverse.astype(np.float64)
        self.joints[index] = matrices
        return matrices

    def _skin(
        self, primitive: Primitive, index: Any, where: str
    ) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Joint matrices of a skin, and pairs of joints (v) and weights (v) of every vertex.

        The transform of the skinned node itself is ignored (3.7.3).
        """
        matrices, weighted = self._joints(index, where), []
        for number_of_set in range(MAX_SKIN_SETS):
            joints = primitive.values.get(f"JOINTS_{number_of_set}")
            weights = primitive.values.get(f"WEIGHTS_{number_of_set}")
            if joints is None or weights is None:
                break
            if joints.ndim != 2 or joints.shape != weights.shape:
                raise InputError(f"is damaged: joints and weights of {primitive.where} differ in shape")
            for joint, weight in zip(joints.T.astype(np.int64), weights.T, strict=True):
                joint = np.where(weight == 0, 0, joint)
                if len(joint) and not 0 <= joint.min() <= joint.max() < len(matrices):
                    wrong = joint.max() if joint.min() >= 0 else joint.min()
                    raise InputError(f"is damaged: {primitive.where} names joint {wrong} of {len(matrices)}")
                weighted.append((joint, weight))
        if not any(weight.any() for _, weight in weighted):
            raise InputError(f"is damaged: {primitive.where} has a skin, but no joints and weights")
        return matrices, weighted

    def _instance_attributes(self, node: dict[str, Any], where: str) -> dict[str, Any] | None:
        """The accessors of a node's instances, by name; None for a node without."""
        extension = extensions_of(node, where).get("EXT_mesh_gpu_instancing")
        if extension is None or "skin" in node:
            return None
        attributes = as_object(extension, where).get("attributes")
        attributes = as_object(attributes, f"{where}.EXT_mesh_gpu_instancing.attributes")
        return {name: attributes[name] for name in _TRS if name in attributes}

    def _instances(self, attributes: dict[str, Any], where: str) -> np.ndarray:
        """Node-from-instance matrices (n 4 4) of EXT_mesh_gpu_instancing."""
        values = {name: self.document.accessor(index, where) for name, index in attributes.items()}
        counts = {len(array) for array in values.values()}
        if len(counts) != 1 or any(
            array.ndim != 2 or array.shape[1] != _TRS[n] for n, array in values.items()
        ):
            raise InputError(f"is damaged: the instances of {where} differ in number or have no TRANSLATION")
        count = counts.pop()
        move = values.get("TRANSLATION", np.zeros((count, 3)))
        turn = values.get("ROTATION", np.tile([0.0, 0.0, 0.0, 1.0], (count, 1)))
        scale = values.get("SCALE", np.ones((count, 3)))
        return _trs(move.astype(np.float64), turn.astype(np.float64), scale.astype(np.float64), where)


def _parents(nodes: list[dict[str, Any]]) -> np.ndarray:
    """The parent of each node, -1 for roots.

    Raises InputError unless the nodes form trees: at most one parent each, and no cycle.
    """
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
    for _ in range(len(nodes).bit_length()):  # each round doubles how many generations up `ancestors` points
        ancestors = np.where(ancestors >= 0, ancestors[ancestors], -1)
    if (ancestors >= 0).any():
        raise InputError(
            f"is damaged: nodes[{int(np.argmax(ancestors >= 0))}] is among its own descendants, or below such a node"
        )
    return parents


def _blended(matrices: np.ndarray, weighted: list[tuple[np.ndarray, np.ndarray]], rows: slice) -> np.ndarray:
    """Linear blend skinning: the weighted joint matrix of some vertices (v 4 4)."""
    total = sum(weight[rows] for _, weight in weighted)
    blended = sum(weight[rows, None, None] * matrices[joint[rows]] for joint, weight in weighted)
    blended = blended / np.where(total > 0, total, 1.0)[:, None, None]
    blended[total <= 0] = matrices[0]
    return blended


def _local_matrix(node: dict[str, Any], where: str) -> np.ndarray:
    """Parent-from-node matrix (4 4), from `matrix` or from translation, rotation and scale (3.5.3)."""
    if "matrix" in node:
        matrix = numbers(node, "matrix", where, [0.0] * 16).reshape(4, 4).T
        if np.abs(matrix[3] - _LAST_ROW).max() > AFFINE_TOLERANCE:
            raise InputError(
                f"is damaged: {where}.matrix must end with the row 0 0 0 1, got {matrix[3].tolist()}",
                hint="matrices are stored column by column, so these are every fourth number",
            )
        return matrix
    move = numbers(node, "translation", where, [0.0] * 3)
    turn = numbers(node, "rotation", where, [0.0, 0.0, 0.0, 1.0])
    scale = numbers(node, "scale", where, [1.0] * 3)
    return _trs(move[None], turn[None], scale[None], where)[0]


def _trs(move: np.ndarray, turn: np.ndarray, scale: np.ndarray, where: str) -> np.ndarray:
    """Matrices (n 4 4) of translations (n 3), quaternions x y z w (n 4) and scales (n 3).

    Quaternions are brought to length 1. Raises InputError for those that are far from it, as all zeros.
    """
    low, high = QUATERNION_LENGTHS
    largest = np.abs(turn).max(axis=1, initial=0.0)
    if not ((largest >= low) & (largest <= high)).all():  # also refuses NaN
        raise InputError(f"is damaged: a rotation of {where} is no quaternion of length 1")
    x, y, z, w = (turn / np.linalg.norm(turn, axis=1, keepdims=True)).T
    matrices = np.zeros((len(move), 4, 4))
    matrices[:, :3, :3] = quaternion_rotations(np.stack([w, x, y, z], axis=-1)) * scale[:, None]
    matrices[:, :3, 3], matrices[:, 3, 3] = move, 1.0
    return matrices
