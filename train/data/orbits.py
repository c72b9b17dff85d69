"""Rendered orbits of procedural objects, cached on disk as uint8 shards, which several runs can share.

A shard holds `SHARD_ORBITS` consecutive orbits; the orbits of one object are adjacent. The content of a shard depends
on the data settings alone. Therefore an interrupted pool can be completed, and a run on fewer objects reads the first
shards of a larger pool.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.errors import InputError
from sv3d_jax.io.documents import read_record
from sv3d_jax.io.outputs import replacing, require_space, write_json
from sv3d_jax.io.reading import check_is_damage
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.render.lighting import soft_light
from sv3d_jax.train.config import DataConfig

SHARD_ORBITS = 128
RENDER_BATCH = 32
ORBIT_STREAM = 1  # random stream of the cameras, separate from that of the object with the same seed


class OrbitAngles(NamedTuple):
    """Absolute azimuths and elevations of the views of one orbit, in order round the object."""

    azimuths_deg: np.ndarray
    elevations_deg: np.ndarray


def training_orbit(seed: int, config: DataConfig, number: int = 0) -> OrbitAngles:
    """Random cameras of an orbit of the object with this seed; `number` counts the orbits of one object.

    The direction is random, the steps are even or uneven, the elevation is constant or follows a sine. If the azimuth
    followed from the frame index alone, the network would learn to ignore the camera.
    """
    rng = np.random.default_rng([ORBIT_STREAM, seed, number])
    frames = config.num_frames
    steps = np.ones(frames)
    if rng.uniform() < config.irregular_share:
        steps = rng.uniform(0.3, 1.7, frames)
    direction = rng.choice([-1.0, 1.0])
    azimuths = rng.uniform(0.0, 360.0) + direction * 360.0 * np.cumsum(steps) / steps.sum()
    elevations = np.full(frames, rng.uniform(config.elevation_min_deg, config.elevation_max_deg))
    if rng.uniform() < config.varied_share:
        amplitude = rng.uniform(config.amplitude_max_deg / 3.0, config.amplitude_max_deg)
        phase = 2 * np.pi * (np.arange(frames) / frames * rng.integers(1, 3) + rng.uniform())
        elevations = elevations + amplitude * np.sin(phase)
    return OrbitAngles(azimuths % 360.0, elevations)


def relative_angles(orbit: OrbitAngles, frames: np.ndarray, input_view: int) -> tuple[np.ndarray, np.ndarray]:
    """Polar angle and azimuth in radians of some views as seen from the input view, azimuth in [0, 2 pi)."""
    azimuths = (orbit.azimuths_deg[frames] - orbit.azimuths_deg[input_view]) % 360.0
    return np.deg2rad(90.0 - orbit.elevations_deg[frames]), np.deg2rad(azimuths)


class OrbitPool:
    """The rendered orbits, in the numbering of `nth_orbit`."""

    def __init__(self, directory: Path, config: DataConfig):
        self.config = config
        self.orbits = [nth_orbit(config, index)[1] for index in range(num_orbits(config))]
        self._shards = [np.load(path, mmap_mode="r") for path in _shard_paths(directory, config)]

    def images(self, orbits: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Pictures uint8 `n h w 3` of view views[i] of orbit orbits[i]."""
        shards, places = np.divmod(orbits, SHARD_ORBITS)
        return np.stack(
            [self._shards[s][p, v] for s, p, v in zip(shards, places, np.asarray(views), strict=True)]
        )

    def shards(self) -> list[np.ndarray]:
        """Pictures uint8 `orbits f h w 3`, in the order of the orbits."""
        return self._shards

    def fingerprint(self) -> str:
        """SHA-256 of all pictures."""
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(np.ascontiguousarray(shard))
        return digest.hexdigest()


def render_pool(directory: Path, config: DataConfig, progress: Progress | None = None) -> OrbitPool:
    """Render the shards that are missing in the folder, then open it. Other runs that use the folder wait meanwhile.

    Raises InputError if the folder was rendered with other settings, or with settings that are not known any more.
    """
    progress = progress or NullProgress()
    directory.mkdir(parents=True, exist_ok=True)
    with pool_lock(directory):
        _render_missing(directory, config, progress)
    return OrbitPool(directory, config)


def pool_lock(directory: Path) -> FileLock:
    """A context in which this run alone writes into a folder of rendered orbits, which several runs may share."""
    return FileLock(directory / "orbits.lock")


