"""Files of a reconstruction: the mesh, previews and turntable videos, and the mesh beside the frames it came from."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import UInt8, on_device
from sv3d_jax.cameras.pose import look_at
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.images import write_png
from sv3d_jax.io.meshes import write_glb, write_obj, write_ply, write_usdz
from sv3d_jax.io.orbits import OrbitFrames
from sv3d_jax.io.surfaces import Up
from sv3d_jax.io.video import available_format, contact_sheet, write_video
from sv3d_jax.programs import kept_jit
from sv3d_jax.recon.capacity import padded
from sv3d_jax.recon.representations import Light
from sv3d_jax.recon.uv import smooth_normals
from sv3d_jax.render.appearance import appearance_of, seen_colors
from sv3d_jax.render.interpolate import seen_shading_normals
from sv3d_jax.render.lighting import SoftLight
from sv3d_jax.render.pixels import CoveredPixels
from sv3d_jax.render.rasterize import project, visible_faces

# What a picture shows of points of a surface: from the number of the view, colours and unit normals (n 3) to colours.
Shader = Callable[[int, np.ndarray, np.ndarray], np.ndarray]

FORMATS = (".glb", ".obj", ".ply", ".usdz")
KEY_LIGHT = SoftLight(np.array([0.8, 0.0, 0.6], np.float32), 0.3)
TURNTABLE_FRAMES = 42
TURNTABLE_FPS = 14
TURNTABLE_ELEVATION_DEG = 15.0
MIN_VIDEO_SIDE = 256
PREVIEWED_VIEWS = 6
COMPARED_VIEWS = 7
SUPERSAMPLE = 2
VIEWS_AT_ONCE = 2  # one is shaded here while the device draws another


def write_results(
    directory: Path,
    mesh: Mesh,
    frames: OrbitFrames,
    lit: Mesh | None = None,
    light: Light = KEY_LIGHT,
    ply_up: Up = "y",
) -> list[Path]:
    """The mesh as GLB, OBJ and PLY, sheets of its albedo and normals, turntable videos with its own colours and under a
    light that goes round it, and comparison.png; returns their paths.

    `lit` is the same surface in the colours that the frames show: mesh_lit.glb, the turntable and the comparison.
    """
    paths = write_meshes(directory, mesh, lit, ply_up)

    def path(name: str) -> Path:
        paths.append(directory / name)
        return paths[-1]

    shaders = show_colors, relit(light, TURNTABLE_FRAMES), show_normals
    albedo, relighted, normals = turntable(mesh, frames, shaders)
    video = available_format("mp4")
    shown_mesh, turning = mesh, albedo
    if lit is not None:
        shown_mesh, turning = lit, turntable(lit, frames)[0]
    write_video(path(f"turntable.{video}"), turning, fps=TURNTABLE_FPS)
    write_video(path(f"relit.{video}"), relighted, fps=TURNTABLE_FPS)
    shown = np.arange(PREVIEWED_VIEWS) * TURNTABLE_FRAMES // PREVIEWED_VIEWS
    labels = [f"{360 * number / TURNTABLE_FRAMES:.0f}°" for number in shown]
    write_png(path("albedo.png"), contact_sheet(albedo[shown], labels))
    write_png(path("normals.png"), contact_sheet(normals[shown], labels))
    write_png(path("comparison.png"), comparison(shown_mesh, frames))
    return paths


def write_meshes(directory: Path, mesh: Mesh, lit: Mesh | None = None, ply_up: Up = "y") -> list[Path]:
    """The mesh as GLB, OBJ and PLY (with this axis up), and `lit` as mesh_lit.glb; returns their paths."""
    meshes = {f"mesh{suffix}": mesh for suffix in (".glb", ".obj", ".ply")}
    if lit is not None:
        meshes["mesh_lit.glb"] = lit
    for name, shown in meshes.items():
        write_mesh(directory / name, shown, ply_up)
    beside_obj = [] if mesh.texture is None else ["mesh.mtl", "mesh.png"]
    return [directory / name for name in [*meshes, *beside_obj]]


def write_stage(directory: Path, stage: str, mesh: Mesh, frames: OrbitFrames, ply_up: Up = "y") -> list[Path]:
    """The mesh of a stage as a PLY of its name, and a picture of it beside the frames; returns their paths."""
    paths = [directory / f"{stage}.ply", directory / f"{stage}.png"]
    write_mesh(paths[0], mesh, ply_up)
    write_png(paths[1], comparison(mesh, frames))
    return paths


def write_mesh(path: Path, mesh: Mesh, ply_up: Up = "y") -> None:
    """Write a mesh in the format that the suffix names, a PLY with this axis up and all others with y up.

    Normals are continuous across UV seams.
    """
    normals = smooth_normals(mesh)
    match path.suffix.lower():
        case ".glb":
            write_glb(path, mesh, normals)
        case ".obj":
            write_obj(path, mesh, normals)
        case ".ply":
            write_ply(path, with_vertex_colors(mesh), normals, ply_up)
        case ".usdz":
            write_usdz(path, mesh, normals)
        case _:
            raise InputError(
                f"{path} is not a mesh file that can be written", hint=f"known: {', '.join(FORMATS)}"
            )


def with_vertex_colors(mesh: Mesh) -> Mesh:
    """The mesh with its texture's colours at the vertices instead of the texture."""
    if mesh.texture is None:
        return mesh
    vertices, places = np.unique(mesh.faces, return_index=True)  # of each vertex, one corner of a face
    colors = np.ones(mesh.vertices.shape, np.float32)
    seen = _corner_colors(_on_device(mesh), padded(places.astype(np.int32)))
    colors[vertices] = np.asarray(seen)[: len(vertices)]
    return replace(mesh, vertex_colors=colors, uv=None, texture=None, materials=None)


