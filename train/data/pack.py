"""The verb `data pack`: orbit folders to record shards."""

import dataclasses
import hashlib
import itertools
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sv3d_jax.cameras.orbit import CameraWarning
from sv3d_jax.errors import InputError
from sv3d_jax.io.cameras_file import CAMERAS_FILE
from sv3d_jax.io.documents import read_json
from sv3d_jax.io.folders import find_orbits
from sv3d_jax.io.orbits import OrbitFrames, read_orbit
from sv3d_jax.io.outputs import OutputFolder, write_json
from sv3d_jax.plan import checked_size
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.train.data.config import PackConfig
from sv3d_jax.train.data.latents import OrbitEncoder
from sv3d_jax.train.data.orbits import OrbitAngles
from sv3d_jax.train.data.records import (
    INDEX_FILE,
    SHARD_SUFFIX,
    Entry,
    Record,
    Shard,
    ShardIndex,
    encode_record,
    import_grain,
    write_index,
    write_shard,
)
from sv3d_jax.weights.hub import load_weights, read_model_config

CAMERA_TOLERANCE = 0.01  # tolerance before a warning, as a fraction of the side and of the focal length
VALIDATION_SHARE, MAX_VALIDATION_ORBITS = 0.1, 16


def run_pack(config: PackConfig, progress: Progress | NullProgress) -> dict[str, Any]:
    """The verb `data pack`: writes the shards, then the index. Orbits that cannot be read are skipped and reported."""
    import_grain()
    size = checked_size(read_model_config(config.weights), config.size)
    training, validation = find_orbits(config.orbits), find_orbits(config.validation)
    if both := sorted(training.keys() & validation.keys()):
        raise InputError(f"a training orbit and a validation orbit have the same name: {both[0]}")
    orbits = training | validation
    held_out = set(validation) or _held_out(training, config.seed)
    result = {"output": config.output, "orbits": len(orbits), "validation": len(held_out)}
    settings = config.settings() | {"orbits": _digest(orbits), "validation": sorted(held_out)}
    folder = OutputFolder(config.output, {"verb": "data pack", **settings}, config.overwrite)
    reader = _Reader(config.backgrounds, size, config.seed)
    views = reader.number_of_views(orbits)  # before the folder is created, so that unusable orbits leave none
    if config.dry_run:
        return result
    with folder:
        if not folder.done:
            _pack(config, folder, orbits, held_out, reader, views, progress)
        facts = folder.stage_facts("index")
    for reason in facts["left_out"]:
        progress.note(f"left out: {reason}")
    return result | facts


def over_color(orbit: OrbitFrames, color: np.ndarray) -> np.ndarray:
    """Frames `f h w 3` in [0, 1] over a background of one colour; raises InputError if they have no alpha."""
    if orbit.alphas is None:
        raise InputError("its frames have no alpha, which backgrounds other than white need")
    return orbit.images - (1.0 - orbit.alphas[..., None]) * (1.0 - color.astype(np.float32))


def _held_out(orbits: dict[str, Path], seed: int) -> set[str]:
    """Validation orbits, one in ten, ordered by a hash of the name, so that added orbits change few of them."""
    count = min(int(VALIDATION_SHARE * len(orbits)), MAX_VALIDATION_ORBITS)
    return set(sorted(orbits, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:count])


def _digest(orbits: dict[str, Path]) -> str:
    """SHA-256 of names, cameras and file sizes of the frames, which identifies orbits without reading pixels."""
    digest = hashlib.sha256()
    for name, path in orbits.items():
        files = {file.name: file for file in (path / "frames").glob("*.png")}
        files |= {f"alphas/{file.name}": file for file in (path / "alphas").glob("*.png")}
        sizes = sorted((file_name, file.stat().st_size) for file_name, file in files.items())
        digest.update(f"{name} {sizes} ".encode() + (path / CAMERAS_FILE).read_bytes())
    return digest.hexdigest()


def _pack(
    config: PackConfig,
    folder: OutputFolder,
    orbits: dict[str, Path],
    held_out: set[str],
    reader: "_Reader",
    views: int,
    progress: Progress,
) -> None:
    params, model, origin = load_weights(config.weights, dtype="float32", progress=progress)
    encoder = OrbitEncoder(params, model, config.batch_size)
    packer = _Packer(config.dtype, encoder, reader, views)
    names = list(orbits)
    groups = [names[i : i + config.shard_orbits] for i in range(0, len(names), config.shard_orbits)]
    progress.stage("pack", total=len(groups))
    parts = []
    for number, group in enumerate(groups):
        file = f"orbits-{number:05d}{SHARD_SUFFIX}"
        facts_file = folder.scratch / f"{file}.json"
        facts = _kept_facts(facts_file) if folder.stage_done(file) else None
        if facts is None:
            facts = packer.pack(folder.path(file), {name: orbits[name] for name in group})
            write_json(facts_file, facts)
            folder.finish_stage(file, [file] if facts["records"] else [])
        parts.append((file, facts))
        progress.advance()
    index = _index(folder, parts, held_out, encoder.fingerprint())
    write_index(folder.directory, index)
    facts = {
        "shards": len(index.shards),
        "records": len(index.records),
        "views": index.views,
        "fingerprint": index.fingerprint,
        "left_out": [reason for _, part in parts for reason in part["left_out"]],
    }
    folder.finish_stage("index", [INDEX_FILE], facts)
    folder.write_run_json(seeds=[config.seed], weights=origin)