def _render_missing(directory: Path, config: DataConfig, progress: Progress) -> None:
    settings = dataclasses.asdict(config) | dict.fromkeys(("objects", "any_input", "validation"))
    index = directory / "orbits.json"
    found = read_record(index)
    if found is None and any(path.exists() for path in _shard_paths(directory, config)):
        raise InputError(
            f"{index} does not say with which settings the orbits beside it were rendered",
            hint=f"remove the folder {directory}, or choose another with --data-dir; the orbits are rendered again",
        )
    if found is not None and found != settings:
        names = sorted(name for name in settings if found.get(name) != settings[name])
        raise InputError(
            f"{directory} holds orbits rendered with other settings: {', '.join(names)}",
            hint="choose another folder with --data-dir",
        )
    if found is None:
        write_json(index, settings)
    missing = [path for path in _shard_paths(directory, config) if not _is_whole(path, config)]
    orbit_bytes = config.num_frames * config.size**2 * 3
    require_space(directory, len(missing) * SHARD_ORBITS * orbit_bytes, "the rendered data")
    progress.stage("render", total=len(missing))
    for path in missing:
        _render_shard(path, config)
        progress.advance()


def num_orbits(config: DataConfig) -> int:
    """Number of orbits in the settings."""
    return config.objects * config.orbits_per_object


def nth_orbit(config: DataConfig, index: int) -> tuple[int, OrbitAngles]:
    """Seed of the object and cameras of the orbit with this index."""
    place, number = divmod(index, config.orbits_per_object)
    seed = config.first_seed + place
    return seed, training_orbit(seed, config, number)


def render_objects(
    seeds: Sequence[int] | np.ndarray, orbits: Sequence[OrbitAngles], size: int, family: str = "figures"
) -> np.ndarray:
    """Pictures uint8 `n f h w 3` of objects of a family, each from the cameras of its orbit."""
    from sv3d_jax.train.data.figure_batches import render_figures

    if family != "figures":
        pairs = zip(seeds, orbits, strict=True)
        return np.stack([_render_object(family, int(seed), orbit, size) for seed, orbit in pairs])
    azimuths = np.stack([orbit.azimuths_deg for orbit in orbits])
    elevations = np.stack([orbit.elevations_deg for orbit in orbits])
    return np.asarray(render_figures(seeds, azimuths, elevations, size))


def _render_object(family: str, seed: int, orbit: OrbitAngles, size: int) -> np.ndarray:
    from sv3d_jax.geometry.mesh import to_world
    from sv3d_jax.render.orbit import render_orbit
    from sv3d_jax.train.data.objects import object_mesh

    mesh, light = to_world(object_mesh(family, seed)), soft_light(seed)
    # A camera path begins at its last view, so the object and its light are turned by that view's azimuth.
    cos, sin = np.cos(turn := -np.deg2rad(orbit.azimuths_deg[-1])), np.sin(turn)
    rotation = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    mesh = dataclasses.replace(mesh, vertices=mesh.vertices @ rotation.T)
    light = light._replace(axis=(rotation @ light.axis).astype(np.float32))
    return render_orbit(mesh, CameraPath(*orbit), size, light, supersample=2)[0]


def _render_shard(path: Path, config: DataConfig) -> None:
    first = int(path.stem.split("-")[1])
    parts = []
    for start in range(first, first + SHARD_ORBITS, RENDER_BATCH):
        seeds, orbits = zip(*(nth_orbit(config, start + i) for i in range(RENDER_BATCH)), strict=True)
        parts.append(render_objects(seeds, orbits, config.size, config.family))
    shard = np.concatenate(parts)
    with replacing(path) as file:
        np.save(file, shard)


def _is_whole(path: Path, config: DataConfig) -> bool:
    """Whether a shard exists with the pictures that it should hold; their values are not looked at.

    Raises InputError where the system refuses to read it, so that a shard which may be whole is not rendered again.
    """
    shape = (SHARD_ORBITS, config.num_frames, config.size, config.size, 3)
    try:
        shard = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return False
    except Exception as error:  # numpy raises errors of many kinds on damaged files
        check_is_damage(path, error)
        return False
    return isinstance(shard, np.ndarray) and (shard.shape, shard.dtype) == (shape, np.uint8)


def _shard_paths(directory: Path, config: DataConfig) -> list[Path]:
    firsts = range(0, num_orbits(config), SHARD_ORBITS)
    return [directory / f"orbits-{first:08d}.npy" for first in firsts]
