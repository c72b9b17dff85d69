"""Texture coordinates: a surface cut into charts that lie flat, side by side, in one square."""

from dataclasses import replace

import numpy as np

from sv3d_jax.arrays import Float, Int
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh, vertex_normals
from sv3d_jax.io.surfaces import MAX_TEXTURE_PIXELS

PADDING = 6  # texels between charts; leaves two or more around each, even where the packer enlarges the atlas


def unwrap(mesh: Mesh, texture_size: int = 2048) -> tuple[Mesh, Int[np.ndarray, "v"]]:
    """The mesh with uv, made by xatlas, and, for each new vertex, its index in `mesh`.

    Faces stay as they are and in their order. Seam vertices are exact duplicates, so merging coincident
    vertices restores a closed mesh. `texture_size` is what the gaps between charts
    are made for. The same mesh gives the same uv. Raises InputError for sizes that no picture can have.
    """
    import xatlas

    check_texture_size(texture_size)
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding = texture_size, PADDING
    atlas.generate(xatlas.ChartOptions(), packing)
    original, faces, uv = atlas.get_mesh(0)
    # The packer's picture is about as large as asked and not quite square. The margin is for viewers that repeat it.
    texels = uv * [atlas.width, atlas.height] + PADDING / 2
    uv = texels / (max(atlas.width, atlas.height) + PADDING)
    colors = None if mesh.vertex_colors is None else mesh.vertex_colors[original]
    unwrapped = replace(
        mesh,
        vertices=mesh.vertices[original],
        faces=faces.astype(np.int32),
        vertex_colors=colors,
        uv=uv.astype(np.float32),
        texture=None,
    )
    return unwrapped, original.astype(np.int32)


def smooth_normals(mesh: Mesh) -> Float[np.ndarray, "v 3"]:
    """Unit normals of the vertices, the same for all at one place: the faces' normals, weighted by their areas."""
    places, place = np.unique(mesh.vertices, axis=0, return_inverse=True)
    place = place.reshape(-1)
    return vertex_normals(places, place[mesh.faces])[place]


def check_texture_size(size: int) -> None:
    """Raises InputError for sides that a texture cannot have."""
    if size <= 0 or size**2 > MAX_TEXTURE_PIXELS:
        limit = int(MAX_TEXTURE_PIXELS**0.5)
        raise InputError(f"a texture needs a side of 1 to {limit} texels, got {size}", hint="2048 is usual")
