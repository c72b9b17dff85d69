"""Merging the surfaces of a mesh file into one mesh, with all their textures packed into one atlas."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sv3d_jax.colors import srgb_from_linear
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import BLEND, CLAMP, MIRROR, OPAQUE, REPEAT, Materials, Mesh, vertex_normals
from sv3d_jax.io.surfaces import Material, Part, Source, used_vertices
from sv3d_jax.io.textures import MAX_ATLAS_PIXELS, reduced

_WRAP = {"repeat": REPEAT, "clamp": CLAMP, "mirror": MIRROR}


def merge_parts(parts: list[Part], world_from_file: np.ndarray, source: Source) -> Mesh:
    """One mesh of all surfaces, rotated into the world by a matrix (4 4).

    Raises InputError for faces that name absent vertices and for texture coordinates that are not finite.
    """
    for part in parts:
        _check(part)
    counts = [len(part.vertices) for part in parts]
    starts = np.cumsum([0, *counts[:-1]])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)])
    turn = world_from_file[:3, :3]
    colors = np.concatenate([_colors(part) for part in parts])
    mesh = Mesh(
        np.concatenate([part.vertices for part in parts]) @ turn.T,
        faces.astype(np.int32),
        vertex_colors=srgb_from_linear(colors[:, :3].astype(np.float64)).astype(np.float32),
        normals=_normals(parts, turn),
        remarks=tuple(source.remarks),
    )
    return _with_materials(mesh, parts, colors, source)


def _check(part: Part) -> None:
    count = len(part.vertices)
    if part.faces.size and not 0 <= part.faces.min() <= part.faces.max() < count:
        raise InputError(f"a face names vertex {part.faces.max()} of {count}")
    if part.material.picture is not None and part.uv is not None:
        if not np.isfinite(part.uv[used_vertices(part.faces, count)[0]]).all():
            raise InputError("has texture coordinates that are not finite numbers")


def _colors(part: Part) -> np.ndarray:
    """Linear red, green, blue and alpha of every vertex (v 4) in [0, 1]: material colour times vertex colour."""
    colors = np.tile(np.asarray(part.material.color, np.float64), (len(part.vertices), 1))
    if part.colors is not None:
        colors[:, : part.colors.shape[1]] *= part.colors
    return np.clip(np.nan_to_num(colors), 0.0, 1.0).astype(np.float32)


def _normals(parts: list[Part], turn: np.ndarray) -> np.ndarray | None:
    if all(part.normals is None for part in parts):
        return None
    normals = [
        vertex_normals(part.vertices, part.faces) if part.normals is None else part.normals for part in parts
    ]
    normals = np.nan_to_num(np.concatenate(normals)) @ turn.T
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


class _Packed(NamedTuple):
    """A texture and its position in the atlas, in texels."""

    picture: np.ndarray
    left: int
    top: int


def _with_materials(mesh: Mesh, parts: list[Part], colors: np.ndarray, source: Source) -> Mesh:
    """The mesh with atlas, uv and materials, as far as its parts have any; colours (v 4) are linear."""
    alpha = colors[:, 3]
    rows = {id(part.material): part.material for part in parts}
    index = {key: row for row, key in enumerate(rows)}
    least = _least_alphas(parts, alpha)
    cutoffs = {key: _cutoff(material, least[key]) for key, material in rows.items()}
    shown = {
        id(part.material): part.material.picture
        for part in parts
        if part.material.picture is not None and part.uv is not None
    }
    if not shown and all(cutoff == OPAQUE for cutoff in cutoffs.values()):
        return mesh
    packed, size = _pack(list({id(picture): picture for picture in shown.values()}.values()), source)
    uv = np.concatenate([_uv(part) for part in parts]).astype(np.float32)
    region = np.zeros((len(rows), 4), np.int32)
    for key, picture in shown.items():
        place = packed[id(picture)]
        region[index[key]] = place.left, place.top, *place.picture.shape[1::-1]
    materials = Materials(
        of_face=np.concatenate([np.full(len(p.faces), index[id(p.material)], np.int32) for p in parts]),
        region=region,
        wrap=np.array([[_WRAP[way] for way in material.wrap] for material in rows.values()], np.int32),
        nearest=np.array([material.nearest for material in rows.values()]),
        cutoff=np.array(list(cutoffs.values()), np.float32),
        one_sided=np.array([material.one_sided and material.alpha == "blend" for material in rows.values()]),
    )
    seen_through = any(cutoff != OPAQUE for cutoff in cutoffs.values())
    texture = np.full((*size, 3), 255, np.uint8) if shown else None
    texture_alpha = None
    if seen_through and any(place.picture.shape[2] == 4 for place in packed.values()):
        texture_alpha = np.full(size, 255, np.uint8)
    for place in packed.values():
        height, width = place.picture.shape[:2]
        window = slice(place.top, place.top + height), slice(place.left, place.left + width)
        texture[window] = place.picture[..., :3]
        if texture_alpha is not None and place.picture.shape[2] == 4:
            texture_alpha[window] = place.picture[..., 3]
    if seen_through:
        vertex_alpha = None if (alpha == 1).all() else alpha
        materials = replace(materials, vertex_alpha=vertex_alpha, texture_alpha=texture_alpha)
    vertex_colors = None if shown and (colors[:, :3] == 1.0).all() else mesh.vertex_colors
    textured = replace(mesh, vertex_colors=vertex_colors, uv=uv if shown else None, texture=texture)
    textured = replace(textured, remarks=tuple(source.remarks))
    plain = _is_plain(materials, uv, mesh.faces, size)
    return textured if plain else replace(textured, materials=materials)


def _cutoff(material: Material, least_alpha: float) -> float:
    """The value for `Materials.cutoff`. Materials whose alpha has no effect count as opaque."""
    if material.alpha == "opaque" or (material.alpha == "mask" and material.cutoff <= 0):
        return OPAQUE
    if material.alpha == "mask":
        return float(material.cutoff)
    picture = material.picture
    clear = picture is not None and picture.shape[2] == 4 and (picture[..., 3] < 255).any()
    return BLEND if least_alpha < 1 or clear else OPAQUE


def _least_alphas(parts: list[Part], alpha: np.ndarray) -> dict[int, float]:
    """The smallest vertex alpha of each material, by the material's id()."""
    least, start = {}, 0
    for part in parts:
        stop, key = start + len(part.vertices), id(part.material)
        least[key] = min(least.get(key, 1.0), float(alpha[start:stop].min()))
        start = stop
    return least


