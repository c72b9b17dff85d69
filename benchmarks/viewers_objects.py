"""Twelve GLBs that together use what glTF 2.0 and its usual extensions have to say about shape and base colour.

They are made here, by hand as it were, so that reader and writer of the package have no part in them. No file is
symmetric, so that a turn or a mirror shows.
"""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LINEAR, NEAREST, MIPMAPS = 9729, 9728, 9987
REPEAT, CLAMP, MIRROR = 10497, 33071, 33648
COMPONENT_TYPES = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
KINDS = {(): "SCALAR", (2,): "VEC2", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
TEXTURE_SIDE = 128


def write_objects(folder: Path) -> list[Path]:
    """Writes <name>.glb for each of OBJECTS; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in OBJECTS.items():
        gltf = Gltf()
        make(gltf)
        (folder / f"{name}.glb").write_bytes(gltf.packed())
    return [folder / f"{name}.glb" for name in OBJECTS]


class Gltf:
    """A GLB that grows: every method adds something and returns its number."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}
        self.binary = bytearray()

    def add(self, kind: str, item: dict[str, Any]) -> int:
        items = self.document.setdefault(kind, [])
        items.append({key: value for key, value in item.items() if value is not None})
        return len(items) - 1

    def uses(self, extension: str, required: bool = False) -> None:
        for key in ("extensionsUsed", *(["extensionsRequired"] if required else [])):
            names = self.document.setdefault(key, [])
            names += [extension] if extension not in names else []

    def view(self, data: bytes, **more: Any) -> int:
        self.binary += bytes(-len(self.binary) % 4)
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data), **more}
        self.binary += data
        return self.add("bufferViews", view)

    def accessor(self, values: np.ndarray, target: int | None = 34962, **more: Any) -> int:
        """Rows of any type; vertices start at multiples of four bytes."""
        row = values[0].nbytes
        stride = -(-row // 4) * 4
        data = b"".join(item.tobytes() + bytes(stride - row) for item in values)
        layout: dict[str, Any] = {} if target is None else {"target": target}
        if target != 34962:
            data = values.tobytes()
        elif stride != row:
            layout["byteStride"] = stride
        return self.add("accessors", {"bufferView": self.view(data, **layout), **_described(values), **more})

    def picture(
        self, pixels: np.ndarray, wrap: tuple[int, int] = (REPEAT, REPEAT), filters=(LINEAR, MIPMAPS)
    ) -> int:
        """A texture of uint8 pixels (h w 3 or 4)."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        image = self.add("images", {"bufferView": self.view(buffer.getvalue()), "mimeType": "image/png"})
        return self.texture(image, wrap, filters)

    def texture(self, image: int, wrap: tuple[int, int], filters=(LINEAR, MIPMAPS)) -> int:
        sampler = dict(zip(("magFilter", "minFilter", "wrapS", "wrapT"), (*filters, *wrap), strict=True))
        return self.add("textures", {"source": image, "sampler": self.add("samplers", sampler)})

    def material(self, factor=None, texture: dict[str, Any] | None = None, **more: Any) -> int:
        base = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        base |= {} if factor is None else {"baseColorFactor": list(factor)}
        base |= {} if texture is None else {"baseColorTexture": texture}
        return self.add("materials", {"pbrMetallicRoughness": base, **more})

    def primitive(self, shape: "Shape", material: int | None = None, **attributes: Any) -> dict[str, Any]:
        """A surface with normals and texture coordinates as floats, unless other accessors are given for them."""
        own = {"POSITION": shape.positions, "NORMAL": shape.normals, "TEXCOORD_0": shape.uv}
        named: dict[str, int] = {}
        for name, values in own.items():
            if name not in attributes:
                bounds = _bounds(values) if name == "POSITION" else {}
                named[name] = self.accessor(values.astype("f4"), **bounds)
        named |= {name: number for name, number in attributes.items() if number is not None}
        indices = self.accessor(shape.indices.astype("u2").reshape(-1), 34963)
        primitive = {"attributes": named, "indices": indices, "mode": shape.mode}
        return primitive if material is None else primitive | {"material": material}

    def place(self, primitives: list[dict[str, Any]], mesh: dict[str, Any] | None = None, **node: Any) -> int:
        """A node of the scene with a mesh of these surfaces."""
        return self.root(mesh=self.add("meshes", {"primitives": primitives, **(mesh or {})}), **node)

    def root(self, **node: Any) -> int:
        self.document["scenes"][0]["nodes"].append(number := self.add("nodes", node))
        return number

    def packed(self) -> bytes:
        self.binary += bytes(-len(self.binary) % 4)
        self.document["buffers"] = [{"byteLength": len(self.binary)}]
        text = json.dumps(self.document).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        chunks += struct.pack("<I4s", len(self.binary), b"BIN\0") + self.binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _described(values: np.ndarray) -> dict[str, Any]:
    kind = values.dtype.str[1:]
    return {"componentType": COMPONENT_TYPES[kind], "count": len(values), "type": KINDS[values.shape[1:]]}


def _bounds(values: np.ndarray) -> dict[str, Any]:
    values = values.astype("f4") if values.dtype.kind == "f" else values
    return {"min": values.min(0).tolist(), "max": values.max(0).tolist()}


class Shape:
    """Positions, normals and texture coordinates of vertices (glTF's: v downwards), and triangles over them."""

    def __init__(self, positions, normals, uv, indices, mode: int = 4) -> None:
        self.positions, self.normals, self.uv = (np.asarray(x, np.float64) for x in (positions, normals, uv))
        self.indices, self.mode = np.asarray(indices), mode

    def moved(self, shift, scale=1.0) -> "Shape":
        return Shape(self.positions * scale + shift, self.normals, self.uv, self.indices, self.mode)

    def with_uv(self, scale, shift) -> "Shape":
        return Shape(self.positions, self.normals, self.uv * scale + shift, self.indices, self.mode)


def box(x: float = 1.0, y: float = 1.0, z: float = 1.0) -> Shape:
    """A box of these sides; each side has the whole picture."""
    positions, normals, uv, indices = [], [], [], []
    corners = np.array(
        [[-1, 1], [1, 1], [1, -1], [-1, -1]]
    )  # across and up of the picture's corners from (0, 0) on
    for axis in range(3):
        for sign in (1, -1):
            outwards, up = np.zeros(3), np.zeros(3)
            outwards[axis] = sign
            up[2 if axis == 1 else 1] = 1
            across = np.cross(up, outwards)
            indices += [[len(positions) + i for i in face] for face in ((0, 3, 2), (0, 2, 1))]
            positions += [0.5 * (outwards + a * across + b * up) * [x, y, z] for a, b in corners]
            normals += [outwards] * 4
            uv += [[(a + 1) / 2, (1 - b) / 2] for a, b in corners]
    return Shape(positions, normals, uv, indices)


def ball(radius: float = 0.5, rows: int = 24) -> Shape:
    """A ball round which the picture goes once."""
    columns = 2 * rows
    row, column = (
        grid.ravel() for grid in np.meshgrid(np.arange(rows + 1), np.arange(columns + 1), indexing="ij")
    )
    down, round_ = np.pi * row / rows, 2 * np.pi * column / columns
    outwards = np.stack([np.sin(down) * np.sin(round_), np.cos(down), np.sin(down) * np.cos(round_)], 1)
    first = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).ravel()
    below = first + columns + 1
    faces = np.concatenate(
        [np.stack([first, below, below + 1], 1), np.stack([first, below + 1, first + 1], 1)]
    )
    areas = np.linalg.norm(np.cross(*(outwards[faces[:, i]] - outwards[faces[:, 0]] for i in (1, 2))), axis=1)
    uv = np.stack([column / columns, row / rows], 1)
    return Shape(radius * outwards, outwards, uv, faces[areas > 1e-9])


def paint(seed: int, blocks: int = 8, side: int = TEXTURE_SIDE) -> np.ndarray:
    """A picture of coloured blocks, each with a gradient from its left to its right."""
    colors = np.random.default_rng(seed).integers(20, 236, (blocks, blocks, 3))
    picture = np.repeat(np.repeat(colors, side // blocks, 0), side // blocks, 1)
    across = np.tile(np.linspace(-20, 19, side // blocks), blocks)[None, :, None]
    return np.clip(picture + across, 0, 255).astype(np.uint8)


def gradient(shape: Shape, seed: int, channels: int = 3) -> np.ndarray:
    """Colours in [0, 1] that change linearly over the shape; a fourth channel is 1."""
    directions = np.random.default_rng(seed).uniform(-1, 1, (3, 3))
    values = shape.positions @ directions
    values = (values - values.min(0)) / np.ptp(values, axis=0)
    return np.pad(values, ((0, 0), (0, channels - 3)), constant_values=1.0)


def factors(gltf: Gltf) -> None:
    """Factors in linear light with and without pictures, several of both; mirrored and instanced nodes."""
    first, second = gltf.picture(paint(1)), gltf.picture(paint(2, 4))
    painted = gltf.material([0.8, 0.4, 0.2, 1.0], {"index": first})
    bare = gltf.material([0.5, 0.25, 0.0625, 1.0])
    gltf.place(
        [gltf.primitive(box(1.2, 0.8, 0.5), painted), gltf.primitive(ball(0.3).moved([0, 0.7, 0]), bare)]
    )
    mesh = gltf.add(
        "meshes", {"primitives": [gltf.primitive(box(0.4, 0.5, 0.3), gltf.material(None, {"index": second}))]}
    )
    half = float(np.sqrt(0.5))
    gltf.root(mesh=mesh, translation=[1.0, -0.2, 0.3], scale=[-1.0, 1.5, 1.0])
    gltf.root(mesh=mesh, translation=[-1.0, 0.2, 0.0], rotation=[0.0, half, 0.0, half])
    gltf.uses("EXT_mesh_gpu_instancing", required=True)
    places = np.array([[0, -0.9, 0.4], [0.5, -0.8, -0.5], [-0.6, -0.9, 0]], "f4")
    turns = np.array([[0, 0, 0, 1], [0, half, 0, half], [half, 0, 0, half]], "f4")
    sizes = np.array([[1, 1, 1], [0.5, 1, 0.5], [1, 0.5, 0.7]], "f4")
    copies = {
        name: gltf.accessor(values, None)
        for name, values in (("TRANSLATION", places), ("ROTATION", turns), ("SCALE", sizes))
    }
    gltf.root(mesh=mesh, extensions={"EXT_mesh_gpu_instancing": {"attributes": copies}})


def colors(gltf: Gltf) -> None:
    """COLOR_0 of 8 and 16 bits and floats, with and without alpha, times factors and pictures, and with no material."""
    parts = [ball(0.5).moved([-0.7, 0.4, 0]), box(0.9, 0.7, 0.6).moved([0.5, 0.4, 0.2])]
    parts += [ball(0.4).moved([0.6, -0.6, 0]), box(0.7, 0.5, 0.4).moved([-0.5, -0.6, 0.1])]
    eight = np.round(255 * gradient(parts[0], 1, 4)).astype("u1")
    sixteen = np.round(65535 * gradient(parts[1], 2)).astype("u2")
    real, four = gradient(parts[2], 3).astype("f4"), gradient(parts[3], 4, 4).astype("f4")
    painted = gltf.material([1.0, 0.9, 0.8, 1.0], {"index": gltf.picture(paint(3))})
    gltf.place(
        [
            gltf.primitive(
                parts[0], gltf.material([0.9, 1.0, 0.5, 1.0]), COLOR_0=gltf.accessor(eight, normalized=True)
            ),
            gltf.primitive(parts[1], None, COLOR_0=gltf.accessor(sixteen, normalized=True)),
            gltf.primitive(parts[2], painted, COLOR_0=gltf.accessor(real)),
            gltf.primitive(parts[3], gltf.material(), COLOR_0=gltf.accessor(four)),
        ]
    )


def transforms(gltf: Gltf) -> None:
    """KHR_texture_transform with rotation, several over one picture, one that chooses other coordinates."""
    gltf.uses("KHR_texture_transform", required=True)
    texture = gltf.picture(paint(4))
    ways = [
        {"offset": [0.25, 0.5], "scale": [0.5, 0.25]},
        {"rotation": 0.6, "offset": [0.1, 0.3], "scale": [0.7, 0.4]},
        {"rotation": -1.2, "scale": [-1.0, 0.5], "texCoord": 1},
    ]
    shapes = [
        box(0.8, 0.9, 0.5).moved([-0.6, 0, 0]),
        box(0.7, 0.6, 0.8).moved([0.6, 0.3, 0]),
        ball(0.35).moved([0.5, -0.5, 0.1]),
    ]
    primitives = []
    for way, shape in zip(ways, shapes, strict=True):
        info = {"index": texture, "extensions": {"KHR_texture_transform": way}}
        more = {}
        if "texCoord" in way:
            more["TEXCOORD_1"] = gltf.accessor((shape.uv * [0.5, 1.0] + [0.2, 0.1]).astype("f4"))
        primitives.append(gltf.primitive(shape, gltf.material(None, info), **more))
    gltf.place(primitives, rotation=[0.0, 0.2588190451, 0.0, 0.9659258263])


def wraps(gltf: Gltf) -> None:
    """Beyond the edges of a picture: repeated, mirrored, clamped, and one along u and another along v."""
    picture = gltf.picture(paint(5, 4), (REPEAT, REPEAT), (LINEAR, LINEAR))
    pairs = [(REPEAT, REPEAT), (MIRROR, MIRROR), (CLAMP, CLAMP), (REPEAT, MIRROR), (CLAMP, REPEAT)]
    primitives = []
    for number, wrap in enumerate(pairs):
        texture = picture if wrap == (REPEAT, REPEAT) else gltf.texture(0, wrap, (LINEAR, LINEAR))
        shape = box(0.7, 0.8, 0.6).with_uv([2.5, 1.8], [-0.8, -0.3])
        where = [0.5 * np.sin(1.3 * number), 0.4 * number - 0.8, 0.5 * np.cos(1.3 * number)]
        primitives.append(gltf.primitive(shape.moved(where, 0.8), gltf.material(None, {"index": texture})))
    gltf.place(primitives)


def coordinates(gltf: Gltf) -> None:
    """Second texture coordinates, normalized ones of 8 and 16 bits, hard texels, strips, fans and no indices."""
    texture = gltf.picture(paint(6))
    hard = gltf.picture(paint(7, 8, 8), (CLAMP, CLAMP), (NEAREST, NEAREST))
    one, two, three = (
        box(0.8, 0.6, 0.6).moved([-0.5, 0.3, 0]),
        ball(0.4).moved([0.5, 0.3, 0]),
        box(0.5, 0.5, 0.7).moved([-0.3, -0.5, 0]),
    )
    second = np.round(65535 * (one.uv * [0.4, 0.6] + [0.3, 0.2])).astype("u2")
    primitives = [
        gltf.primitive(
            one,
            gltf.material(None, {"index": texture, "texCoord": 1}),
            TEXCOORD_1=gltf.accessor(second, normalized=True),
        ),
        gltf.primitive(
            two,
            gltf.material(None, {"index": texture}),
            TEXCOORD_0=gltf.accessor(np.round(65535 * two.uv).astype("u2"), normalized=True),
        ),
        gltf.primitive(
            three,
            gltf.material(None, {"index": hard}),
            TEXCOORD_0=gltf.accessor(np.round(255 * three.uv).astype("u1"), normalized=True),
        ),
    ]
    wave = np.array([[0.1 * i, 0.12 * (i % 2), 0.05 * np.sin(i)] for i in range(12)]) + [0.2, -0.7, 0.3]
    strip = Shape(wave, [[0, 0, 1.0]] * 12, wave[:, :2], np.arange(12), mode=5)
    turn = np.linspace(0, 2 * np.pi, 9)
    wheel = np.concatenate([[[0, 0, 0.1]], np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)]) * 0.3 + [
        0.8,
        -0.4,
        0.3,
    ]
    fan = Shape(wheel, [[0, 0, 1.0]] * 10, wheel[:, :2], np.arange(10), mode=6)
    both = gltf.material([0.1, 0.5, 0.9, 1.0], None, doubleSided=True)
    primitives += [gltf.primitive(strip, both), gltf.primitive(fan, both)]
    plain = box(0.3, 0.3, 0.3).moved([-0.9, -0.6, 0.2])
    corner = plain.indices.ravel()
    plain = Shape(plain.positions[corner], plain.normals[corner], plain.uv[corner], np.arange(36))
    unindexed = gltf.primitive(plain, gltf.material([0.7, 0.1, 0.3, 1.0], {"index": texture}))
    del unindexed["indices"]
    gltf.document["accessors"].pop()
    gltf.document["bufferViews"].pop()
    gltf.place([*primitives, unindexed])


def quantized(gltf: Gltf) -> None:
    """KHR_mesh_quantization: short positions under a node's scale, byte normals, raw short texture coordinates."""
    gltf.uses("KHR_mesh_quantization", required=True)
    gltf.uses("KHR_texture_transform", required=True)
    shape, other = box(1.0, 0.6, 0.8), ball(0.4)
    grey = gltf.picture(paint(8), (CLAMP, CLAMP))
    dequantized = {"KHR_texture_transform": {"scale": [1 / 4095, 1 / 4095]}}
    positions = np.round(32767 * shape.positions).astype("i2")
    primitive = gltf.primitive(
        shape,
        gltf.material(None, {"index": grey, "extensions": dequantized}),
        POSITION=gltf.accessor(positions, normalized=True, **_bounds(positions)),
        NORMAL=gltf.accessor(np.round(127 * shape.normals).astype("i1"), normalized=True),
        TEXCOORD_0=gltf.accessor(np.round(4095 * shape.uv).astype("u2")),
    )
    gltf.place([primitive], scale=[0.9, 1.1, 1.0], translation=[-0.3, 0.0, 0.0])
    raw = np.round(1000 * other.positions + 500).astype("u2")
    primitive = gltf.primitive(
        other,
        gltf.material([0.9, 0.8, 1.0, 1.0], {"index": grey}),
        POSITION=gltf.accessor(raw, **_bounds(raw)),
        NORMAL=gltf.accessor(np.round(32767 * other.normals).astype("i2"), normalized=True),
        COLOR_0=gltf.accessor(np.round(255 * gradient(other, 5)).astype("u1"), normalized=True),
    )
    gltf.place([primitive], scale=[1e-3] * 3, translation=[0.2, -0.2, -0.1])


def morphs(gltf: Gltf) -> None:
    """Morph targets at the mesh's weights and at a node's own; sparse accessors over values and over nothing."""
    shape = ball(0.5)
    texture = gltf.material(None, {"index": gltf.picture(paint(9))})
    lifted = np.flatnonzero(shape.positions[:, 1] > 0.2)
    raised = {
        "POSITION": _sparse(gltf, len(shape.positions), lifted, np.tile([0.0, 0.6, 0.0], (len(lifted), 1)))
    }
    widened = {
        "POSITION": gltf.accessor(pulled := (shape.positions * [1.0, 0, 0.3]).astype("f4"), **_bounds(pulled))
    }
    dent = np.flatnonzero(shape.positions[:, 2] > 0.35)
    flat = shape.positions.copy()
    flat[dent, 2] = 0.35
    base = gltf.accessor(shape.positions.astype("f4"), **_bounds(flat))
    gltf.document["accessors"][base]["sparse"] = _sparse_values(gltf, dent, flat[dent])
    primitive = gltf.primitive(shape, texture, POSITION=base) | {"targets": [raised, widened]}
    mesh = gltf.add("meshes", {"primitives": [primitive], "weights": [0.7, 0.2]})
    gltf.root(mesh=mesh, translation=[-0.6, 0.0, 0.0])
    gltf.root(mesh=mesh, translation=[0.7, 0.1, 0.2], weights=[0.0, 0.5])


def _sparse(gltf: Gltf, count: int, where: np.ndarray, values: np.ndarray) -> int:
    """An accessor that is zero but for some rows."""
    whole = np.zeros((count, 3), "f4")
    whole[where] = values
    accessor = {**_described(whole), **_bounds(whole), "sparse": _sparse_values(gltf, where, values)}
    return gltf.add("accessors", accessor)


def _sparse_values(gltf: Gltf, where: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    indices = {"bufferView": gltf.view(where.astype("u2").tobytes()), "componentType": 5123}
    return {
        "count": len(where),
        "indices": indices,
        "values": {"bufferView": gltf.view(values.astype("f4").tobytes())},
    }


def skin(gltf: Gltf) -> None:
    """A pole of two joints, bent by them, whose own node is moved in vain; something that the upper joint holds."""
    texture = gltf.picture(paint(10))
    rings = 13
    pole = Shape(
        [
            [0.2 * a, y, 0.2 * b]
            for y in np.linspace(0, 2, rings)
            for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1))
        ],
        [
            [a * 0.70710678, 0, b * 0.70710678]
            for _ in range(rings)
            for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1))
        ],
        [[k / 4, y] for y in np.linspace(0, 1, rings) for k in range(5)],
        [
            face
            for ring in range(rings - 1)
            for k in range(4)
            for i in [5 * ring + k]
            for face in ([i, i + 1, i + 6], [i, i + 6, i + 5])
        ],
    )
    upper = np.clip(pole.positions[:, 1] - 0.5, 0, 1)
    weights = np.stack([1 - upper, upper, 0 * upper, 0 * upper], 1).astype("f4")
    joints = np.tile(np.array([0, 1, 0, 0], "u1"), (len(weights), 1))
    joints[weights[:, 1] == 0] = 0
    primitive = gltf.primitive(
        pole,
        gltf.material(None, {"index": texture}, doubleSided=True),
        JOINTS_0=gltf.accessor(joints),
        WEIGHTS_0=gltf.accessor(weights),
    )
    mesh = gltf.add("meshes", {"primitives": [primitive]})
    held = gltf.add(
        "meshes", {"primitives": [gltf.primitive(box(0.5, 0.3, 0.6), gltf.material([0.2, 0.7, 0.1, 1.0]))]}
    )
    prop = gltf.add("nodes", {"mesh": held, "translation": [0.1, 1.0, 0.0]})
    bent = [0.0, 0.0, -float(np.sin(0.4)), float(np.cos(0.4))]
    elbow = gltf.add("nodes", {"translation": [0.0, 1.0, 0.0], "rotation": bent, "children": [prop]})
    foot = gltf.add(
        "nodes",
        {"rotation": [0.0, 0.3826834324, 0.0, 0.9238795325], "children": [elbow]},
    )
    inverse = np.stack([np.eye(4), np.eye(4)]).astype("f4")
    inverse[1, 3, 1] = -1.0  # columns: a move down by 1
    rig = gltf.add("skins", {"joints": [foot, elbow], "inverseBindMatrices": gltf.accessor(inverse, None)})
    armature = gltf.root(children=[foot])
    gltf.document["nodes"][armature]["translation"] = [0.3, -0.2, 0.1]
    gltf.root(mesh=mesh, skin=rig, translation=[5.0, 5.0, 5.0])


def holes(gltf: Gltf) -> None:
    """alphaMode MASK by pictures and by factors, with cutoffs; opaque surfaces whose alpha means nothing."""
    picture = paint(11)
    row, column = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE] - TEXTURE_SIDE / 2 + 0.5
    alpha = np.clip(128 + 8 * (np.hypot(row + 10, column) - 30), 0, 255)
    cut = np.dstack([picture, alpha]).astype(np.uint8)
    texture = gltf.picture(cut)
    gltf.place(
        [
            gltf.primitive(
                box(1.0, 1.0, 1.0),
                gltf.material(None, {"index": texture}, alphaMode="MASK", doubleSided=True),
            ),
            gltf.primitive(ball(0.3), gltf.material([0.9, 0.1, 0.05, 1.0])),
            gltf.primitive(
                box(0.5, 0.4, 0.5).moved([0.9, -0.2, 0.1]), gltf.material([1, 1, 1, 0.1], {"index": texture})
            ),
            gltf.primitive(
                box(0.4, 0.5, 0.5).moved([-0.9, 0.2, 0.1]),
                gltf.material(
                    [1, 1, 1, 0.8], {"index": texture}, alphaMode="MASK", alphaCutoff=0.7, doubleSided=True
                ),
            ),
        ]
    )


