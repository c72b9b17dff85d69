"""Views of a mesh from the cameras of an orbit, lit and antialiased, with transparency by depth peeling."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, UInt8
from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.render.antialias import box_filter
from sv3d_jax.render.appearance import Appearance, appearance_of, seen_colors
from sv3d_jax.render.interpolate import face_normals, seen_shading_normals, vertex_normals
from sv3d_jax.render.lighting import SGLight, SHLight, SoftLight
from sv3d_jax.render.rasterize import Fragments, project, surface_points, visible_faces

Light = SoftLight | SGLight | SHLight

MIN_SIZE_CLASS = 1024  # vertices and faces are padded to a power of two, at least this many
TEXTURE_STEP = 256  # sides of textures are padded to multiples of this
MAX_LAYERS = 24  # of transparent surfaces that are composited behind one another
MIN_TRANSMITTANCE = 1 / 512  # below this, what lies behind is not composited any more


def render_orbit(
    mesh: Mesh,
    cameras: CameraPath,
    size: int,
    light: Light | None = None,
    *,
    supersample: int = 3,
    background: Literal["white", "transparent"] = "white",
) -> tuple[UInt8[np.ndarray, "f h w 3"], UInt8[np.ndarray, "f h w"]]:
    """Views and alphas of a mesh in world coordinates. Without a light, colours are those of the bare surface.

    Each pixel is the mean of `supersample` squared samples. With a transparent background, colours are not mixed with
    white at the silhouette. `light` multiplies the surface's display colours by its shading.
    """
    focal, center = intrinsics(cameras.fov_deg, size * supersample)
    tile = int(np.clip(2.0 ** np.round(np.log2(2 * size * supersample / np.sqrt(len(mesh.faces)))), 4, 16))
    images, alphas = _render_orbit(
        _padded_mesh(mesh),
        jnp.asarray(cameras.camera_to_world, jnp.float32),
        jnp.asarray(focal, jnp.float32),
        jnp.asarray(center, jnp.float32),
        light,
        size=size,
        supersample=supersample,
        tile=tile,
        over_white=background == "white",
    )
    return np.asarray(images), np.asarray(alphas)


class _DeviceMesh(NamedTuple):
    """A mesh as arrays on the device, padded so that meshes of similar size share a compiled program."""

    faces: Array
    vertices: Array
    normals: Array | None
    look: Appearance


def _padded_mesh(mesh: Mesh) -> _DeviceMesh:
    """The mesh on the device, its sizes rounded up by faces without area and unused texels."""
    vertices, faces = _size_class(len(mesh.vertices)), _size_class(len(mesh.faces))
    look = appearance_of(mesh)

    def padded(leaf, *sizes):
        if leaf is None:
            return None
        sizes = [*sizes, *leaf.shape[len(sizes) :]]
        return jnp.asarray(
            np.pad(leaf, [(0, size - have) for size, have in zip(sizes, leaf.shape, strict=True)])
        )

    def of_vertices(leaf):
        return None if leaf is None else padded(np.asarray(leaf, np.float32), vertices)

    def of_texels(leaf):
        return (
            None
            if leaf is None
            else padded(leaf, *(-(-side // TEXTURE_STEP) * TEXTURE_STEP for side in leaf.shape[:2]))
        )

    def of_materials(leaf):
        return None if leaf is None else padded(leaf, 1 << (len(leaf) - 1).bit_length())

    return _DeviceMesh(
        padded(np.asarray(mesh.faces, np.int32), faces),
        of_vertices(mesh.vertices),
        of_vertices(mesh.normals),
        Appearance(
            vertex_colors=of_vertices(look.vertex_colors),
            vertex_alpha=of_vertices(look.vertex_alpha),
            uv=of_vertices(look.uv),
            texture=of_texels(look.texture),
            texture_alpha=of_texels(look.texture_alpha),
            of_face=None if look.of_face is None else padded(look.of_face, faces),
            region=of_materials(look.region),
            wrap=of_materials(look.wrap),
            nearest=of_materials(look.nearest),
            cutoff=of_materials(look.cutoff),
            one_sided=of_materials(look.one_sided),
        ),
    )


def _size_class(count: int) -> int:
    return max(MIN_SIZE_CLASS, 1 << (count - 1).bit_length())


class _Layers(NamedTuple):
    """What has been composited, front to back, at every sample of a picture."""

    color: Array  # premultiplied by alpha
    transmittance: Array  # product of 1 - alpha of the layers so far
    depth: Array  # of the last layer; infinite where there was none
    count: Array  # of layers so far


@partial(jax.jit, static_argnames=("size", "supersample", "tile", "over_white"))
def _render_orbit(surface, camera_to_world, focal, center, light, *, size, supersample, tile, over_white):
    outwards = face_normals(surface.vertices, surface.faces)
    normals = surface.normals
    if normals is None:
        normals = vertex_normals(surface.vertices, surface.faces)
    side = size * supersample

    def seen(camera, screen, face_id):
        """Lit colour, alpha and depth where samples see these faces; alpha is 0 on the background."""
        fragments = Fragments(face_id, *surface_points(screen, surface.faces, face_id))
        towards = camera[:3, 3] - surface.vertices[surface.faces[:, 0]]
        of_face = jnp.maximum(face_id, 0)
        from_behind = ((outwards * towards).sum(-1) < 0)[of_face]
        look, weights = surface.look, fragments.barycentrics
        color, alpha = seen_colors(look, surface.faces, face_id, weights, from_behind)
        if light is not None:
            front = jnp.where(from_behind, -1.0, 1.0)
            smooth = seen_shading_normals(normals, surface.faces, fragments)
            if surface.normals is not None:  # zeros stand for flat shading
                smooth = jnp.where((smooth == 0).all(-1, keepdims=True), outwards[of_face], smooth)
            # White lights give one factor, coloured ones three.
            color = color * light.shade(front[..., None] * smooth).reshape(*face_id.shape, -1)
        alpha = jnp.where(face_id >= 0, alpha, 0.0)[..., None]
        return color, alpha, fragments.depth

    def frame(camera):
        screen = project(surface.vertices, camera[None], focal[None], center[None])
        face_id = visible_faces(screen, surface.faces, side, side, tile=tile)
        color, alpha, depth = seen(camera, screen, face_id)
        color = color * alpha
        if surface.look.see_through:
            # Depth peeling: render and composite the next layer until nothing more shows through.
            def deeper(layers):
                hidden = layers.transmittance[..., 0] < MIN_TRANSMITTANCE
                beyond = jnp.where(hidden, jnp.inf, layers.depth)
                face_id = visible_faces(screen, surface.faces, side, side, tile=tile, beyond=beyond)
                color, alpha, depth = seen(camera, screen, face_id)
                return _Layers(
                    layers.color + layers.transmittance * alpha * color,
                    layers.transmittance * (1.0 - alpha),
                    jnp.where(face_id >= 0, depth, jnp.inf),
                    layers.count + 1,
                )

            def shows_more(layers):
                open_points = (layers.transmittance[..., 0] >= MIN_TRANSMITTANCE) & jnp.isfinite(layers.depth)
                return open_points.any() & (layers.count < MAX_LAYERS)

            depth = jnp.where(face_id >= 0, depth, jnp.inf)
            layers = jax.lax.while_loop(shows_more, deeper, _Layers(color, 1.0 - alpha, depth, 1))
            color, alpha = layers.color, 1.0 - layers.transmittance
        color, alpha = (box_filter(pixels, supersample)[0] for pixels in (color, alpha))
        color = color + 1.0 - alpha if over_white else color / jnp.maximum(alpha, 1e-6)
        return to_uint8(color), to_uint8(alpha[..., 0])

    return jax.lax.map(frame, camera_to_world)


def to_uint8(values: Float[Array, "*n"]) -> UInt8[Array, "*n"]:
    """Values in [0, 1] as 8-bit levels; others are clipped."""
    return jnp.round(255.0 * jnp.clip(values, 0.0, 1.0)).astype(jnp.uint8)