def _uv(part: Part) -> np.ndarray:
    """Texture coordinates (v 2), zeros if there are none.

    Repeating ones are shifted by whole periods towards 0, where float32 is more precise.
    """
    if part.uv is None or part.material.picture is None:
        return np.zeros((len(part.vertices), 2))
    uv = np.nan_to_num(np.asarray(part.uv, np.float64))
    used = uv[used_vertices(part.faces, len(uv))[0]]
    moves = [
        0.0 if way == "clamp" else 2.0 * np.floor(low / 2)
        for way, low in zip(part.material.wrap, used.min(0), strict=True)
    ]
    return uv - moves


def _is_plain(materials: Materials, uv: np.ndarray, faces: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether all faces use the whole texture once, bilinear and opaque: then the mesh needs no `materials`."""
    used = uv[used_vertices(faces, len(uv))[0]]
    return bool(
        (materials.cutoff == OPAQUE).all()
        and not materials.nearest.any()
        and (materials.region == [0, 0, size[1], size[0]]).all()
        and ((materials.wrap == CLAMP).all() or _inside(used, size))
    )


def _inside(uv: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether uv stay at least half a texel inside the texture, so that bilinear samples never wrap."""
    half = 0.5 / np.array(size[::-1])
    return bool((uv >= half - 1e-6).all() and (uv <= 1 - half + 1e-6).all())


def _pack(pictures: list[np.ndarray], source: Source) -> tuple[dict[int, _Packed], tuple[int, int]]:
    """Positions of textures in the atlas (shelf packing), by their id(), and its height and width."""
    if not pictures:
        return {}, (0, 0)
    small = {id(picture): picture for picture in pictures}
    total = sum(picture.shape[0] * picture.shape[1] for picture in pictures)
    if total > MAX_ATLAS_PIXELS:
        factor = int(np.ceil(np.sqrt(total / MAX_ATLAS_PIXELS)))
        source.remark(f"its {len(pictures)} textures with {total} texels are downscaled by {factor}")
        small = {
            key: reduced(picture, *(min(factor, side) for side in picture.shape[:2]))
            for key, picture in small.items()
        }
    order = sorted(small, key=lambda key: -small[key].shape[0])
    width = max(picture.shape[1] for picture in small.values())
    width = max(width, int(np.sqrt(sum(p.shape[0] * p.shape[1] for p in small.values()))))
    places, left, top, shelf = {}, 0, 0, 0
    for key in order:
        rows, columns = small[key].shape[:2]
        if left + columns > width:
            left, top, shelf = 0, top + shelf, 0
        places[key] = _Packed(small[key], left, top)
        left, shelf = left + columns, max(shelf, rows)
    if len(places) == 1:
        width = small[order[0]].shape[1]
    if (top + shelf) * width > 2 * MAX_ATLAS_PIXELS:
        raise InputError(
            f"its {len(places)} textures do not fit into an atlas of {2 * MAX_ATLAS_PIXELS} texels"
        )
    return places, (top + shelf, width)
