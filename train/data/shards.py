"""Batches from packed orbits: random access to record shards, prefetched by grain.

A batch depends on the seed and the step alone. Sample `row` of step `s` is record `s * batch_size + row` of an order
that is reshuffled in every epoch, and its views are drawn from its own random stream. Therefore any process can make
any rows, the number of threads or workers does not change the result, and a run can resume at any step.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax import signals
from sv3d_jax.errors import InputError, is_out_of_memory
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.train.data.latents import EncodedOrbits, draw_views, gather_views, whole_orbits
from sv3d_jax.train.data.orbits import OrbitAngles
from sv3d_jax.train.data.records import (
    DamagedRecord,
    Record,
    decode_record,
    import_grain,
    read_index,
    shard_defect,
)
from sv3d_jax.train.losses import OrbitBatch

MAX_DAMAGED_SHARE = 0.01
FEW_DAMAGED = 5  # always tolerated, however few records have been read
MAX_TRIES = 20  # random draws of a replacement for a damaged record
MAX_VALIDATION_RECORDS = 16
READ_THREADS, READ_AHEAD = 4, 8  # batches
LAST_STEP = 2**40
EPOCH_STREAM, SAMPLE_STREAM = 0, 1  # of random numbers

Rows = Callable[[int], slice]
"""Size of a global batch -> the rows of it that this process loads."""

SampleShape = Callable[[int], tuple[int, int]]
"""Step -> number of videos in its global batch, number of frames in each."""


class OrbitShards:
    """The records of a packed folder by index; reading a damaged record raises DamagedRecord."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.index = read_index(directory)
        defects = [defect for shard in self.index.shards if (defect := shard_defect(directory, shard))]
        if defects:
            raise InputError(
                f"{defects[0]}" + (f", and {len(defects) - 1} more" if len(defects) > 1 else ""),
                hint=f"sv3d data check {directory} lists every defect; pack the damaged orbits again",
            )
        grain = import_grain()
        self._source = grain.sources.ArrayRecordDataSource(
            [_ShardFile(directory / shard.file, shard.records) for shard in self.index.shards]
        )

    def __len__(self) -> int:
        return len(self.index.records)

    def __getitem__(self, number: int) -> Record:
        try:
            data = self._source[number]
        except Exception as error:  # damage detected by the file format itself
            if is_out_of_memory(error):
                raise
            raise DamagedRecord(f"it cannot be read: {error}".splitlines()[0]) from error
        return decode_record(data, self.index.records[number])


