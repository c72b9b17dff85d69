"""Objects to pictures: orbits of any mesh, and batches of figures for training."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, UInt8
from sv3d_jax.cameras.orbit import CameraPath, make_orbit
from sv3d_jax.cameras.pose import SV3D_FOV_DEG, SV3D_RADIUS, intrinsics, look_at
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.render.antialias import box_filter
from sv3d_jax.render.interpolate import face_normals, interpolate, seen_shading_normals, vertex_normals
from sv3d_jax.render.lighting import SoftLight, soft_light
from sv3d_jax.render.rasterize import Fragments, project, surface_points, visible_faces
from sv3d_jax.render.texture import sample_bilinear
from sv3d_jax.train.data.config import RenderConfig
from sv3d_jax.train.data.figures import MAX_TRIANGLES, figure_mesh

OBJECT_RADIUS = 0.55  # no view of any orbit clips the ball of radius 2 sin(16.9 deg) = 0.5814


def object_to_world(mesh: Mesh) -> Float[np.ndarray, "4 4"]:
    """Moves the centre of the mesh's box to the origin and scales its farthest vertex to distance OBJECT_RADIUS."""
    used = mesh.vertices[np.unique(mesh.faces)]
    center = 0.5 * (used.min(axis=0) + used.max(axis=0))
    scale = OBJECT_RADIUS / np.linalg.norm(used - center, axis=1).max()
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = -scale * center
    return matrix


