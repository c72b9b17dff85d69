"""GLB and glTF files."""

import base64
import binascii
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.outputs import write_atomic
from sv3d_jax.io.surfaces import (
    FILE_FROM_WORLD,
    MAX_ALL_TEXTURES_PIXELS,
    MAX_FACES,
    MAX_TEXTURE_PIXELS,
    to_uint8,
)

MAX_NODES = 100_000
# Extensions that a file may require although they are ignored: they change the looks, not the geometry.
_HARMLESS_EXTENSIONS = (
    "KHR_materials_",
    "KHR_lights_",
    "KHR_texture_",
    "EXT_texture_webp",
    "KHR_mesh_quantization",
)


def write_glb(path: str | Path, mesh: Mesh, normals: np.ndarray | None = None) -> None:
    """Write a mesh as GLB: vertices z up, the root node turns them to y up. The same mesh gives the same bytes.

    Without `normals` (v 3) of the vertices, each gets the mean of its own faces: vertices at one place, as at the
    seams of a texture, are then shaded apart.
    """
    import trimesh

    scene, surface = trimesh.Scene(), _to_trimesh(mesh)
    if normals is not None:
        surface.vertex_normals = normals
    scene.add_geometry(surface, node_name="object", geom_name="object", transform=FILE_FROM_WORLD)
    write_atomic(path, scene.export(file_type="glb", include_normals=True))


def split_glb(data: bytes) -> tuple[bytes, memoryview | None]:
    """The JSON and the binary chunk."""
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


def check_gltf(text: bytes, binary: memoryview | None) -> None:
    """Refuse what would read other files, use memory beyond the file's size or never end."""
    document = json.loads(text)
    required = [e for e in document.get("extensionsRequired", []) if not e.startswith(_HARMLESS_EXTENSIONS)]
    if required:
        raise InputError(
            f"needs glTF extensions that are not read: {', '.join(required)}", hint="export without"
        )
    for kind in ("buffers", "images"):
        for index, item in enumerate(document.get(kind, [])):
            uri = item.get("uri", "data:")
            if not uri.startswith("data:"):
                raise InputError(
                    f"{kind}[{index}] refers to another file: {uri[:200]}",
                    hint="other files are never opened; pack everything into one GLB",
                )
    _check_nodes(document.get("nodes", []))
    # A file may not claim more than it holds; accessors without data are zeros that only take memory.
    elements = sum(
        int(accessor["count"]) for accessor in document.get("accessors", []) if "bufferView" not in accessor
    )
    if elements > 3 * MAX_FACES or any(int(a["count"]) < 0 for a in document.get("accessors", [])):
        raise InputError(f"claims {elements} elements without data")
    pixels = 0
    for index, image in enumerate(document.get("images", [])):
        pixels += _image_pixels(_image_bytes(document, image, binary), index)
        if pixels > MAX_ALL_TEXTURES_PIXELS:
            raise InputError(f"images have more than {MAX_ALL_TEXTURES_PIXELS} pixels together")


def _check_nodes(nodes: list[dict[str, Any]]) -> None:
    """Nodes must form trees: one parent at most, and no cycle."""
    if len(nodes) > MAX_NODES:
        raise InputError(f"has {len(nodes)} nodes, more than {MAX_NODES}")
    parents = np.full(len(nodes), -1)
    for index, node in enumerate(nodes):
        for child in node.get("children", []):
            if not 0 <= child < len(nodes) or parents[child] >= 0:
                raise InputError(f"node {child} is missing or has two parents")
            parents[child] = index
    ancestors = parents
    for _ in range(len(nodes).bit_length()):  # doubles the distance to the ancestor each time
        ancestors = np.where(ancestors >= 0, ancestors[ancestors], -1)
    if (ancestors >= 0).any():
        raise InputError(
            f"node {int(np.argmax(ancestors >= 0))} is among its own descendants, or below such a node"
        )


def _image_bytes(document: dict[str, Any], image: dict[str, Any], binary: memoryview | None) -> bytes:
    if "uri" in image:
        return _data_uri(image["uri"])
    view = document["bufferViews"][image["bufferView"]]
    buffer = document["buffers"][view["buffer"]]
    data = _data_uri(buffer["uri"]) if "uri" in buffer else binary
    if data is None:
        raise InputError("has no binary chunk")
    start = view.get("byteOffset", 0)
    return bytes(data[start : start + view["byteLength"]])


def _data_uri(uri: str) -> bytes:
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise InputError(f"holds a data URI that is not base64: {error}") from None


def _image_pixels(data: bytes, index: int) -> int:
    """Number of pixels by the header; pictures that cannot be decoded or are too large are refused."""
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            width, height = Image.open(io.BytesIO(data)).size
    except Image.DecompressionBombError as error:
        raise InputError(f"image {index} is too large: {error}") from None
    except OSError:
        raise InputError(
            f"image {index} is no picture that can be read", hint="use PNG, JPEG or WebP"
        ) from None
    if width * height > MAX_TEXTURE_PIXELS:
        raise InputError(f"image {index} has {width}x{height} pixels, more than {MAX_TEXTURE_PIXELS}")
    return width * height


def _to_trimesh(mesh: Mesh) -> Any:
    import trimesh
    from PIL import Image

    if mesh.texture is not None:
        material = trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.fromarray(to_uint8(mesh.texture)), metallicFactor=0.0, roughnessFactor=1.0
        )
        visual = trimesh.visual.TextureVisuals(uv=mesh.uv, material=material)
        if mesh.vertex_colors is not None:
            visual.vertex_attributes["color"] = to_uint8(mesh.vertex_colors)
    else:
        visual = trimesh.visual.ColorVisuals(
            vertex_colors=None if mesh.vertex_colors is None else to_uint8(mesh.vertex_colors)
        )
    return trimesh.Trimesh(mesh.vertices, mesh.faces, visual=visual, process=False)
