"""Objects to pictures: orbits of any mesh, and batches of figures for training."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, UInt8
from sv3d_jax.cameras.orbit import NUM_FRAMES, CameraPath, CameraWarning, make_orbit
from sv3d_jax.cameras.pose import SV3D_FOV_DEG, SV3D_RADIUS, intrinsics, look_at
from sv3d_jax.errors import InputError, OutOfMemory, SV3DError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.hdr import read_hdr
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.render.antialias import box_filter
from sv3d_jax.render.appearance import Appearance, appearance_of, seen_colors
from sv3d_jax.render.interpolate import face_normals, seen_shading_normals, vertex_normals
from sv3d_jax.render.lighting import (
    SGLight,
    SHLight,
    SoftLight,
    environment_light,
    random_sg_light,
    random_sh_light,
    soft_light,
)
from sv3d_jax.render.rasterize import Fragments, project, surface_points, visible_faces
from sv3d_jax.train.data.config import RenderConfig
from sv3d_jax.train.data.figures import MAX_TRIANGLES, figure_mesh

Light = SoftLight | SGLight | SHLight

MIN_SIZE_CLASS, TEXTURE_STEP = 1024, 256  # of vertices and faces, of a texture's sides
MAX_LAYERS = 24  # of surfaces behind each other that are looked through
MIN_CLEARNESS = 1 / 512  # share of light below which what lies behind does not show
FOLDERS = ("frames", "alphas")  # in that of an orbit
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
    light: Light | None = None,
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
    """The verb `data render`. Finished orbits are left alone; of several meshes, bad ones are left out and named."""
    for path in config.hdr:
        read_hdr(path)  # a bad one is refused before any mesh is rendered
    if config.frames % NUM_FRAMES:
        make_orbit(config.orbit, config.frames, config.elevation)  # warns that it is not what SV3D sees
    tasks, twice = _tasks(config)
    for reason in twice:
        progress.note(f"left out: {reason}")
    progress.stage("render", total=len(tasks))
    rendered, left_out = [], []
    for task, outcome in _outcomes(config, tasks):
        if isinstance(outcome, dict):
            rendered.append({"mesh": task.mesh, "orbit": task.directory, **outcome})
            for remark in outcome.get("remarks", ()):
                progress.note(f"{task.mesh}: {remark}")
        elif len(tasks) == 1:
            raise outcome
        else:
            left_out.append(str(outcome))
            progress.note(f"left out: {outcome}")
        progress.advance()
    if not rendered:
        raise InputError(f"none of {len(tasks)} meshes can be rendered", hint=left_out[0])
    return {"dry_run": config.dry_run, "rendered": rendered, "left_out": twice + left_out}


class Task(NamedTuple):
    """A mesh to render."""

    mesh: Path
    directory: Path
    seed: int


def _tasks(config: RenderConfig) -> tuple[list[Task], list[str]]:
    """Each mesh file with the folder of its orbit and its seed; and why files of a folder are left out.

    Seeds count up over files that are given one by one; in a folder or a list, where others come and go, a mesh
    keeps the seed that its name gives. Raises InputError where the folders of two are one, or one lies among the
    frames of the other.
    """
    tasks: dict[str, Task] = {}
    left_out = []
    for index, given in enumerate(config.meshes):
        named, reasons = _named_meshes(given)
        left_out += reasons
        for name, path in named:
            if name in tasks:
                raise InputError(
                    f"{path}: several meshes are called {name}", hint="render them to different folders"
                )
            offset = index if path == given else zlib.crc32(name.encode())
            tasks[name] = Task(path, config.output / name, (config.seed + offset) % 2**32)
    for name, task in tasks.items():
        for above in PurePosixPath(name).parents:
            outer = tasks.get(above.as_posix())
            if outer and PurePosixPath(name).relative_to(above).parts[0] in FOLDERS:
                raise InputError(
                    f"{task.mesh}: its orbit's folder {task.directory} would lie among the frames of {outer.mesh}",
                    hint="rename one of the two, or render them to different folders",
                )
    if len(config.meshes) == 1 and (only := next(iter(tasks.values()))).mesh == config.meshes[0]:
        return [only._replace(directory=config.output)], left_out
    return list(tasks.values()), left_out


def _named_meshes(given: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """The meshes that a path means, with their names: itself, those below a folder, those that a list names.

    And why files of a folder are left out: it has the same mesh in another format.
    """
    if given.is_dir():
        return _meshes_below(given)
    if given.suffix == ".txt":
        return [(Path(line).stem, given.parent / line) for line in _lines(given)], []
    return [(given.stem, given)], []


def _meshes_below(folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Of files with one name, the one whose format is the first of MESH_SUFFIXES."""
    from sv3d_jax.io.meshes import MESH_SUFFIXES

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MESH_SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no mesh", hint=f"known: {', '.join(MESH_SUFFIXES)}")
    named: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: MESH_SUFFIXES.index(path.suffix.lower())):
        named.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    chosen = {path: name for name, path in named.items()}
    left_out = [
        f"{path}: {named[path.relative_to(folder).with_suffix('').as_posix()].name} is rendered"
        for path in files
        if path not in chosen
    ]
    return [(chosen[path], path) for path in files if path in chosen], left_out


