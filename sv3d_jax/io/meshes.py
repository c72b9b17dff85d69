"""Mesh files: GLB, glTF, OBJ and PLY in, GLB, OBJ, PLY and USDZ out.

Files are y up unless told otherwise, a `Mesh` in memory is z up. Reading never opens a second file, and its cost is
bounded by the limits below whatever a header claims. Colours are display values: nothing is converted to linear.
"""

import base64
import binascii
import io
import json
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.outputs import write_atomic

Up = Literal["y", "z"]

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
MAX_FILE_BYTES = 1 << 30
MAX_FACES = 10_000_000
MAX_NODES = 100_000
MAX_TEXTURE_PIXELS = 64_000_000
MAX_ALL_TEXTURES_PIXELS = 4 * MAX_TEXTURE_PIXELS  # of one file
PLAIN_COLOR = 0.7  # of surfaces without any colour in the file

_FILE_FROM_WORLD = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
_USDZ_TIME = 946_728_000  # 1 January 2000, noon: such packages know no time before 1980
# Extensions that a file may require although they are ignored: they change the looks, not the geometry.
_HARMLESS_EXTENSIONS = (
    "KHR_materials_",
    "KHR_lights_",
    "KHR_texture_",
    "EXT_texture_webp",
    "KHR_mesh_quantization",
)


def world_from_file(up: Up) -> np.ndarray:
    """The rotation (4, 4) from coordinates of a file with this axis up to z up."""
    return _FILE_FROM_WORLD.T if up == "y" else np.eye(4)