def _kept_facts(file: Path) -> dict[str, Any] | None:
    """What an earlier start kept of a shard (`_Packer.pack`); None if it is absent or damaged."""
    try:
        facts = read_json(file)
    except InputError:
        return None
    is_whole = isinstance(facts, dict) and set(facts) == {"records", "left_out", "shapes"}
    return facts if is_whole else None


def _index(
    folder: OutputFolder, parts: list[tuple[str, Any]], held_out: set[str], encoder: str
) -> ShardIndex:
    full = [(file, facts) for file, facts in parts if facts["records"]]
    if not full:
        raise InputError("no orbit could be read", hint=parts[0][1]["left_out"][0])
    shapes = full[0][1]["shapes"]  # the same for all: one model, one number of views
    shards = [
        Shard(file, len(facts["records"]), (path := folder.path(file)).stat().st_size, _sha256(path))
        for file, facts in full
    ]
    entries = [
        Entry(f"{name} {background}", crc32, name in held_out)
        for _, facts in full
        for name, background, crc32 in facts["records"]
    ]
    return ShardIndex(
        views=shapes["views"],
        latent_shape=tuple(shapes["latent_shape"]),
        token_width=shapes["token_width"],
        encoder=encoder,
        shards=tuple(shards),
        records=tuple(entries),
    )


class _OrbitPictures(NamedTuple):
    """An orbit as it is encoded: for each kind of background, frames uint8 `f h w 3` at the model's size."""

    pictures: dict[str, np.ndarray]
    angles: OrbitAngles


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads orbits as pictures of a model."""

    backgrounds: tuple[str, ...]
    size: int
    seed: int

    def __call__(self, name: str, folder: Path) -> _OrbitPictures:
        """The orbit in a folder. Raises InputError if it cannot be packed."""
        orbit = read_orbit(folder)
        pictures = {kind: self._pictures(name, orbit, kind) for kind in self.backgrounds}
        return _OrbitPictures(pictures, _angles(name, orbit))

    def number_of_views(self, orbits: dict[str, Path]) -> int:
        """The number of views of the first orbit that can be packed; orbits with another number are skipped."""
        reasons = []
        for name, folder in orbits.items():
            try:
                return len(self(name, folder).angles.azimuths_deg)
            except InputError as error:
                reasons.append(f"{folder}: {error.message}")
        raise InputError(f"none of {len(orbits)} orbits can be packed", hint=reasons[0])

    def _pictures(self, name: str, orbit: OrbitFrames, background: str) -> np.ndarray:
        """Frames uint8 `f h w 3` at the model's size."""
        images = orbit.images
        if background == "random":
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            images = over_color(orbit, rng.uniform(size=3))
        height, width = images.shape[1:3]
        if height != width:
            raise InputError(f"its frames have {width}x{height} pixels and are not square")
        images = np.round(255.0 * np.clip(images, 0.0, 1.0)).astype(np.uint8)
        if height == self.size:
            return images
        side = (self.size, self.size)
        return np.stack(
            [np.asarray(Image.fromarray(image).resize(side, Image.Resampling.LANCZOS)) for image in images]
        )


@dataclasses.dataclass(frozen=True)
class _Packer:
    """Encodes orbits and writes them into shards."""

    dtype: str
    encoder: OrbitEncoder
    reader: _Reader
    views: int

    def pack(self, path: Path, orbits: dict[str, Path]) -> dict[str, Any]:
        """Write one shard; returns names, backgrounds, checksums and shapes of its records, and the skipped orbits."""
        facts: dict[str, Any] = {"records": [], "left_out": [], "shapes": None}
        records = self._records(orbits, facts)
        first = next(records, None)
        if first is not None:
            write_shard(path, itertools.chain([first], records))
        return facts

    def _records(self, orbits: dict[str, Path], facts: dict[str, Any]) -> Iterator[bytes]:
        for name, folder in orbits.items():
            try:
                pictures, angles = self.reader(name, folder)
                if (views := len(angles.azimuths_deg)) != self.views:
                    raise InputError(f"it has {views} views, but the first orbit has {self.views}")
            except InputError as error:
                facts["left_out"].append(f"{folder}: {error.message}")
                continue
            encoded = {kind: self.encoder(images[None]) for kind, images in pictures.items()}
            if not all(np.isfinite(array).all() for pair in encoded.values() for array in pair):
                facts["left_out"].append(f"{folder}: its latents or tokens are not finite")
                continue
            for background, (latents, tokens) in encoded.items():
                record = Record(latents[0], tokens[0], angles)
                data = encode_record(record, f"{name} {background}", self.dtype)
                facts["records"].append([name, background, zlib.crc32(data)])
                facts["shapes"] = {
                    "views": self.views,
                    "latent_shape": latents.shape[2:],
                    "token_width": tokens.shape[2],
                }
                yield data


def _angles(name: str, orbit: OrbitFrames) -> OrbitAngles:
    """Azimuths and elevations of an orbit; warns if principal points are off centre or pixels not square."""
    size = np.array(orbit.images.shape[2:0:-1])
    aside = np.abs(orbit.center_px / size - 0.5).max()
    stretch = np.abs(orbit.focal_px[:, 1] / orbit.focal_px[:, 0] - 1.0).max()
    if max(aside, stretch) > CAMERA_TOLERANCE:
        warnings.warn(
            f"{name}: its cameras have principal points up to {aside:.1%} off the middle and pixels up to {stretch:.1%}"
            " off square; the model assumes centred principal points and square pixels",
            CameraWarning,
            stacklevel=2,
        )
    if orbit.azimuths_deg is None or orbit.elevations_deg is None:
        raise InputError(f"{CAMERAS_FILE} gives no azimuth and elevation for every frame")
    return OrbitAngles(orbit.azimuths_deg, orbit.elevations_deg)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
