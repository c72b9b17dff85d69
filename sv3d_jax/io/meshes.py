"""Mesh files: GLB, glTF, OBJ and PLY in, GLB, OBJ, PLY and USDZ out.

Files are y up unless told otherwise, a `Mesh` in memory is z up. Reading never opens a second file, and its cost is
bounded by limits whatever a header claims. Colours are display values: nothing is converted to linear.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.gltf import check_gltf, split_glb, write_glb
from sv3d_jax.io.obj import write_obj
from sv3d_jax.io.ply import check_ply, write_ply
from sv3d_jax.io.surfaces import (
    MAX_FACES,
    MAX_FILE_BYTES,
    MAX_TEXTURE_PIXELS,
    Up,
    world_from_file,
)
from sv3d_jax.io.usd import write_usdz

__all__ = [
    "MESH_SUFFIXES",
    "read_mesh",
    "world_from_file",
    "write_glb",
    "write_obj",
    "write_ply",
    "write_usdz",
]

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
PLAIN_COLOR = 0.7  # of surfaces without any colour in the file


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
        check_gltf(*(split_glb(data) if suffix == ".glb" else (data, None)))
    elif suffix == ".ply":
        check_ply(data)
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