def render_orbit(
    mesh: Mesh,
    cameras: CameraPath,
    size: int,
    light: SoftLight | None = None,
    *,
    supersample: int = 3,
    background: Literal["white", "transparent"] = "white",
) -> tuple[UInt8[np.ndarray, "f h w 3"], UInt8[np.ndarray, "f h w"]]:
    """Pictures and alphas of a mesh that stands in the world, in its own colours where there is no light.

    Each pixel is the mean of `supersample` squared points. Over a transparent background, colours at the
    silhouette are the object's alone.
    """
    focal, center = intrinsics(cameras.fov_deg, size * supersample)
    tile = int(np.clip(2.0 ** np.round(np.log2(2 * size * supersample / np.sqrt(len(mesh.faces)))), 4, 16))
    leaves = [mesh.vertices, mesh.vertex_colors, mesh.uv, mesh.texture]
    images, alphas = _render_orbit(
        _Surface(
            jnp.asarray(mesh.faces),
            *(None if leaf is None else jnp.asarray(leaf, jnp.float32) for leaf in leaves),
        ),
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


class FigureBatch(NamedTuple):
    """Figures in the world, lit, padded to one number of triangles."""

    corners: Float[Array, "b t 3 3"]
    colors: Float[Array, "b t 3"]


def pack_figures(seeds: Any) -> FigureBatch:
    """The figures with these seeds, each in the soft light of its own seed."""
    corners = np.zeros((len(seeds), MAX_TRIANGLES, 3, 3), np.float32)
    colors = np.zeros((len(seeds), MAX_TRIANGLES, 3), np.float32)
    for i, seed in enumerate(seeds):
        mesh = to_world(figure_mesh(int(seed)))
        triangles = mesh.vertices[mesh.faces]
        normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        shade = soft_light(int(seed)).shade(normals)
        corners[i, : len(triangles)] = triangles
        colors[i, : len(triangles)] = mesh.vertex_colors[mesh.faces[:, 0]] * shade[:, None]
    return FigureBatch(corners, colors)


def render_figures(
    figures: FigureBatch | Any, azimuths_deg: Any, elevations_deg: Any, size: int, *, supersample: int = 2
) -> UInt8[Array, "b f h w 3"]:
    """Pictures over white of figures (a packed batch, or seeds), each from its own cameras; angles are `b f`.

    What `render_orbit` shows of the same figure in the light of its seed, at many times its speed. One
    compilation serves all batches of a shape.
    """
    figures = figures if isinstance(figures, FigureBatch) else pack_figures(figures)
    angles = np.asarray(azimuths_deg, np.float64), np.asarray(elevations_deg, np.float64)
    camera_to_world = look_at(*angles, SV3D_RADIUS)
    return _render_figures(
        figures, jnp.asarray(camera_to_world, jnp.float32), size=size, supersample=supersample
    )


def to_world(mesh: Mesh) -> Mesh:
    """The mesh centred and scaled by `object_to_world`."""
    return _moved(mesh, object_to_world(mesh))


def run_render(config: RenderConfig, progress: Progress | NullProgress) -> dict[str, Any]:
    """The verb `data render`."""
    from sv3d_jax.io.meshes import read_mesh, world_from_file

    cameras = make_orbit(config.orbit, config.frames, config.elevation, config.seed)
    folders = _folders(config)
    progress.stage("render", total=len(folders))
    rendered = []
    for index, (path, directory) in enumerate(folders):
        mesh = read_mesh(path, config.up)
        if not config.dry_run:
            if config.orbit == "dynamic":
                cameras = make_orbit(config.orbit, config.frames, config.elevation, config.seed + index)
            matrix = object_to_world(mesh)
            file_to_world = matrix @ world_from_file(config.up)
            _write_render(
                config, path, directory, _moved(mesh, matrix), file_to_world, cameras, config.seed + index
            )
        rendered.append({"mesh": path, "orbit": directory, "faces": len(mesh.faces)})
        progress.advance()
    return {"dry_run": config.dry_run, "rendered": rendered}


def _moved(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    from dataclasses import replace

    return replace(mesh, vertices=mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3])


def _folders(config: RenderConfig) -> list[tuple[Path, Path]]:
    """Each mesh file with the folder of its orbit."""
    if len(config.meshes) == 1:
        return [(config.meshes[0], config.output)]
    stems = [path.stem for path in config.meshes]
    for path, stem in zip(config.meshes, stems, strict=True):
        if stems.count(stem) > 1:
            raise InputError(
                f"{path}: several meshes are called {stem}", hint="render them to different folders"
            )
    return [(path, config.output / path.stem) for path in config.meshes]


def _write_render(config, path, directory, mesh, file_to_world, cameras, seed) -> None:
    from sv3d_jax.io.images import write_png
    from sv3d_jax.io.orbits import CAMERAS_FILE, frame_file, write_orbit
    from sv3d_jax.io.outputs import OutputFolder
    from sv3d_jax.io.video import contact_sheet, frame_labels

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    settings = config.settings() | {"meshes": str(path), "seed": seed, "mesh_sha256": digest}
    with OutputFolder(
        directory, {"verb": "data render", **settings}, config.overwrite, parents=directory != config.output
    ) as folder:
        if folder.done:
            return
        light = soft_light(seed) if config.light == "soft" else None
        images, alphas = render_orbit(mesh, cameras, config.size, light, background=config.background)
        sheet = contact_sheet(images, frame_labels(cameras.azimuths_deg, cameras.elevations_deg))
        if config.background == "transparent":
            images = np.concatenate([images, alphas[..., None]], axis=-1)
        write_orbit(directory, images, cameras, file_to_world)
        write_png(directory / "contact.png", sheet)
        files = [*(frame_file(i) for i in range(len(images))), CAMERAS_FILE, "contact.png"]
        folder.finish_stage("render", files)
        folder.write_run_json(seeds=[seed])


class _Surface(NamedTuple):
    """A mesh on the device."""

    faces: Array
    vertices: Array
    vertex_colors: Array | None
    uv: Array | None
    texture: Array | None


@partial(jax.jit, static_argnames=("size", "supersample", "tile", "over_white"))
def _render_orbit(surface, camera_to_world, focal, center, light, *, size, supersample, tile, over_white):
    normals = vertex_normals(surface.vertices, surface.faces)
    outwards = face_normals(surface.vertices, surface.faces)
    side = size * supersample

    def frame(camera):
        screen = project(surface.vertices, camera[None], focal[None], center[None])
        face_id = visible_faces(screen, surface.faces, side, side, tile=tile)
        fragments = Fragments(face_id, *surface_points(screen, surface.faces, face_id))
        color = _albedo(surface, fragments)
        if light is not None:
            towards = camera[:3, 3] - surface.vertices[surface.faces[:, 0]]
            front = jnp.where((outwards * towards).sum(-1) >= 0, 1.0, -1.0)[jnp.maximum(face_id, 0)]
            shading_normals = front[..., None] * seen_shading_normals(normals, surface.faces, fragments)
            color = color * light.shade(shading_normals)[..., None]
        alpha = (face_id >= 0).astype(jnp.float32)[..., None]
        color, alpha = (box_filter(pixels, supersample)[0] for pixels in (color * alpha, alpha))
        color = color + 1.0 - alpha if over_white else color / jnp.maximum(alpha, 1e-6)
        return _to_uint8(color), _to_uint8(alpha[..., 0])

    return jax.lax.map(frame, camera_to_world)


def _albedo(surface: _Surface, fragments: Fragments) -> Float[Array, "n h w 3"]:
    """Vertex colour times texture, as far as there are any."""
    color = jnp.ones((*fragments.face_id.shape, 3))
    if surface.vertex_colors is not None:
        color = interpolate(surface.vertex_colors, surface.faces, fragments)
    if surface.texture is not None:
        color = color * sample_bilinear(surface.texture, interpolate(surface.uv, surface.faces, fragments))
    return color


@partial(jax.jit, static_argnames=("size", "supersample"))
def _render_figures(figures: FigureBatch, camera_to_world, *, size, supersample):
    batch, frames = camera_to_world.shape[:2]
    side = size * supersample
    focal, center = (jnp.tile(leaf, (batch * frames, 1)) for leaf in intrinsics(SV3D_FOV_DEG, side))
    vertices = jnp.repeat(figures.corners.reshape(batch, -1, 3), frames, axis=0)
    screen = project(vertices, camera_to_world.reshape(-1, 4, 4), focal.astype(jnp.float32), center)
    faces = jnp.arange(3 * MAX_TRIANGLES).reshape(-1, 3)
    face_id = visible_faces(screen, faces, side, side, tile=8, cull_back=True)
    palette = jnp.pad(
        figures.colors, ((0, 0), (1, 0), (0, 0)), constant_values=1.0
    )  # entry 0: the background
    colors = jax.vmap(lambda table, index: table[index])(palette, face_id.reshape(batch, -1) + 1)
    pixels = box_filter(colors.reshape(batch * frames, side, side, 3), supersample)
    return _to_uint8(pixels).reshape(batch, frames, size, size, 3)


def _to_uint8(values: Float[Array, "*n"]) -> UInt8[Array, "*n"]:
    return jnp.round(255.0 * jnp.clip(values, 0.0, 1.0)).astype(jnp.uint8)