def show_colors(view: int, colors: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """The surface's own colours."""
    return colors


def show_normals(view: int, colors: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Normals in the world, from [-1, 1] to [0, 1]: red along x, green along y, blue along z."""
    return 0.5 + 0.5 * normals


def relit(light: Light, num_views: int) -> Shader:
    """Colours under a light that circles the vertical once in `num_views`, clockwise seen from above."""

    def shader(view, colors, normals):
        angle = 2 * np.pi * view / num_views
        cos, sin = np.cos(angle), np.sin(angle)
        light_from_world = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)
        return colors * np.asarray(light.shade(normals @ light_from_world.T))[..., None]

    return shader


def turntable(
    mesh: Mesh, frames: OrbitFrames, shaders: Sequence[Shader] = (show_colors,)
) -> UInt8[np.ndarray, "shaders f h w 3"]:
    """Pictures of the mesh with each of the shaders as it turns once around the vertical, from the input view on."""
    side = max(MIN_VIDEO_SIDE, *frames.images.shape[1:3])
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    center, radius = (low + high) / 2, np.linalg.norm(high - low) / 2
    view = frames.camera_to_world[frames.input_frame, :3, 3] - center
    start_deg = np.rad2deg(np.arctan2(view[1], view[0]))
    azimuths_deg = start_deg + np.linspace(0, 360, TURNTABLE_FRAMES, endpoint=False)
    # From 4 radii away the ball around the mesh just fits a view with this focal length.
    poses = look_at(azimuths_deg, np.full(TURNTABLE_FRAMES, TURNTABLE_ELEVATION_DEG), 4.0 * radius)
    poses[:, :3, 3] += center
    focal = np.full((TURNTABLE_FRAMES, 2), 0.5 * side * np.sqrt(4.0**2 - 1))
    middle = np.full((TURNTABLE_FRAMES, 2), side / 2)
    return render_shaded(mesh, poses, focal, middle, side, side, shaders)


def comparison(mesh: Mesh, frames: OrbitFrames) -> np.ndarray:
    """Some frames and, below each, the mesh from the same camera (h w 3, uint8)."""
    count = min(COMPARED_VIEWS, len(frames.images))
    chosen = (frames.input_frame - np.arange(count) * len(frames.images) // count) % len(frames.images)
    height, width = frames.images.shape[1:3]
    cameras = frames.camera_to_world[chosen], frames.focal_px[chosen], frames.center_px[chosen]
    rendered = render_mesh(mesh, *cameras, height, width)
    given = np.round(frames.images[chosen] * 255).astype(np.uint8)
    labels = [f"frame {index}" for index in chosen] + [f"mesh {index}" for index in chosen]
    return contact_sheet(np.concatenate([given, rendered]), labels, columns=count)


def render_mesh(
    mesh: Mesh,
    camera_to_world: np.ndarray,
    focal_px: np.ndarray,
    center_px: np.ndarray,
    height: int,
    width: int,
) -> UInt8[np.ndarray, "f h w 3"]:
    """Colours of a closed mesh over white, several points to a pixel."""
    return render_shaded(mesh, camera_to_world, focal_px, center_px, height, width, (show_colors,))[0]


def render_shaded(
    mesh: Mesh,
    camera_to_world: np.ndarray,
    focal_px: np.ndarray,
    center_px: np.ndarray,
    height: int,
    width: int,
    shaders: Sequence[Shader],
) -> UInt8[np.ndarray, "shaders f h w 3"]:
    """Pictures of a closed mesh over white with each of the shaders, several points to a pixel."""
    surface = _on_device(mesh)
    cameras = [value.astype(np.float32) for value in (camera_to_world, focal_px, center_px)]
    pictures = np.empty((len(shaders), len(camera_to_world), height, width, 3), np.uint8)

    def render(view: int) -> None:
        index, *seen = _seen_points(surface, [value[view : view + 1] for value in cameras], height, width)
        for number, shader in enumerate(shaders):
            color = np.ones((height * SUPERSAMPLE, width * SUPERSAMPLE, 3), np.float32)
            color.reshape(-1, 3)[index] = np.clip(shader(view, *seen), 0.0, 1.0)[: len(index)]
            # A sum of slices: many times as fast as a mean over axes of two values.
            total = sum(
                color[i::SUPERSAMPLE, j::SUPERSAMPLE] for i, j in np.ndindex(SUPERSAMPLE, SUPERSAMPLE)
            )
            pictures[number, view] = np.round(255 / SUPERSAMPLE**2 * total)

    with ThreadPoolExecutor(VIEWS_AT_ONCE) as pool:
        list(pool.map(render, range(len(camera_to_world))))
    return pictures


def _on_device(mesh: Mesh) -> dict[str, Any]:
    """Arrays of a mesh, padded with zeros to shared sizes."""
    look = appearance_of(mesh)
    by_row = {name: getattr(look, name) for name in ("vertex_colors", "vertex_alpha", "uv", "of_face")}
    look = look._replace(**{name: padded(rows) for name, rows in by_row.items() if rows is not None})
    surface = {
        "vertices": padded(mesh.vertices.astype(np.float32)),
        "normals": padded(smooth_normals(mesh).astype(np.float32)),
        "faces": padded(mesh.faces),
        "appearance": look,
    }
    return on_device(surface)


@kept_jit
def _corner_colors(surface, places):
    """Colours at corners of faces, counted through all faces."""
    look, faces = surface["appearance"], surface["faces"]
    return seen_colors(look, faces, places // 3, jnp.eye(3)[places % 3])[0]


def _seen_points(
    surface: dict[str, Any], camera: Sequence[np.ndarray], height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of the surface that a view sees, several to a pixel: their numbers (n), and colours and normals in rows.

    Rows beyond the n-th mean nothing: their number is the same for most views.
    """
    points = height * width * SUPERSAMPLE**2
    for capacity in (points // 2, points):
        index, overflow, *seen = _covered_points(
            surface, *camera, height=height, width=width, capacity=capacity
        )
        if not overflow:
            break
    index = np.asarray(index)
    return index[index < points], *map(np.asarray, seen)


@kept_jit
def _covered_points(surface, pose, focal, center, *, height, width, capacity):
    faces = surface["faces"]
    screen = project(surface["vertices"], pose, focal * SUPERSAMPLE, center * SUPERSAMPLE)
    face_id = visible_faces(screen, faces, height * SUPERSAMPLE, width * SUPERSAMPLE, cull_back=True)
    pixels = CoveredPixels.of(face_id >= 0, capacity)
    fragments = pixels.fragments(screen, faces, face_id)
    colors, _ = seen_colors(surface["appearance"], faces, fragments.face_id, fragments.barycentrics)
    normals = seen_shading_normals(surface["normals"], faces, fragments)
    return pixels.index, pixels.overflow, colors, normals