def shells(gltf: Gltf) -> None:
    """alphaMode BLEND: a shell that is nearly invisible, one that is invisible, and patches that nearly hide."""
    picture = np.dstack(
        [paint(12), np.where(np.arange(TEXTURE_SIDE)[:, None] < 50, 26, 255) * np.ones((1, TEXTURE_SIDE))]
    )
    gltf.place(
        [
            gltf.primitive(box(0.7, 0.5, 0.6), gltf.material(None, {"index": gltf.picture(paint(13))})),
            gltf.primitive(
                box(1.0, 0.8, 0.9), gltf.material([0.2, 0.4, 1.0, 0.1], alphaMode="BLEND", doubleSided=True)
            ),
            gltf.primitive(ball(0.75), gltf.material([1, 1, 1, 0.0], alphaMode="BLEND", doubleSided=True)),
        ]
    )
    patched = gltf.material(
        None, {"index": gltf.picture(picture.astype(np.uint8))}, alphaMode="BLEND", doubleSided=True
    )
    gltf.place(
        [
            gltf.primitive(ball(0.3), patched),
            gltf.primitive(box(0.2, 0.4, 0.2), gltf.material([0.8, 0.6, 0.0, 1.0])),
        ],
        translation=[0.9, 0.2, 0.0],
    )