def _lines(path: Path) -> list[str]:
    """The lines of a list of files that are not empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    lines = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise InputError(
                f"{path}, line {number}, is not UTF-8 text", hint="save the list as UTF-8"
            ) from None
        if "\0" in text:
            raise InputError(f"{path}, line {number}, has a null byte, as no file name does")
        lines += [text] if text else []
    if not lines:
        raise InputError(f"{path} names no mesh", hint="a list names one file a line, relative to itself")
    return lines


def _outcomes(config: RenderConfig, tasks: list[Task]) -> Iterator[tuple[Task, dict[str, Any] | SV3DError]]:
    """Each task, as it ends, with what is to be known of its mesh or what is wrong with it."""
    if not config.workers or config.dry_run:
        for task in tasks:
            yield task, _attempt(config, task)
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # workers share the accelerator's memory
    pool = ProcessPoolExecutor(
        config.workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(config,)
    )
    try:
        futures = {pool.submit(_attempt, config, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise SV3DError(
            "a worker process died, perhaps out of memory", hint="run again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(config: RenderConfig) -> None:
    from sv3d_jax.devices import enable_compile_cache, select_device

    select_device(config.device)
    if config.compile_cache:
        enable_compile_cache()


def _attempt(config: RenderConfig, task: Task) -> dict[str, Any] | SV3DError:
    try:
        return _render_task(config, task)
    except InputError as error:
        return error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return OutOfMemory(f"{task.mesh}: out of memory", hint="smaller --size, fewer --workers")


def _render_task(config: RenderConfig, task: Task) -> dict[str, Any]:
    """Render one mesh, unless that is done; the number of its faces, and what of its file was left out."""
    from sv3d_jax.io.meshes import read_mesh, world_from_mesh_file
    from sv3d_jax.io.outputs import RUN_FILE, OutputFolder

    try:
        digest = hashlib.sha256(task.mesh.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{task.mesh} cannot be read: {error.strerror}") from None
    settings = config.settings() | {"meshes": str(task.mesh), "seed": task.seed, "mesh_sha256": digest}
    del settings["workers"]  # changes no picture
    folder = OutputFolder(
        task.directory,
        {"verb": "data render", **settings},
        config.overwrite,
        parents=task.directory != config.output,
    )
    if (task.directory / RUN_FILE).is_file() and not (config.overwrite or config.dry_run):
        with folder:
            if folder.done:
                return folder.stage_facts("render")
    mesh = read_mesh(task.mesh, config.up)  # before the folder is made
    facts = {"faces": len(mesh.faces), "remarks": list(mesh.remarks)}
    if not config.dry_run:
        matrix = object_to_world(mesh)
        with folder:
            placed = _moved(mesh, matrix)
            _write_render(
                config, folder, task.seed, placed, matrix @ world_from_mesh_file(task.mesh, config.up), facts
            )
    return facts


def _cameras(config: RenderConfig, seed: int) -> CameraPath:
    elevation = config.elevation
    if config.elevation_max is not None:
        elevation = np.random.default_rng([seed, 0xE1E]).uniform(elevation, config.elevation_max)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CameraWarning)  # said once, for all meshes
        return make_orbit(config.orbit, config.frames, float(elevation), seed)


def _light(config: RenderConfig, seed: int) -> Light | None:
    if config.hdr:
        rng = np.random.default_rng([seed, 0x4D5])
        radiance = read_hdr(config.hdr[rng.integers(len(config.hdr))])
        return environment_light(radiance, rng.uniform(0.0, 360.0))
    if config.light == "none":
        return None
    return {"soft": soft_light, "gaussians": random_sg_light, "harmonics": random_sh_light}[config.light](
        seed
    )


def _moved(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    from dataclasses import replace

    return replace(mesh, vertices=mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3])


def _write_render(
    config: RenderConfig,
    folder: Any,
    seed: int,
    mesh: Mesh,
    file_to_world: np.ndarray,
    facts: dict[str, Any],
) -> None:
    from sv3d_jax.io.images import write_png
    from sv3d_jax.io.orbits import write_orbit
    from sv3d_jax.io.video import contact_sheet, frame_labels

    cameras = _cameras(config, seed)
    images, alphas = render_orbit(
        mesh, cameras, config.size, _light(config, seed), background=config.background
    )
    shown = slice(None, None, max(1, len(images) // NUM_FRAMES))
    labels = frame_labels(cameras.azimuths_deg[shown], cameras.elevations_deg[shown])
    sheet = contact_sheet(images[shown], labels)
    beside = alphas
    if config.background == "transparent":
        images, beside = np.concatenate([images, alphas[..., None]], axis=-1), None
    files = write_orbit(folder.directory, images, cameras, file_to_world, beside)
    write_png(folder.path("contact.png"), sheet)
    folder.finish_stage("render", [*files, "contact.png"], facts)
    folder.write_run_json(seeds=[seed])


class _DeviceMesh(NamedTuple):
    """A mesh as arrays on the device, padded so that meshes of similar size share a compiled program."""

    faces: Array
    vertices: Array
    normals: Array | None
    look: Appearance


def _padded_mesh(mesh: Mesh) -> _DeviceMesh:
    """The mesh with sizes rounded up, so that many meshes share a compiled program: added faces have no area."""
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
    """Surfaces seen one behind the other at every point of a picture."""

    color: Array  # times its opacity, of what has been seen
    clearness: Array  # the share of light that passes all that has been seen
    depth: Array  # of the last of them
    count: Array


@partial(jax.jit, static_argnames=("size", "supersample", "tile", "over_white"))
def _render_orbit(surface, camera_to_world, focal, center, light, *, size, supersample, tile, over_white):
    outwards = face_normals(surface.vertices, surface.faces)
    normals = surface.normals
    if normals is None:
        normals = vertex_normals(surface.vertices, surface.faces)
    side = size * supersample

    def seen(camera, screen, face_id):
        """Lit colour, alpha and depth of the points of the faces; alpha 0 on the background."""
        fragments = Fragments(face_id, *surface_points(screen, surface.faces, face_id))
        towards = camera[:3, 3] - surface.vertices[surface.faces[:, 0]]
        of_face = jnp.maximum(face_id, 0)
        from_behind = ((outwards * towards).sum(-1) < 0)[of_face]
        look, weights = surface.look, fragments.barycentrics
        color, alpha = seen_colors(look, surface.faces, face_id, weights, from_behind)
        if light is not None:
            front = jnp.where(from_behind, -1.0, 1.0)
            smooth = seen_shading_normals(normals, surface.faces, fragments)
            if surface.normals is not None:  # zeros stand for the face's own
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
            # What lies behind, layer by layer, until nothing more shows through.
            def deeper(layers):
                hidden = layers.clearness[..., 0] < MIN_CLEARNESS
                beyond = jnp.where(hidden, jnp.inf, layers.depth)
                face_id = visible_faces(screen, surface.faces, side, side, tile=tile, beyond=beyond)
                color, alpha, depth = seen(camera, screen, face_id)
                return _Layers(
                    layers.color + layers.clearness * alpha * color,
                    layers.clearness * (1.0 - alpha),
                    jnp.where(face_id >= 0, depth, jnp.inf),
                    layers.count + 1,
                )

            def shows_more(layers):
                open_points = (layers.clearness[..., 0] >= MIN_CLEARNESS) & jnp.isfinite(layers.depth)
                return open_points.any() & (layers.count < MAX_LAYERS)

            depth = jnp.where(face_id >= 0, depth, jnp.inf)
            layers = jax.lax.while_loop(shows_more, deeper, _Layers(color, 1.0 - alpha, depth, 1))
            color, alpha = layers.color, 1.0 - layers.clearness
        color, alpha = (box_filter(pixels, supersample)[0] for pixels in (color, alpha))
        color = color + 1.0 - alpha if over_white else color / jnp.maximum(alpha, 1e-6)
        return _to_uint8(color), _to_uint8(alpha[..., 0])

    return jax.lax.map(frame, camera_to_world)


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
