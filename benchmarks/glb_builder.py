"""GLB files built by hand, without the package's own reader and writer; and the shapes to put into them."""

import io
import json
import struct
from typing import Any

import numpy as np
from PIL import Image

LINEAR, NEAREST, MIPMAPS = 9729, 9728, 9987
REPEAT, CLAMP, MIRROR = 10497, 33071, 33648
COMPONENT_TYPES = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
KINDS = {(): "SCALAR", (2,): "VEC2", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
TEXTURE_SIDE = 128


class Gltf:
    """A GLB under construction: every method adds an object of the document and returns its index."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}
        self.binary = bytearray()

    def add(self, kind: str, item: dict[str, Any]) -> int:
        """An object of a kind (nodes, meshes, ...), without the entries that are None."""
        items = self.document.setdefault(kind, [])
        items.append({key: value for key, value in item.items() if value is not None})
        return len(items) - 1

    def uses(self, extension: str, required: bool = False) -> None:
        """List an extension as used, and as required if so."""
        for key in ("extensionsUsed", *(["extensionsRequired"] if required else [])):
            names = self.document.setdefault(key, [])
            names += [extension] if extension not in names else []

    def view(self, data: bytes, **more: Any) -> int:
        """A buffer view of new bytes."""
        self.binary += bytes(-len(self.binary) % 4)
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data), **more}
        self.binary += data
        return self.add("bufferViews", view)

    def accessor(self, values: np.ndarray, target: int | None = 34962, **more: Any) -> int:
        """An accessor of rows; those of vertices are padded to multiples of four bytes, as glTF requires."""
        row = values[0].nbytes
        stride = -(-row // 4) * 4
        data = b"".join(item.tobytes() + bytes(stride - row) for item in values)
        layout: dict[str, Any] = {} if target is None else {"target": target}
        if target != 34962:
            data = values.tobytes()
        elif stride != row:
            layout["byteStride"] = stride
        return self.add("accessors", {"bufferView": self.view(data, **layout), **described(values), **more})

    def picture(
        self, pixels: np.ndarray, wrap: tuple[int, int] = (REPEAT, REPEAT), filters=(LINEAR, MIPMAPS)
    ) -> int:
        """A texture of uint8 pixels (h w 3 or 4)."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        image = self.add("images", {"bufferView": self.view(buffer.getvalue()), "mimeType": "image/png"})
        return self.texture(image, wrap, filters)

    def texture(self, image: int, wrap: tuple[int, int], filters=(LINEAR, MIPMAPS)) -> int:
        """A texture of an image, with a sampler of its own."""
        sampler = dict(zip(("magFilter", "minFilter", "wrapS", "wrapT"), (*filters, *wrap), strict=True))
        return self.add("textures", {"source": image, "sampler": self.add("samplers", sampler)})

    def material(self, factor=None, texture: dict[str, Any] | None = None, **more: Any) -> int:
        """A diffuse material with a base colour factor and a textureInfo."""
        base = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        base |= {} if factor is None else {"baseColorFactor": list(factor)}
        base |= {} if texture is None else {"baseColorTexture": texture}
        return self.add("materials", {"pbrMetallicRoughness": base, **more})

    def primitive(self, shape: "Shape", material: int | None = None, **attributes: Any) -> dict[str, Any]:
        """A primitive (not yet part of a mesh). Attributes are floats unless accessors are given for them by name."""
        own = {"POSITION": shape.positions, "NORMAL": shape.normals, "TEXCOORD_0": shape.uv}
        named: dict[str, int] = {}
        for name, values in own.items():
            if name not in attributes:
                limits = bounds(values) if name == "POSITION" else {}
                named[name] = self.accessor(values.astype("f4"), **limits)
        named |= {name: number for name, number in attributes.items() if number is not None}
        indices = self.accessor(shape.indices.astype("u2").reshape(-1), 34963)
        primitive = {"attributes": named, "indices": indices, "mode": shape.mode}
        return primitive if material is None else primitive | {"material": material}

    def place(self, primitives: list[dict[str, Any]], mesh: dict[str, Any] | None = None, **node: Any) -> int:
        """A root node with a mesh of these primitives."""
        return self.root(mesh=self.add("meshes", {"primitives": primitives, **(mesh or {})}), **node)

    def root(self, **node: Any) -> int:
        """A root node of the scene."""
        self.document["scenes"][0]["nodes"].append(number := self.add("nodes", node))
        return number

    def packed(self) -> bytes:
        """The content of the .glb file."""
        self.binary += bytes(-len(self.binary) % 4)
        self.document["buffers"] = [{"byteLength": len(self.binary)}]
        text = json.dumps(self.document).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        chunks += struct.pack("<I4s", len(self.binary), b"BIN\0") + self.binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def described(values: np.ndarray) -> dict[str, Any]:
    """Component type, count and type of an accessor."""
    kind = values.dtype.str[1:]
    return {"componentType": COMPONENT_TYPES[kind], "count": len(values), "type": KINDS[values.shape[1:]]}


def bounds(values: np.ndarray) -> dict[str, Any]:
    """The min and max that accessors of positions need."""
    values = values.astype("f4") if values.dtype.kind == "f" else values
    return {"min": values.min(0).tolist(), "max": values.max(0).tolist()}


def sparse(gltf: Gltf, count: int, where: np.ndarray, values: np.ndarray) -> int:
    """A sparse accessor of zeros with some rows replaced."""
    whole = np.zeros((count, 3), "f4")
    whole[where] = values
    accessor = {**described(whole), **bounds(whole), "sparse": sparse_values(gltf, where, values)}
    return gltf.add("accessors", accessor)


def sparse_values(gltf: Gltf, where: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """The `sparse` entry of an accessor that replaces some rows."""
    indices = {"bufferView": gltf.view(where.astype("u2").tobytes()), "componentType": 5123}
    return {
        "count": len(where),
        "indices": indices,
        "values": {"bufferView": gltf.view(values.astype("f4").tobytes())},
    }


class Shape:
    """Positions, normals and texture coordinates of vertices (glTF's: v downwards), and triangles over them."""

    def __init__(self, positions, normals, uv, indices, mode: int = 4) -> None:
        self.positions, self.normals, self.uv = (np.asarray(x, np.float64) for x in (positions, normals, uv))
        self.indices, self.mode = np.asarray(indices), mode

    def moved(self, shift, scale=1.0) -> "Shape":
        """The same shape, scaled and then shifted."""
        return Shape(self.positions * scale + shift, self.normals, self.uv, self.indices, self.mode)

    def with_uv(self, scale, shift) -> "Shape":
        """The same shape with texture coordinates scaled and then shifted."""
        return Shape(self.positions, self.normals, self.uv * scale + shift, self.indices, self.mode)


def box(x: float = 1.0, y: float = 1.0, z: float = 1.0) -> Shape:
    """A box of these sizes; each side shows the whole texture."""
    positions, normals, uv, indices = [], [], [], []
    # Across and up, of the texture's corners: uv (0, 0), (1, 0), (1, 1), (0, 1).
    corners = np.array([[-1, 1], [1, 1], [1, -1], [-1, -1]])
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
    """A sphere with the texture wrapped around it once."""
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
    areas = np.linalg.norm(np.cross(*(outwards[faces[:, i]] - outwards[faces[:, 0]] for i in (1, 2))), axis=1)  # pyright: ignore[reportCallIssue]
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