def read_mesh(path: str | Path, up: Up = "y") -> Mesh:
    """All surfaces of a mesh file as one mesh, z up, node transforms applied.

    Textures, vertex colours and material colours are kept; several textures become one atlas. Where a file has
    textures and other colours too, the mesh has both, to be multiplied. Raises InputError for files that refer to
    other files, are damaged, too large or empty.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise InputError(f"{path} is not a mesh file", hint=f"known: {', '.join(MESH_SUFFIXES)}")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path} has {size} bytes, more than {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return _read(data, suffix, world_from_file(up))
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from None
    except (Exception, RecursionError) as error:  # whatever the parser trips over in a damaged file
        raise InputError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def write_glb(path: str | Path, mesh: Mesh, normals: np.ndarray | None = None) -> None:
    """Write a mesh as GLB: vertices z up, the root node turns them to y up. The same mesh gives the same bytes.

    Without `normals` (v 3) of the vertices, each gets the mean of its own faces: vertices at one place, as at the
    seams of a texture, are then shaded apart.
    """
    import trimesh

    scene, surface = trimesh.Scene(), _to_trimesh(mesh)
    if normals is not None:
        surface.vertex_normals = normals
    scene.add_geometry(surface, node_name="object", geom_name="object", transform=_FILE_FROM_WORLD)
    write_atomic(path, scene.export(file_type="glb", include_normals=True))


def write_ply(path: str | Path, mesh: Mesh) -> None:
    """Write a mesh as binary PLY with vertex colours, y up."""
    colors = mesh.vertex_colors
    vertex = [("position", "<f4", 3)] + ([("color", "u1", 3)] if colors is not None else [])
    vertices = np.zeros(len(mesh.vertices), vertex)
    vertices["position"] = _y_up(mesh.vertices)
    if colors is not None:
        vertices["color"] = _to_uint8(colors)
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")] if colors is not None else []
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    write_atomic(path, "\n".join(header).encode() + vertices.tobytes() + faces.tobytes())


def write_obj(path: str | Path, mesh: Mesh) -> None:
    """Write a mesh as OBJ, y up, with a material and its picture beside it if it has a texture.

    With a texture, vertices that differ in uv alone are written once, so that programs see one connected surface.
    """
    path = Path(path)
    rows = _y_up(mesh.vertices)
    if mesh.vertex_colors is not None:
        rows = np.column_stack([rows, mesh.vertex_colors])
    if mesh.texture is None:
        lines, faces = _obj_rows("v", rows), [" ".join(map(str, face)) for face in mesh.faces + 1]
    else:
        material, picture = path.with_suffix(".mtl"), path.with_suffix(".png")
        write_atomic(picture, _png(mesh.texture))
        write_atomic(
            material, f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {picture.name}\n"
        )
        _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        lines = [f"mtllib {material.name}", *_obj_rows("v", rows[first]), "usemtl surface"]
        lines += _obj_rows("vt", mesh.uv)
        corners = np.stack([place.reshape(-1)[mesh.faces], mesh.faces], axis=-1) + 1
        faces = [" ".join(f"{v}/{vt}" for v, vt in face) for face in corners.tolist()]
    write_atomic(path, "\n".join([*lines, *(f"f {face}" for face in faces), ""]))


def write_usdz(path: str | Path, mesh: Mesh, normals: np.ndarray) -> None:
    """Write a mesh with a texture as USDZ, y up. The same mesh gives the same bytes.

    Raises InputError if the mesh has no texture or the extra `usd` is not installed.
    """
    try:
        from pxr import Sdf  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"{path} cannot be written without usd-core", hint='pip install "sv3d_jax[usd]"'
        ) from None
    if mesh.texture is None:
        raise InputError(f"{path} cannot be written: the mesh has no texture", hint="bake one first")
    with tempfile.TemporaryDirectory() as folder:
        scene, picture, package = (Path(folder) / name for name in ("mesh.usdc", "mesh.png", "mesh.usdz"))
        picture.write_bytes(_png(mesh.texture))
        _write_usd(scene, mesh, normals, f"./{picture.name}")
        for file in (scene, picture):
            os.utime(file, (_USDZ_TIME, _USDZ_TIME))  # the package records it
        with Sdf.ZipFileWriter.CreateNew(str(package)) as writer:
            for file in (scene, picture):  # the scene must be the first
                writer.AddFile(str(file), file.name)
        write_atomic(path, package.read_bytes())


@dataclass
class _Part:
    """One surface of a file: colour = vertex colour x texture."""

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray  # v 3
    uv: np.ndarray | None
    image: Any  # PIL image


def _read(data: bytes, suffix: str, world_from_scene: np.ndarray) -> Mesh:
    import trimesh

    if suffix in (".glb", ".gltf"):
        _check_gltf(*(_split_glb(data) if suffix == ".glb" else (data, None)))
    elif suffix == ".ply":
        _check_ply(data)
    scene = trimesh.load_scene(io.BytesIO(data), file_type=suffix[1:], process=False)
    order = {name: index for index, name in enumerate(scene.geometry)}
    placed = [scene.graph[node] for node in sorted(scene.graph.nodes_geometry)]
    placed.sort(key=lambda pair: order[pair[1]])  # as in the file: the graph keeps no order
    surfaces = [(matrix, scene.geometry[name]) for matrix, name in placed]
    surfaces = [(matrix, surface) for matrix, surface in surfaces if isinstance(surface, trimesh.Trimesh)]
    count = sum(len(surface.faces) for _, surface in surfaces)
    if count == 0:
        raise InputError("has no faces", hint="point clouds and lines cannot be drawn")
    if count > MAX_FACES:
        raise InputError(f"has {count} faces, more than {MAX_FACES}", hint="simplify the mesh")
    mesh = _merge([_part(surface, world_from_scene @ matrix) for matrix, surface in surfaces])
    used = mesh.vertices[mesh.faces]
    if not np.isfinite(used).all():
        raise InputError(
            f"{(~np.isfinite(used)).any((1, 2)).sum()} faces have vertices that are not finite numbers"
        )
    if np.ptp(used.reshape(-1, 3), axis=0).max() == 0:
        raise InputError("all vertices lie in one point")
    return mesh


def _split_glb(data: bytes) -> tuple[bytes, memoryview | None]:
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


def _check_gltf(text: bytes, binary: memoryview | None) -> None:
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


def _check_ply(data: bytes) -> None:
    """Refuse counts that the file cannot hold: each element takes a byte at least."""
    header = data[: data.find(b"end_header")].decode("ascii", "replace")
    for line in header.splitlines():
        words = line.split()
        if words[:1] == ["element"] and not 0 <= int(words[2]) <= len(data):
            raise InputError(f"claims {words[2]} elements of {words[1]} in {len(data)} bytes")


def _part(surface: Any, world_from_surface: np.ndarray) -> _Part:
    """A surface in the world with all that colours it."""
    vertices = surface.vertices @ world_from_surface[:3, :3].T + world_from_surface[:3, 3]
    faces = np.asarray(surface.faces)
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise InputError(f"a face names vertex {faces.max()} of {len(vertices)}")
    if np.linalg.det(world_from_surface[:3, :3]) < 0:
        faces = faces[:, ::-1]  # a mirror turns faces inside out
    visual = surface.visual
    if visual.kind == "face":
        vertices, colors = vertices[faces].reshape(-1, 3), np.repeat(_rgb(visual.face_colors), 3, axis=0)
        return _Part(vertices, np.arange(len(vertices)).reshape(-1, 3), colors, None, None)
    if visual.kind == "vertex":
        return _Part(vertices, faces, _rgb(visual.vertex_colors), None, None)
    if visual.kind != "texture":
        return _Part(vertices, faces, np.full(vertices.shape, PLAIN_COLOR, np.float32), None, None)
    material = visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    factor = getattr(material, "baseColorFactor", None)
    if factor is None and image is None:
        factor = getattr(material, "diffuse", None)
    colors = (
        np.ones(vertices.shape, np.float32) if factor is None else np.tile(_rgb(factor), (len(vertices), 1))
    )
    own = visual.vertex_attributes.get("color")
    if own is not None and len(own) == len(vertices):
        colors = colors * _rgb(own)
    has_texture = image is not None and visual.uv is not None and len(visual.uv) == len(vertices)
    return _Part(vertices, faces, colors, *((np.asarray(visual.uv), image) if has_texture else (None, None)))


def _rgb(colors: Any) -> np.ndarray:
    """Colours in [0, 1] from whole or real numbers, alpha left out."""
    colors = np.asarray(colors)
    scale = np.iinfo(colors.dtype).max if colors.dtype.kind in "ui" else 1.0
    return np.clip(colors[..., :3] / scale, 0.0, 1.0).astype(np.float32)


def _merge(parts: list[_Part]) -> Mesh:
    """One mesh of all parts."""
    starts = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    vertices = np.concatenate([part.vertices for part in parts])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)]).astype(
        np.int32
    )
    colors = np.concatenate([part.colors for part in parts])
    if all(part.image is None for part in parts):
        return Mesh(vertices, faces, vertex_colors=colors)
    uv, texture = _atlas(parts)
    return Mesh(vertices, faces, None if (colors == 1.0).all() else colors, uv.astype(np.float32), texture)


def _atlas(parts: list[_Part]) -> tuple[np.ndarray, np.ndarray]:
    """All pictures in one, and uv (v 2) into it.

    Of each picture, repeated as often as uv asks for, the used region is cut out with a margin of one texel, so
    that bilinear sampling gives what it gave before; the cuts are stacked. Untextured parts point to a white cut.
    """
    users: dict[int, list[_Part]] = {}
    for part in parts:
        users.setdefault(id(part.image), []).append(part)
    if len(users) == 1 and all(_within_unit(part.uv) for part in parts):
        return np.concatenate([part.uv for part in parts]), _pixels(parts[0].image)

    limit = np.sqrt(MAX_TEXTURE_PIXELS / 2 / len(users))
    cuts = {key: _cut(group, limit) for key, group in users.items()}
    width = max(cut.shape[1] for cut, _, _ in cuts.values())
    height = sum(cut.shape[0] for cut, _, _ in cuts.values())
    texture, moves, top = np.ones((height, width, 3), np.float32), {}, 0
    for key, (cut, scale, origin) in cuts.items():
        texture[top : top + cut.shape[0], : cut.shape[1]] = cut
        moves[key] = scale, origin + [0, top]
        top += cut.shape[0]
    uv = []
    for part in parts:
        scale, shift = moves[id(part.image)]
        texel = (
            np.zeros((len(part.vertices), 2)) if part.uv is None else _downwards(part.uv)
        ) * scale + shift
        uv.append(_downwards(texel / [width, height]))
    return np.concatenate(uv), texture


def _cut(group: list[_Part], limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The used region of a group's picture, and scale and shift from (u, 1 - v) to texels of it."""
    if group[0].image is None:
        return np.ones((3, 3, 3), np.float32), np.zeros(2), np.full(2, 1.5)
    pixels = _pixels(group[0].image)
    size = np.array(pixels.shape[1::-1])
    uv = np.concatenate([part.uv[np.unique(part.faces)] for part in group])
    low, high = (_downwards(uv) * size).min(0), (_downwards(uv) * size).max(0)
    if not np.isfinite([low, high]).all():
        raise InputError("has texture coordinates that are not finite numbers")
    stride = np.maximum(1, np.ceil((high - low + 3) / limit)).astype(int)
    first = np.floor(low).astype(int) - stride
    count = np.ceil((high - first) / stride).astype(int) + 2
    columns, rows = (first[i] + stride[i] * np.arange(count[i]) for i in range(2))
    wrap = (lambda i, n: np.clip(i, 0, n - 1)) if _within_unit(uv) else np.mod
    return pixels[wrap(rows, size[1])[:, None], wrap(columns, size[0])], size / stride, -first / stride