class ShardBatches:
    """The batches of a run from record shards, and its validation batch.

    A damaged record is skipped, counted and reported, and replaced by another one. Reading raises InputError if more
    than 1 % of the records are damaged.
    """

    def __init__(self, sampler: "ShardSampler", workers: int = 0, progress: Progress | None = None):
        self.shards = sampler.shards
        self.damaged: dict[int, str] = {}  # number -> what is wrong
        self.seen = self.skipped = 0
        self._workers = workers
        self._progress = progress or NullProgress()
        self._sampler = sampler

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the records, which changes with the data."""
        return self.shards.index.fingerprint

    def batches(self, first_step: int, rows: Rows) -> Iterator[tuple[int, OrbitBatch]]:
        """For every step from `first_step` on, the size of its global batch and these rows of it."""
        grain = import_grain()
        dataset = grain.MapDataset.range(first_step, LAST_STEP).map(partial(self._sampler.rows, rows=rows))
        options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
        dataset = dataset.to_iter_dataset(options)
        if self._workers:
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2),
                worker_init_fn=_start_worker,
            )
        with contextlib.closing(iter(dataset)) as batches:
            with signals.interrupt_blocked():
                first = next(batches)  # starts the workers
            for videos, batch, damaged in itertools.chain([first], batches):
                self._count(len(batch.latents), damaged)
                yield videos, batch

    def validation(self) -> OrbitBatch:
        """Whole orbits of held-out records, or of the first ones if none are held out; the last view is the input."""
        records = self.shards.index.records
        held_out = [number for number, entry in enumerate(records) if entry.validation] or range(len(records))
        whole = np.arange(self._sampler.num_frames) * self._sampler.stride
        samples = []
        for number in held_out[:MAX_VALIDATION_RECORDS]:
            try:
                record = self.shards[number]
            except DamagedRecord as error:
                raise InputError(
                    f"{self._named(number)}, a validation record, is damaged: {error}",
                    hint=f"sv3d data check {self.shards.directory} lists every defect; pack the damaged orbits again",
                ) from None
            samples.append(whole_orbits(one_orbit(record, whole)))
        return stack_samples(samples)

    def report(self) -> dict[str, Any]:
        """Numbers of records read and of damaged records skipped, and the names of the latter."""
        names = [self.shards.index.records[number].name for number in sorted(self.damaged)]
        return {"records_read": self.seen, "records_skipped": self.skipped, "damaged_records": names}

    def _count(self, samples: int, damaged: list[tuple[int, str]]) -> None:
        self.seen += samples + len(damaged)
        self.skipped += len(damaged)
        for number, reason in damaged:
            if number not in self.damaged:
                self.damaged[number] = reason
                self._progress.note(f"left out: {self._named(number)}: {reason}")
        if self.skipped > max(FEW_DAMAGED, MAX_DAMAGED_SHARE * self.seen):
            raise InputError(
                f"{self.skipped} of {self.seen} records of {self.shards.directory} are damaged, more than "
                f"{MAX_DAMAGED_SHARE:.0%}; the first is {self._named(min(self.damaged))}",
                hint=f"sv3d data check {self.shards.directory} lists them all",
            )

    def _named(self, number: int) -> str:
        shard, place = self.shards.index.places()[number]
        return f"{shard.file} record {place} ({self.shards.index.records[number].name})"


@dataclass(frozen=True, eq=False)
class ShardSampler:
    """Makes the rows of a step's batch; it is pickled and sent to the worker processes.

    A sample has `num_frames` views; of records with k times as many, it takes every k-th view from a random start.
    """

    shards: OrbitShards
    shape: SampleShape
    _: KW_ONLY
    num_frames: int
    batch_size: int
    seed: int
    any_input: bool = True

    def __post_init__(self):
        if self.shards.index.views % self.num_frames:
            raise InputError(
                f"{self.shards.directory} holds orbits of {self.shards.index.views} views, "
                f"which is not a multiple of data.num_frames {self.num_frames}"
            )
        if not self._trained:
            raise InputError(f"{self.shards.directory} holds validation records only")

    @property
    def stride(self) -> int:
        """Stored views from one view of a sample to the next."""
        return self.shards.index.views // self.num_frames

    @cached_property
    def _trained(self) -> list[int]:
        return [number for number, entry in enumerate(self.shards.index.records) if not entry.validation]

    def rows(self, step: int, rows: Rows) -> tuple[int, OrbitBatch, list[tuple[int, str]]]:
        """Size of a step's batch, these rows of it, and index and defect of every damaged record encountered."""
        videos, frames = self.shape(step)
        damaged: list[tuple[int, str]] = []
        samples = [self._sample(step, row, frames, damaged) for row in range(videos)[rows(videos)]]
        return videos, stack_samples(samples), damaged

    def _sample(self, step: int, row: int, frames: int, damaged: list[tuple[int, str]]) -> OrbitBatch:
        rng = np.random.default_rng([SAMPLE_STREAM, self.seed, step, row])
        epoch, place = divmod(step * self.batch_size + row, len(self._trained))
        order = epoch_order(len(self._trained), self.seed, epoch)
        record = self._whole_record(int(order[place]), rng, damaged)
        views = rng.integers(self.stride) + self.stride * np.arange(self.num_frames)
        drawn = draw_views(rng, 1, self.num_frames, 1, frames, self.any_input)
        return gather_views(one_orbit(record, views), drawn)

    def _whole_record(self, place: int, rng: np.random.Generator, damaged: list[tuple[int, str]]) -> Record:
        for _ in range(MAX_TRIES):
            number = self._trained[place]
            try:
                return self.shards[number]
            except DamagedRecord as error:
                damaged.append((number, str(error)))
                place = int(rng.integers(len(self._trained)))
        raise InputError(
            f"{self.shards.directory}: {MAX_TRIES} records read in a row are damaged",
            hint=f"sv3d data check {self.shards.directory} lists them all",
        )


def _start_worker(index: int, count: int) -> None:
    """What grain calls first in a worker process; by itself it leaves workers running when their parent is killed."""
    signals.end_with_parent()


class _ShardFile:
    """A shard file with its number of records, so that grain does not have to open it to count them."""

    def __init__(self, path: Path, records: int):
        self.filename = str(path)
        self.skip, self.take, self.examples_in_shard = 0, records, records


@lru_cache(maxsize=4)  # threads that read ahead are at most one epoch apart
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the records in an epoch."""
    return np.random.default_rng([EPOCH_STREAM, seed, epoch]).permutation(count)


def one_orbit(record: Record, views: np.ndarray) -> EncodedOrbits:
    """An orbit of some views of a record."""
    orbit = OrbitAngles(record.orbit.azimuths_deg[views], record.orbit.elevations_deg[views])
    latents, tokens = (array[views].astype(np.float32) for array in (record.latents, record.tokens))
    return EncodedOrbits(latents[None], tokens[None], [orbit])


def stack_samples(samples: list[OrbitBatch]) -> OrbitBatch:
    """All samples joined into one batch."""
    columns = zip(*samples, strict=True)
    return OrbitBatch(*(None if column[0] is None else np.concatenate(column) for column in columns))


def check_encoder(shards: OrbitShards, encoder: str) -> None:
    """Raise an InputError if the records were encoded with other weights than those of the run."""
    if shards.index.encoder != encoder:
        raise InputError(
            f"{shards.directory} was encoded with other weights: {shards.index.encoder[:12]}, the run has "
            f"{encoder[:12]}",
            hint="give the same --weights to sv3d data pack and to sv3d train",
        )
