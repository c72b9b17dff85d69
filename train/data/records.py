"""Record shards on disk: ArrayRecord files with one record per encoded orbit, and the index of a folder of them.

A record is a safetensors block: `latents` (f h w c) and `tokens` (f d) of every view, `azimuths_deg` and
`elevations_deg` (f), and its name. The index holds the size of every shard and the checksum of every record, so that
damaged and exchanged files are detected. It is written last: a folder without an index is incomplete.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from sv3d_jax.config import to_plain
from sv3d_jax.errors import InputError
from sv3d_jax.io.documents import read_json
from sv3d_jax.io.outputs import replacing, write_atomic
from sv3d_jax.io.reading import reading
from sv3d_jax.train.data.orbits import OrbitAngles

INDEX_FILE = "index.json"
FORMAT = 1
SHARD_SUFFIX = ".arrayrecord"
MAX_INDEX_BYTES = 2_000_000_000  # thirty million records
# One record per group, for random access; uncompressed, because latents do not compress.
WRITER_OPTIONS = "group_size:1,uncompressed"


class Shard(NamedTuple):
    """A file of records."""

    file: str
    records: int
    bytes: int
    sha256: str


class Entry(NamedTuple):
    """The index entry of a record."""

    name: str  # of the orbit and its background
    crc32: int
    validation: bool  # held out of training


@dataclass(frozen=True)
class ShardIndex:
    """The content of `index.json`."""

    views: int  # of every orbit
    latent_shape: tuple[int, int, int]  # h w c
    token_width: int
    encoder: str  # fingerprint of the encoder parameters
    shards: tuple[Shard, ...]
    records: tuple[Entry, ...]  # in the order of the shards

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that training depends on: the encoder, and checksum, order and split of the records."""
        own = dataclasses.asdict(self) | {"shards": None}
        return hashlib.sha256(json.dumps(to_plain(own), sort_keys=True).encode()).hexdigest()

    def places(self) -> list[tuple[Shard, int]]:
        """For every record, its shard and its index in the shard."""
        return [(shard, place) for shard in self.shards for place in range(shard.records)]


class Record(NamedTuple):
    """An encoded orbit."""

    latents: np.ndarray  # f h w c
    tokens: np.ndarray  # f d
    orbit: OrbitAngles


class DamagedRecord(Exception):
    """A record whose bytes differ from those that were packed."""


def import_grain() -> ModuleType:
    """Grain, which reads ArrayRecord files; raises InputError if the extra is not installed."""
    try:
        import array_record.python.array_record_module  # noqa: F401
        import grain
        from absl import flags
    except ImportError as error:
        raise InputError(
            f"record shards need grain and array-record: {error}", hint='pip install "sv3d_jax[data]"'
        ) from None
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # else grain refuses to start workers outside an absl program
    return grain


def write_index(directory: Path, index: ShardIndex) -> None:
    """Write `index.json`, the last file of a packed folder."""
    document = {"format": FORMAT, "fingerprint": index.fingerprint, **to_plain(dataclasses.asdict(index))}
    document["shards"] = [shard._asdict() for shard in index.shards]
    document["records"] = [list(entry) for entry in index.records]
    write_atomic(directory / INDEX_FILE, json.dumps(document, separators=(",", ":")).replace("],", "],\n"))


def read_index(directory: Path) -> ShardIndex:
    """The index of a packed folder; raises InputError if it is absent, damaged or of another format."""
    path = directory / INDEX_FILE
    document = read_json(
        path, "give a folder in which sv3d data pack has finished", "pack again", max_bytes=MAX_INDEX_BYTES
    )
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path} is not an index of format {FORMAT}", hint="pack again")
    with reading(path, "is damaged: its entries are not those of an index", "pack again"):
        index = ShardIndex(
            views=_count(document["views"]),
            latent_shape=tuple(map(_count, document["latent_shape"])),
            token_width=_count(document["token_width"]),
            encoder=document["encoder"],
            shards=tuple(_shard(**shard) for shard in document["shards"]),
            records=tuple(Entry(*entry) for entry in document["records"]),
        )
        if index.fingerprint != document["fingerprint"]:
            raise InputError(f"{path} is damaged: its fingerprint differs", hint="pack again")
    if sum(shard.records for shard in index.shards) != len(index.records):
        raise InputError(f"{path} is damaged: shards and records differ in number", hint="pack again")
    return index


def _shard(file: Any, records: Any, bytes: Any, sha256: Any) -> Shard:
    """The index entry of a shard, which the fingerprint does not cover. Raises ValueError for impossible ones."""
    if not (isinstance(file, str) and isinstance(sha256, str)) or Path(file).name != file or "\0" in file:
        raise ValueError(f"{file!r} is not a file beside the index")
    return Shard(file, _count(records), _count(bytes), sha256)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def shard_defect(directory: Path, shard: Shard) -> str | None:
    """The defect of a shard whose file is missing or has the wrong size, else None."""
    path = directory / shard.file
    if not path.is_file():
        return f"{path} is missing"
    if (size := path.stat().st_size) != shard.bytes:
        return f"{path} has {size} bytes, but {shard.bytes} were written"
    return None


def write_shard(path: Path, records: Iterable[bytes]) -> None:
    """Write a shard atomically."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with replacing(path) as file:
        writer = ArrayRecordWriter(file.name, WRITER_OPTIONS)
        for record in records:
            writer.write(record)
        writer.close()


def encode_record(record: Record, name: str, dtype: str) -> bytes:
    """The bytes of a record."""
    from safetensors.numpy import save

    arrays = {
        "latents": record.latents.astype(dtype),
        "tokens": record.tokens.astype(dtype),
        "azimuths_deg": record.orbit.azimuths_deg.astype(np.float64),
        "elevations_deg": record.orbit.elevations_deg.astype(np.float64),
    }
    return save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, {"name": name})


def decode_record(data: bytes, entry: Entry) -> Record:
    """Decode the record of an entry; raises DamagedRecord if its checksum differs or it cannot be decoded."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if zlib.crc32(data) != entry.crc32:
        raise DamagedRecord("its checksum differs")
    try:
        arrays = load(data)
        orbit = OrbitAngles(arrays["azimuths_deg"], arrays["elevations_deg"])
        return Record(arrays["latents"], arrays["tokens"], orbit)
    except (SafetensorError, KeyError) as error:
        raise DamagedRecord(f"it cannot be decoded: {error}") from None
