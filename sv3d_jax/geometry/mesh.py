"""The triangle mesh that all parts of the package use, and its normalized placement in the world."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sv3d_jax.errors import InputError

REPEAT, CLAMP, MIRROR = 0, 1, 2  # wrap modes of textures
OPAQUE, BLEND = -1.0, 0.0  # special values of `Materials.cutoff`
OBJECT_RADIUS = 0.55  # no view of any orbit clips the ball of radius 2 sin(16.9 deg) = 0.5814


@dataclass(frozen=True, eq=False)
class Materials:
    """Materials of faces that share one texture atlas; not needed if all faces use the whole texture and are opaque.

    Face f has the material k = of_face[f]. Its texture is the region of the atlas that starts at column region[k, 0]
    and row region[k, 1] and is region[k, 2] texels wide and region[k, 3] high; uv (0, 0) is the bottom left of the
    region, and wrap[k] are the wrap modes along u and v. A width of 0 means white.
    """

    of_face: np.ndarray  # int32 t
    region: np.ndarray  # int32 k 4
    wrap: np.ndarray  # int32 k 2: REPEAT, CLAMP or MIRROR
    nearest: np.ndarray  # bool k: nearest-neighbour instead of bilinear filtering
    # float32 k: holes where alpha is less; or OPAQUE (alpha is ignored) or BLEND (composited)
    cutoff: np.ndarray
    one_sided: np.ndarray  # bool k: with BLEND, back faces are not drawn
    vertex_alpha: np.ndarray | None = None  # float32 v in [0, 1]
    texture_alpha: np.ndarray | None = None  # uint8 h w


@dataclass(frozen=True, eq=False, repr=False)
class Mesh:
    """A triangle mesh, coloured by vertex colours, a texture, the product of both, or white.

    Colours are sRGB; they are multiplied and interpolated in linear light. Without `materials`, all faces use the whole
    texture, clamped at its edges. A notebook shows a mesh as it turns.
    """

    vertices: np.ndarray  # float64, v 3
    faces: np.ndarray  # int32, t 3, counter-clockwise from outside
    vertex_colors: np.ndarray | None = None  # float32, v 3, in [0, 1]
    uv: np.ndarray | None = None  # float32, v 2, origin at the bottom left
    texture: np.ndarray | None = None  # h w 3, row 0 on top, float32 in [0, 1] or uint8
    # For shading, float32, v 3. Zeros mean flat shading; None means smooth shading by area-weighted face normals.
    normals: np.ndarray | None = None
    materials: Materials | None = None
    remarks: tuple[str, ...] = ()  # what was approximated or skipped when the mesh was read from a file

    def __repr__(self) -> str:
        height, width = (0, 0) if self.texture is None else self.texture.shape[:2]
        parts = [
            f"{len(self.vertices)} vertices",
            f"{len(self.faces)} faces",
            *(["vertex colors"] if self.vertex_colors is not None else []),
            *([f"texture {width}x{height}"] if self.texture is not None else []),
            *([f"{len(self.materials.region)} materials"] if self.materials is not None else []),
        ]
        return f"Mesh({', '.join(parts)})"

    def _repr_html_(self) -> str:
        from sv3d_jax.io.inline import animation_html

        return animation_html(self.turning(), repr(self))

    def turning(self, num_views: int = 24, size: int = 192) -> np.ndarray:
        """Views (f, size, size, 3), uint8, over white, around the vertical z axis, in a soft light."""
        from sv3d_jax.cameras.orbit import static_orbit
        from sv3d_jax.render.lighting import soft_light
        from sv3d_jax.render.orbit import render_orbit

        return render_orbit(to_world(self), static_orbit(num_views), size=size, light=soft_light(seed=0))[0]

    def to_trimesh(self) -> Any:
        """A `trimesh.Trimesh` with the same coordinates, texture or vertex colours.

        Raises InputError for a mesh of several materials, such as one that was read from a file.
        """
        import trimesh
        from PIL import Image
        from trimesh.visual import ColorVisuals, TextureVisuals
        from trimesh.visual.material import PBRMaterial

        if self.materials is not None:
            raise InputError(
                f"a mesh of {len(self.materials.region)} materials has no single texture for trimesh",
                hint="trimesh.load reads the file itself",
            )
        visual = None
        if self.texture is not None and self.uv is not None:
            picture = Image.fromarray(_in_8_bits(self.texture))
            material = PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0)
            visual = TextureVisuals(uv=self.uv, material=material)
        elif self.vertex_colors is not None:
            visual = ColorVisuals(vertex_colors=_in_8_bits(self.vertex_colors))
        return trimesh.Trimesh(self.vertices, self.faces, visual=visual, process=False)


def _in_8_bits(colors: np.ndarray) -> np.ndarray:
    return colors if colors.dtype == np.uint8 else np.round(255 * np.clip(colors, 0.0, 1.0)).astype(np.uint8)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (v 3) of vertices: the mean of their faces' normals, weighted by area; the renderer's default.

    A vertex without faces, or whose faces have no area, gets +z.
    """
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    area_vectors = np.cross(b - a, c - a)
    total = np.zeros(vertices.shape)
    for corner in faces.T:
        np.add.at(total, corner, area_vectors)
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(lengths > 0, total / np.where(lengths > 0, lengths, 1.0), [0.0, 0.0, 1.0])


def object_to_world(mesh: Mesh) -> np.ndarray:
    """The matrix (4, 4) that places an object where SV3D's cameras see all of it.

    The centre of its bounding box moves to the origin, its farthest vertex to distance OBJECT_RADIUS.
    """
    used = mesh.vertices[np.unique(mesh.faces)]
    center = 0.5 * (used.min(axis=0) + used.max(axis=0))
    scale = OBJECT_RADIUS / np.linalg.norm(used - center, axis=1).max()
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = -scale * center
    return matrix


def to_world(mesh: Mesh) -> Mesh:
    """The mesh centred and scaled by `object_to_world`."""
    return moved(mesh, object_to_world(mesh))


def moved(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    """The mesh scaled and shifted by a matrix (4, 4) without rotation; normals stay as they are."""
    return replace(mesh, vertices=mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3])
