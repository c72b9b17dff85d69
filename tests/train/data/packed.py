"""Orbit folders and packed shards that take no rendering."""

import zlib
from pathlib import Path

import numpy as np

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.io.orbits import write_orbit
from sv3d_jax.train.data.orbits import OrbitAngles
from sv3d_jax.train.data.records import (
    Entry,
    Record,
    Shard,
    ShardIndex,
    encode_record,
    write_index,
    write_shard,
)

LATENT, TOKEN = (2, 2, 4), 8


def write_colored_orbit(folder: Path, seed: int = 0, views: int = 10, size: int = 32) -> None:
    """RGBA frames of a box whose colour says the seed and the view."""
    frames = np.zeros((views, size, size, 4), np.uint8)
    frames[:, 8:-8, 8:-8] = 255
    frames[:, 8:-8, 8:-8, 0] = (20 * np.arange(views))[:, None, None]
    frames[:, 8:-8, 8:-8, 1] = 40 * seed
    turn = np.arange(1, views + 1) * 360.0 / views
    write_orbit(folder, frames, CameraPath(turn, np.full(views, 10.0 + seed)))


def write_masked_orbit(folder: Path, views: int = 10, size: int = 32) -> None:
    """Frames over white of a box, half of it white, with soft sides, and alphas beside them."""
    alphas = np.zeros((views, size, size), np.uint8)
    alphas[:, 8:-8, 8:-8], alphas[:, 8:-8, 8] = 255, 100
    colors = np.full((views, size, size, 3), 255.0)
    colors[:, :16] = (20, 40, 60)
    cover = alphas[..., None] / 255.0
    frames = np.round(cover * colors + (1 - cover) * 255).astype(np.uint8)
    turn = np.arange(1, views + 1) * 360.0 / views
    write_orbit(folder, frames, CameraPath(turn, np.full(views, 10.0)), alphas=alphas)


def numbered_record(number: int, views: int) -> Record:
    """Latents and tokens that say which view they are: number + view / 100."""
    names = (number + np.arange(views) / 100).astype(np.float32)
    return Record(
        latents=np.broadcast_to(names[:, None, None, None], (views, *LATENT)),
        tokens=np.broadcast_to(names[:, None], (views, TOKEN)),
        orbit=OrbitAngles(np.arange(views) * 360.0 / views, np.full(views, 5.0 + number)),
    )


def write_shards(folder: Path, records: list[Record], per_shard: int = 4, held_out: int = 0) -> ShardIndex:
    """Pack records as they are; the last `held_out` of them validate."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, entries = [], []
    for first in range(0, len(records), per_shard):
        numbers = range(first, min(first + per_shard, len(records)))
        blocks = [encode_record(records[n], f"object{n} white", "float32") for n in numbers]
        file = folder / f"orbits-{len(shards):05d}.arrayrecord"
        write_shard(file, blocks)
        shards.append(shard_of(file, len(blocks)))
        entries += [
            Entry(f"object{n} white", zlib.crc32(block), n >= len(records) - held_out)
            for n, block in zip(numbers, blocks, strict=True)
        ]
    views = len(records[0].latents)
    index = ShardIndex(views, LATENT, TOKEN, "encoder", tuple(shards), tuple(entries))
    write_index(folder, index)
    return index


def shard_of(file: Path, records: int) -> Shard:
    import hashlib

    data = file.read_bytes()
    return Shard(file.name, records, len(data), hashlib.sha256(data).hexdigest())


def flip_byte_of_record(folder: Path, number: int, views: int) -> None:
    """Change one byte in the middle of a record of `numbered_record`, wherever it lies."""
    block = encode_record(numbered_record(number, views), f"object{number} white", "float32")
    for file in folder.glob("*.arrayrecord"):
        data = bytearray(file.read_bytes())
        if (place := data.find(block)) >= 0:
            data[place + len(block) // 2] ^= 1
            file.write_bytes(data)
            return
    raise AssertionError(f"record {number} is not in {folder}")
