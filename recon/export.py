"""Files of a reconstruction: the mesh, a turntable video, and the mesh beside the frames it came from."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.cameras.pose import look_at
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.images import write_png
from sv3d_jax.io.meshes import write_glb, write_obj, write_ply
from sv3d_jax.io.orbits import OrbitFrames
from sv3d_jax.io.video import available_format, contact_sheet, write_video
from sv3d_jax.render.interpolate import interpolate
from sv3d_jax.render.rasterize import Fragments, project, surface_points, visible_faces

WRITERS = {".glb": write_glb, ".ply": write_ply, ".obj": write_obj}
TURNTABLE_FRAMES = 42
TURNTABLE_FPS = 14
TURNTABLE_ELEVATION_DEG = 15.0
MIN_VIDEO_SIDE = 256
COMPARED_VIEWS = 7
SUPERSAMPLE = 2


def write_results(directory: Path, mesh: Mesh, frames: OrbitFrames) -> list[Path]:
    """mesh.glb, mesh.ply, turntable video and comparison.png; returns their paths."""
    video = directory / f"turntable.{available_format('mp4')}"
    paths = [directory / "mesh.glb", directory / "mesh.ply", video, directory / "comparison.png"]
    for path in paths[:2]:
        write_mesh(path, mesh)
    write_video(video, turntable(mesh, frames), fps=TURNTABLE_FPS)
    write_png(paths[3], comparison(mesh, frames))
    return paths


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Write a mesh in the format that the suffix names."""
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise InputError(
            f"{path} is not a mesh file that can be written", hint=f"known: {', '.join(WRITERS)}"
        )
    writer(path, mesh)


def turntable(mesh: Mesh, frames: OrbitFrames) -> np.ndarray:
    """The mesh turning once around the vertical through its middle (f h w 3, uint8), from the input view on."""
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
    return render_mesh(mesh, poses, focal, middle, side, side)


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
) -> np.ndarray:
    """Vertex colours of a closed mesh over white (f h w 3, uint8), several points to a pixel."""
    arrays = [jnp.asarray(x) for x in (mesh.vertices.astype(np.float32), mesh.faces, mesh.vertex_colors)]
    pictures = []
    for camera in zip(camera_to_world, focal_px, center_px, strict=True):
        camera = [jnp.asarray(value, jnp.float32)[None] for value in camera]
        pictures.append(np.asarray(_render_view(*arrays, *camera, height=height, width=width)))
    return np.stack(pictures)


@partial(jax.jit, static_argnames=("height", "width"))
def _render_view(vertices, faces, colors, pose, focal, center, *, height, width):
    tall, wide = height * SUPERSAMPLE, width * SUPERSAMPLE
    screen = project(vertices, pose, focal * SUPERSAMPLE, center * SUPERSAMPLE)
    face_id = visible_faces(screen, faces, tall, wide, cull_back=True)
    fragments = Fragments(face_id, *surface_points(screen, faces, face_id))
    color = jnp.where(face_id[..., None] >= 0, interpolate(colors, faces, fragments), 1.0)[0]
    blocks = color.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE, 3).mean((1, 3))
    return jnp.round(255 * blocks).astype(jnp.uint8)
