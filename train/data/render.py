"""The verb `data render`: renders mesh files to orbit folders, in several processes if asked to."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jax
import numpy as np

from sv3d_jax import signals
from sv3d_jax.cameras.orbit import NUM_FRAMES, CameraPath, CameraWarning, make_orbit
from sv3d_jax.errors import InputError, OutOfMemory, SV3DError, is_out_of_memory
from sv3d_jax.geometry.mesh import Mesh, moved, object_to_world
from sv3d_jax.io.environment import read_environment
from sv3d_jax.io.inputs import refuse_overwriting
from sv3d_jax.io.reading import open_file, read_file, reading
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.render.lighting import environment_light, random_sg_light, random_sh_light, soft_light
from sv3d_jax.render.orbit import Light, render_orbit
from sv3d_jax.train.data.config import RenderConfig

FOLDERS = ("frames", "alphas")  # folders inside an orbit folder
POLL_S = 0.2  # between looks at signals, while workers render
MAX_LIST_BYTES = 100_000_000


def run_render(config: RenderConfig, progress: Progress | NullProgress) -> dict[str, Any]:
    """The verb `data render`. Finished orbits are not rendered again.

    Of several meshes, those that cannot be rendered are left out and reported. Raises InputError for a single one.
    """
    for path in config.hdr:
        read_environment(path)  # damaged ones are refused before any mesh is rendered
    if config.frames % NUM_FRAMES:
        make_orbit(config.orbit, config.frames, config.elevation)  # warns about the number of frames
    tasks, twice = _tasks(config)
    for reason in twice:
        progress.note(f"left out: {reason}")
    refuse_overwriting([task.mesh for task in tasks], [task.directory for task in tasks])
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
    """A mesh file to render, its output folder and its random seed."""

    mesh: Path
    directory: Path
    seed: int


def _tasks(config: RenderConfig) -> tuple[list[Task], list[str]]:
    """The tasks for all meshes, and the reasons why files of a folder are left out.

    Seeds of files on the command line count up. In a folder or list the seed follows from the mesh's name, so that it
    stays the same when others are added. Raises InputError if the output folders of two meshes are the same, or one
    lies among the frames of the other.
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
    """The meshes that a path stands for, with names: the file itself, files below a folder, or those in a list.

    Also the reasons why files of a folder are left out: the same mesh exists in another format.
    """
    if given.is_dir():
        return _meshes_below(given)
    if given.suffix == ".txt":
        return [(Path(line).stem, given.parent / line) for line in _lines(given)], []
    return [(given.stem, given)], []


def _meshes_below(folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """The mesh files below a folder; of files with the same name, the format that comes first in MESH_SUFFIXES."""
    from sv3d_jax.io.meshes import MESH_SUFFIXES, mesh_files

    files = mesh_files(folder)
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
    """The non-empty lines of a list of files. Raises InputError."""
    with reading(path, "is no list of meshes"):
        content = read_file(path, MAX_LIST_BYTES)
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
    """Every task when it is finished, with facts about its mesh, or the error."""
    if not config.workers or config.dry_run:
        for task in tasks:
            yield task, _attempt(config, task)
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # workers share the device's memory
    pool = ProcessPoolExecutor(
        config.workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(config,)
    )
    try:
        with signals.interrupt_blocked():
            futures = {pool.submit(_attempt, config, task): task for task in tasks}
        while futures:
            for future in wait(futures, POLL_S, FIRST_COMPLETED).done:
                yield futures.pop(future), future.result()
            signals.check()
    except BrokenProcessPool:
        signals.check()  # a signal to the whole group has ended the workers as well
        raise SV3DError(
            "a worker process died, perhaps out of memory", hint="run again with fewer --workers"
        ) from None
    finally:
        signals.end_children()  # none is left running if the run ends early
        pool.shutdown(cancel_futures=True)


def _start_worker(config: RenderConfig) -> None:
    signals.end_with_parent()
    from sv3d_jax.devices import open_device

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first process has said what is wrong with the cache
        open_device(config.device, config.compile_cache)


def _attempt(config: RenderConfig, task: Task) -> dict[str, Any] | SV3DError:
    try:
        return _render_task(config, task)
    except InputError as error:
        return error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return OutOfMemory(f"{task.mesh}: out of memory", hint="smaller --size, fewer --workers")


def _render_task(config: RenderConfig, task: Task) -> dict[str, Any]:
    """Render one mesh unless its orbit is finished; returns its number of faces and the remarks of its reader."""
    from sv3d_jax.io.meshes import read_mesh, world_from_mesh_file
    from sv3d_jax.io.outputs import RUN_FILE, OutputFolder

    try:
        with open_file(task.mesh) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{task.mesh} cannot be read: {error.strerror}") from None
    settings = config.settings() | {"meshes": str(task.mesh), "seed": task.seed, "mesh_sha256": digest}
    del settings["workers"]  # does not affect the result
    folder = OutputFolder(
        task.directory,
        {"verb": "data render", **settings},
        config.overwrite,
        below=config.output if task.directory != config.output else None,
    )
    if (task.directory / RUN_FILE).is_file() and not (config.overwrite or config.dry_run):
        with folder:
            if folder.done:
                return folder.stage_facts("render")
    # Before the folder is created, so that impossible cameras and damaged meshes leave none.
    _cameras(config, task.seed)
    mesh = read_mesh(task.mesh, config.up)
    facts = {"faces": len(mesh.faces), "remarks": list(mesh.remarks)}
    if not config.dry_run:
        matrix = object_to_world(mesh)
        with folder:
            placed = moved(mesh, matrix)
            _write_render(
                config, folder, task.seed, placed, matrix @ world_from_mesh_file(task.mesh, config.up), facts
            )
    return facts


def _cameras(config: RenderConfig, seed: int) -> CameraPath:
    elevation = config.elevation
    if config.elevation_max is not None:
        elevation = np.random.default_rng([seed, 0xE1E]).uniform(elevation, config.elevation_max)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CameraWarning)  # already warned once for all meshes
        return make_orbit(config.orbit, config.frames, float(elevation), seed)


def _light(config: RenderConfig, seed: int) -> Light | None:
    if config.hdr:
        rng = np.random.default_rng([seed, 0x4D5])
        radiance = read_environment(config.hdr[rng.integers(len(config.hdr))])
        return environment_light(radiance, rng.uniform(0.0, 360.0))
    if config.light == "none":
        return None
    return {"soft": soft_light, "gaussians": random_sg_light, "harmonics": random_sh_light}[config.light](
        seed
    )


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
