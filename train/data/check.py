"""The verb `data check`: lists every defect of record shards and of orbit folders."""

import contextlib
import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.cameras.pose import look_at, looked_at
from sv3d_jax.errors import InputError
from sv3d_jax.io.cameras_file import (
    CAMERAS_FILE,
    camera_lenses,
    camera_poses,
    frame_column,
    input_frame,
    object_to_world,
    read_cameras,
)
from sv3d_jax.io.folders import check_data
from sv3d_jax.io.orbits import read_frame
from sv3d_jax.io.outputs import RUN_FILE, STAGES_FILE
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.train.data.config import CheckConfig
from sv3d_jax.train.data.records import (
    INDEX_FILE,
    SHARD_SUFFIX,
    DamagedRecord,
    Entry,
    Record,
    Shard,
    ShardIndex,
    decode_record,
    import_grain,
    read_index,
    shard_defect,
)

POSE_TOLERANCE = 1e-4  # difference of a camera matrix from that of its angles, as a fraction of the radius


def run_check(config: CheckConfig, progress: Progress | NullProgress) -> dict[str, Any]:
    """The verb `data check`."""
    folder = config.folder
    check_data(folder)
    packed = (folder / INDEX_FILE).exists() or any(folder.glob(f"*{SHARD_SUFFIX}*"))
    if packed:
        checked, defects = "shards", list(shard_defects(folder, progress))
    else:
        checked, defects = "orbits", list(_all_orbit_defects(folder, progress))
    return {"checked": checked, "defects": defects, "ok": not defects}


def shard_defects(folder: Path, progress: Progress | NullProgress) -> Iterator[str]:
    """Defects of a packed folder: of its index, its files and every byte of its records."""
    try:
        index = read_index(folder)
    except InputError as error:
        yield error.message
        return
    known = {shard.file for shard in index.shards}
    for path in sorted(folder.glob(f"*{SHARD_SUFFIX}*")):
        if path.name not in known:
            yield f"{path} is not in the index"
    progress.stage("check", total=len(index.shards))
    first = 0
    for shard in index.shards:
        yield from _one_shard_defects(folder, shard, index, index.records[first : first + shard.records])
        first += shard.records
        progress.advance()


def orbit_defects(folder: Path) -> Iterator[str]:
    """Defects of an orbit folder: of its cameras, frames and alphas."""
    if (folder / STAGES_FILE).exists() and not (folder / RUN_FILE).exists():
        yield f"{folder} is not finished: {RUN_FILE} is missing"
    try:
        document = read_cameras(folder / CAMERAS_FILE)
    except InputError as error:
        yield error.message
        return
    yield from _camera_defects(folder / CAMERAS_FILE, document)
    for read in (input_frame, object_to_world):
        try:
            read(document)
        except InputError as error:
            yield f"{folder / CAMERAS_FILE}: {error.message}"
    size = yield from _frame_defects(folder, document["frames"])
    try:
        camera_lenses(document, *(size or (1, 1)))
    except InputError as error:
        yield f"{folder / CAMERAS_FILE}: {error.message}"


def _all_orbit_defects(folder: Path, progress: Progress | NullProgress) -> Iterator[str]:
    # Complete orbits have the first file, incomplete ones at least the second.
    marks = [*folder.rglob(CAMERAS_FILE), *folder.rglob(STAGES_FILE)]
    orbits = sorted({mark.parent for mark in marks})
    progress.stage("check", total=len(orbits))
    for orbit in orbits:
        yield from orbit_defects(orbit)
        progress.advance()


def _one_shard_defects(
    folder: Path, shard: Shard, index: ShardIndex, entries: tuple[Entry, ...]
) -> Iterator[str]:
    import_grain()
    from array_record.python.array_record_module import ArrayRecordReader

    path = folder / shard.file
    if defect := shard_defect(folder, shard):
        yield defect
    if not path.is_file():
        return
    with open(path, "rb") as file:
        if not defect and hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield f"{path} has changed since it was written: its SHA-256 differs"
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
    except RuntimeError as error:
        yield f"{path} cannot be opened: {_first_line(error)}"
        return
    if count != shard.records:
        yield f"{path} holds {count} records, but {shard.records} were written"
    for place, entry in enumerate(entries[:count]):
        where = f"{path} record {place} ({entry.name})"
        try:
            record = decode_record(reader.read([place])[0], entry)
        except (RuntimeError, DamagedRecord) as error:
            yield f"{where}: {_first_line(error)}"
        else:
            yield from (f"{where}: {defect}" for defect in _record_defects(record, index))
    with contextlib.suppress(RuntimeError):  # closing raises again if the footer is damaged
        reader.close()


def _record_defects(record: Record, index: ShardIndex) -> Iterator[str]:
    shapes = {
        "latents": (record.latents, (index.views, *index.latent_shape)),
        "tokens": (record.tokens, (index.views, index.token_width)),
        "azimuths_deg": (record.orbit.azimuths_deg, (index.views,)),
        "elevations_deg": (record.orbit.elevations_deg, (index.views,)),
    }
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            yield f"{name} has shape {array.shape}, expected {shape}"
        if not np.isfinite(array).all():
            yield f"{name} has values that are not finite"
    if (np.abs(record.orbit.elevations_deg) > 90).any():
        yield "elevations_deg has values outside [-90, 90]"


def _camera_defects(path: Path, document: dict[str, Any]) -> Iterator[str]:
    try:
        poses = camera_poses(document)
        looked_at(poses, [f"frames[{index}]" for index in range(len(poses))])
        azimuths, elevations, radii = (
            frame_column(document["frames"], name) for name in ("azimuth_deg", "elevation_deg", "radius")
        )
    except InputError as error:
        yield f"{path}: {error.message}"
        return
    distances = np.linalg.norm(poses[:, :3, 3], axis=1)
    if np.ptp(distances) > 1e-3 * distances.mean():
        yield f"{path}: distances to the origin differ, {distances.min():g} to {distances.max():g}"
    if azimuths is None or elevations is None or radii is None:
        yield f"{path}: not every frame has azimuth_deg, elevation_deg and radius"
        return
    errors = np.abs(look_at(azimuths, elevations, radii) - poses).max((1, 2)) / np.maximum(1.0, radii)
    for index, error in enumerate(errors):
        if error > POSE_TOLERANCE:
            yield f"{path}: frames[{index}] has a camera_to_world that does not match its angles"


def _frame_defects(
    folder: Path, frames: list[dict[str, Any]]
) -> Generator[str, None, tuple[int, int] | None]:
    """Defects of pictures; returns height and width of the first readable one."""
    size = None
    for index, frame in enumerate(frames):
        file = frame.get("file")
        if not isinstance(file, str):
            yield f"{folder / CAMERAS_FILE}: frames[{index}] names no file"
            continue
        if frame.get("alpha_file") is None and any(other.get("alpha_file") is not None for other in frames):
            yield f"{folder / CAMERAS_FILE}: frames[{index}] has no alpha_file, others have one"
        try:
            view = read_frame(folder, frame, index)
        except InputError as error:
            yield error.message
            continue
        size = size or view.rgb.shape[:2]
        if view.rgb.shape[:2] != size:
            height, width = view.rgb.shape[:2]
            yield f"{folder / file} has {width}x{height} pixels, the first readable frame has {size[1]}x{size[0]}"
        if view.alpha is not None and not view.alpha.any():
            yield f"{folder / file} is empty: its alpha is 0 everywhere"
    return size


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