def _within_unit(uv: np.ndarray | None) -> bool:
    return uv is not None and bool((uv >= -1e-6).all() and (uv <= 1 + 1e-6).all())


def _downwards(uv: np.ndarray) -> np.ndarray:
    """(u, 1 - v), and back."""
    return np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1)


def _pixels(image: Any) -> np.ndarray:
    return np.asarray(image.convert("RGB"), np.float32) / 255.0


def _to_trimesh(mesh: Mesh) -> Any:
    import trimesh
    from PIL import Image

    if mesh.texture is not None:
        material = trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.fromarray(_to_uint8(mesh.texture)), metallicFactor=0.0, roughnessFactor=1.0
        )
        visual = trimesh.visual.TextureVisuals(uv=mesh.uv, material=material)
        if mesh.vertex_colors is not None:
            visual.vertex_attributes["color"] = _to_uint8(mesh.vertex_colors)
    else:
        visual = trimesh.visual.ColorVisuals(
            vertex_colors=None if mesh.vertex_colors is None else _to_uint8(mesh.vertex_colors)
        )
    return trimesh.Trimesh(mesh.vertices, mesh.faces, visual=visual, process=False)


def _write_usd(path: Path, mesh: Mesh, normals: np.ndarray, picture: str) -> None:
    """Write a USD scene of one surface with a material; `picture` is the path of its texture from there."""
    from pxr import Sdf, Usd, UsdGeom, UsdShade, Vt  # pyright: ignore[reportMissingImports]

    stage, types = Usd.Stage.CreateInMemory(), Sdf.ValueTypeNames
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/object").GetPrim())
    vertices = _y_up(mesh.vertices).astype(np.float32)
    surface = UsdGeom.Mesh.Define(stage, "/object/mesh")
    surface.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    surface.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(vertices))
    surface.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([vertices.min(0), vertices.max(0)])))
    surface.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(_y_up(normals).astype(np.float32)))
    surface.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    surface.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, np.int32)))
    surface.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.ravel()))
    uv = UsdGeom.PrimvarsAPI(surface).CreatePrimvar("st", types.TexCoord2fArray, UsdGeom.Tokens.vertex)
    uv.Set(Vt.Vec2fArray.FromNumpy(mesh.uv))

    material, nodes = UsdShade.Material.Define(stage, "/object/material"), {}
    for name, kind in (
        ("surface", "UsdPreviewSurface"),
        ("texture", "UsdUVTexture"),
        ("uv", "UsdPrimvarReader_float2"),
    ):
        nodes[name] = UsdShade.Shader.Define(stage, f"/object/material/{name}")
        nodes[name].CreateIdAttr(kind)
    nodes["surface"].CreateInput("roughness", types.Float).Set(1.0)
    nodes["surface"].CreateInput("metallic", types.Float).Set(0.0)
    nodes["texture"].CreateInput("file", types.Asset).Set(picture)
    nodes["texture"].CreateInput("sourceColorSpace", types.Token).Set("sRGB")
    nodes["uv"].CreateInput("varname", types.String).Set("st")
    material.CreateSurfaceOutput().ConnectToSource(nodes["surface"].ConnectableAPI(), "surface")
    for user, key, kind, source, output in (
        ("surface", "diffuseColor", types.Color3f, "texture", "rgb"),
        ("texture", "st", types.Float2, "uv", "result"),
    ):
        nodes[user].CreateInput(key, kind).ConnectToSource(nodes[source].ConnectableAPI(), output)
    UsdShade.MaterialBindingAPI.Apply(surface.GetPrim()).Bind(material)
    stage.GetRootLayer().Export(str(path))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.round(255.0 * np.clip(values, 0.0, 1.0)).astype(np.uint8)


def _obj_rows(kind: str, rows: np.ndarray) -> list[str]:
    return [f"{kind} {' '.join(f'{x:.7g}' for x in row)}" for row in rows]


def _y_up(vertices: np.ndarray) -> np.ndarray:
    return vertices @ _FILE_FROM_WORLD[:3, :3].T


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_to_uint8(picture)).save(buffer, "PNG")
    return buffer.getvalue()