def glow(gltf: Gltf) -> None:
    """Emission where the base is black, with a picture and by a factor; KHR_materials_unlit; no colour at all."""
    gltf.uses("KHR_materials_unlit")
    shining = gltf.material(
        [0, 0, 0, 1], None, emissiveFactor=[1.0, 0.8, 0.6], emissiveTexture={"index": gltf.picture(paint(14))}
    )
    lamp = gltf.material([0, 0, 0, 1], None, emissiveFactor=[0.2, 0.05, 0.5])
    unlit = gltf.material(
        [0.6, 1.0, 0.7, 1.0], {"index": gltf.picture(paint(15))}, extensions={"KHR_materials_unlit": {}}
    )
    gltf.place(
        [
            gltf.primitive(box(0.8, 0.6, 0.7).moved([-0.5, 0.2, 0]), shining),
            gltf.primitive(ball(0.3).moved([0.5, 0.5, 0]), lamp),
            gltf.primitive(ball(0.4).moved([0.5, -0.3, 0.2]), unlit),
            gltf.primitive(box(0.4, 0.3, 0.5).moved([-0.4, -0.5, 0]), None),
        ]
    )


def specular(gltf: Gltf) -> None:
    """KHR_materials_pbrSpecularGlossiness: the diffuse picture and factor, beside what metallic roughness would say."""
    gltf.uses("KHR_materials_pbrSpecularGlossiness")
    diffuse, plain = gltf.picture(paint(16)), gltf.picture(paint(17))

    def surface(**values: Any) -> int:
        return gltf.material(
            extensions={"KHR_materials_pbrSpecularGlossiness": {"specularFactor": [0, 0, 0], **values}}
        )

    gltf.place(
        [
            gltf.primitive(
                box(0.9, 0.7, 0.5).moved([-0.4, 0, 0]),
                surface(diffuseFactor=[0.5, 0.9, 0.7, 1.0], diffuseTexture={"index": diffuse}),
            ),
            gltf.primitive(ball(0.35).moved([0.5, 0.2, 0]), surface(diffuseFactor=[0.7, 0.2, 0.1, 1.0])),
            gltf.primitive(box(0.4, 0.3, 0.6).moved([0.4, -0.5, 0]), gltf.material(None, {"index": plain})),
        ]
    )


OBJECTS: dict[str, Callable[[Gltf], None]] = {
    make.__name__: make
    for make in (
        factors, colors, transforms, wraps, coordinates, quantized, morphs, skin, holes, shells, glow, specular
    )
}  # fmt: skip
