"""Samples per second of the data pipeline alone, from packed orbits on this disk.

    python benchmarks/data_pipeline.py [--latent-size 72 --token-width 1024 --records 64]

Packs orbits of random numbers and reads batches as a training run does, in threads and in worker processes, whole
orbits of 21 views out of 84. The default sizes are those of mini; those above are SV3D's. Prints JSON.
"""

import argparse
import json
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np

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
from sv3d_jax.train.data.shards import OrbitShards, ShardBatches, ShardSampler

WARM_UP = 10  # batches


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=84)
    parser.add_argument("--latent-size", type=int, default=8)
    parser.add_argument("--token-width", type=int, default=64)
    parser.add_argument("--records", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"])
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="processes; 0: threads")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--folder", type=Path, help="where the shards go (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        record_bytes = write_random_shard(Path(folder), arguments)
        rates = {
            f"{count} workers" if count else "threads": samples_per_s(Path(folder), arguments, count)
            for count in arguments.workers
        }
    print(json.dumps({"record_bytes": record_bytes, "samples_per_s": rates}, indent=1))


def write_random_shard(folder: Path, arguments: argparse.Namespace) -> int:
    """One shard; returns the size of a record."""
    generator, views, entries = np.random.default_rng(0), arguments.views, []
    latent_shape = (arguments.latent_size, arguments.latent_size, 4)
    orbit = OrbitAngles(np.arange(views) * 360.0 / views, np.zeros(views))

    def blocks():
        for number in range(arguments.records):
            latents = generator.standard_normal((views, *latent_shape), np.float32)
            tokens = generator.standard_normal((views, arguments.token_width), np.float32)
            block = encode_record(Record(latents, tokens, orbit), f"{number}", arguments.dtype)
            entries.append(Entry(f"{number}", zlib.crc32(block), False))
            yield block

    file = folder / "orbits-00000.arrayrecord"
    write_shard(file, blocks())
    size = file.stat().st_size
    shard = Shard(file.name, arguments.records, size, "")
    write_index(folder, ShardIndex(views, latent_shape, arguments.token_width, "", (shard,), tuple(entries)))
    return size // arguments.records


def whole_orbits(videos: int, step: int) -> tuple[int, int]:
    """Videos and frames per video of the batch at a step: the same for all steps."""
    return videos, 21


def samples_per_s(folder: Path, arguments: argparse.Namespace, workers: int) -> float:
    """Rate after the first batches, which start the threads or processes."""
    sampler = ShardSampler(
        OrbitShards(folder),
        partial(whole_orbits, arguments.batch_size),
        num_frames=21,
        batch_size=arguments.batch_size,
        seed=0,
    )
    batches = ShardBatches(sampler, workers).batches(0, slice)
    for _ in range(WARM_UP):
        next(batches)
    start, samples = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < arguments.seconds:
        samples += next(batches)[0]
    batches.close()
    return round(samples / spent, 1)


if __name__ == "__main__":
    main()
