"""Output folders: files are written atomically, one run at a time, resumable by stages; `run.json` comes last."""

import contextlib
import json
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TextIO

import numpy as np

from sv3d_jax import signals
from sv3d_jax.config import to_plain
from sv3d_jax.errors import InputError, OutputError, SV3DError
from sv3d_jax.io.documents import json_checksum, read_json, read_record
from sv3d_jax.io.names import outside_reason

RUN_FILE = "run.json"
STAGES_FILE = ".stages.json"
SCRATCH_FOLDER = ".work"
LOCK_FILE = ".lock"
LEAST_SPACE = 1_000_000  # bytes of the smallest results
MAX_DIFFERENCES = 3  # settings that a message names
# What the verbs make inside their output folders besides files that are replaced whole. None of it may be a link: what
# is written there would go elsewhere.
OWN_PLACES = (
    *(LOCK_FILE, SCRATCH_FOLDER, "frames", "alphas", "progress"),
    *("checkpoints", "data", "logs", "profile", "samples", "tensorboard", "wandb"),
)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file `name.tmp` to write to; at the end it is flushed to disk and renamed, so that no reader sees a part.

    It is created exclusively: what a killed run or anybody else left under that name is removed, not written through,
    and a link in place of `path` is replaced, not followed. An error leaves `path` as it was and no temporary file.
    Raises OutputError where the disk refuses, or if another process writes the same file.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        with signals.temporary(temporary):
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                own = os.fstat(file.fileno())
            if not os.path.samestat(own, os.lstat(temporary)):
                raise OutputError(f"cannot write {path}: another process writes it at the same time")
            os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}", hint="is the disk full or read-only?"
        ) from error


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write a file whole or not at all, as `replacing` does; missing folders are made."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    with replacing(path) as file:
        file.write(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)


def write_json(path: Path | str, value: Any) -> None:
    """`write_atomic` of `value` as indented JSON."""
    write_atomic(path, json.dumps(to_plain(value), indent=1) + "\n")


def check_finite(values: np.ndarray, what: str) -> None:
    """Raise SV3DError, which begins with `what`, for numbers that are not finite in single precision."""
    if values.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(values.astype(np.float32)).all(axis=tuple(range(1, values.ndim)))
    if not is_finite.all():
        raise SV3DError(
            f"{what} are not finite numbers: {(~is_finite).sum()} of {len(values)}, the first is number"
            f" {int(np.argmin(is_finite))}"
        )


def check_output_parent(directory: Path | str) -> None:
    """Raise OutputError if `directory` cannot be created or written, InputError if it is a file.

    To be called before long work.
    """
    directory = Path(directory)
    if directory.is_symlink() and not directory.exists():
        raise OutputError(
            f"{directory} is a link to {os.readlink(directory)}, which does not exist",
            hint="make that folder, or remove the link",
        )
    if directory.exists() and not directory.is_dir():
        raise InputError(
            f"{directory} is a file, not a folder for results",
            hint="after -o goes a folder, a new one or an earlier run's",
        )
    parent = directory if directory.exists() else directory.absolute().parent
    if not parent.is_dir():
        raise OutputError(
            f"{parent} does not exist, so {directory} cannot be made", hint=f"mkdir -p {parent}"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} cannot be written", hint="choose another folder with -o")
    require_space(directory, LEAST_SPACE, "a run")


def refuse_links(directory: Path | str, names: Iterable[str] = OWN_PLACES, below: Path | None = None) -> None:
    """Raise OutputError if one of these names in an output folder is a link, which writing would follow elsewhere.

    The folder itself may be a link, and so may those above it. With `below`, the folder that the user named, no folder
    between it and the output folder may be one.
    """
    directory = Path(directory)
    made = [directory / name for name in names]
    if below is not None:
        inner = directory.relative_to(below)
        made += [below / part for part in (inner, *inner.parents) if part != Path()]
    for place in made:
        if place.is_symlink():
            raise OutputError(
                f"{place} is a link to {os.readlink(place)}, and nothing is written outside the output folder",
                hint="remove the link; to write elsewhere, name that place with -o, or let the whole folder be a link",
            )


class OutputFolder:
    """The output folder of one run, locked inside its `with` block.

        with OutputFolder(directory, {"verb": "generate", **config.settings()}) as folder:
            if not folder.done:
                if not folder.stage_done("orbit"):
                    ...
                    folder.finish_stage("orbit", files)
                folder.write_run_json(seeds=[23])

    The constructor checks that the folder can be written, without writing (all that a dry run needs). Entering creates
    it, takes the lock and compares the settings with those of an earlier run. If they are the same, finished stages are
    kept, and `done` is true if the run is complete. If not, an InputError says what differs, unless `overwrite`, which
    removes the files of the earlier run. `below` is the folder that the user named, if this one was chosen in it
    (DIR of DIR/<stem>): missing folders in between are made. `renamed` maps names of settings that earlier versions
    recorded to those of today. Links inside the folder are refused as `refuse_links` says.
    """

    def __init__(
        self,
        directory: Path | str,
        config: Mapping[str, Any],
        overwrite: bool = False,
        below: Path | None = None,
        renamed: Mapping[str, str] = MappingProxyType({}),
    ):
        self._renamed = renamed
        self.directory = Path(directory)
        self.config = json.loads(json.dumps(to_plain(config)))
        self.overwrite = overwrite
        self._below = below
        inner = None if below is None else self.directory.relative_to(below)
        if inner is not None and (not inner.parts or ".." in inner.parts):  # of a file "...png", say
            raise InputError(f"{directory} is no folder inside {below}", hint="rename the input file")
        place = self.directory
        while below is not None and not place.parent.exists():
            place = place.parent
        check_output_parent(place)
        refuse_links(self.directory, below=below)
        if not overwrite:
            self._check_config()
        self._lock: Any = None
        self._stages: dict[str, Any] = {}
        self._mark = time.monotonic()

    def __enter__(self) -> "OutputFolder":
        self._acquire()
        try:
            if self.overwrite:
                self._clear()
            self._check_config()
            self._stages = self._record().get("stages", {})
            self._save()
            if not self.done:  # a run.json whose stages are gone or damaged
                (self.directory / RUN_FILE).unlink(missing_ok=True)
        except BaseException:
            self._release()
            raise
        self._mark = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._release()

    @property
    def done(self) -> bool:
        """Whether the run is complete: `run.json` and every file of every stage exist."""
        is_finished = bool(self._stages) and (self.directory / RUN_FILE).is_file()
        return is_finished and all(map(self.stage_done, self._stages))

    def path(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.directory / name

    @property
    def scratch(self) -> Path:
        """A folder for intermediate results, removed when `run.json` is written."""
        path = self.directory / SCRATCH_FOLDER
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {path}: {error.strerror}") from error
        return path

    def stage_done(self, name: str) -> bool:
        """The stage was finished by this or an earlier run, and its files are still as it left them."""
        files = self._stages.get(name, {}).get("files")
        return files is not None and all(_size(self.directory / file) == size for file, size in files.items())

    def stage_facts(self, name: str) -> dict[str, Any]:
        """What `finish_stage` was told about a finished stage."""
        return self._stages[name]["facts"]

    def finish_stage(
        self, name: str, files: Iterable[Path | str], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Record a finished stage with its files (absolute or relative to the folder) and its duration."""
        names = [os.path.relpath(self.directory / file, self.directory) for file in files]
        self._stages[name] = {
            "seconds": round(time.monotonic() - self._mark, 3),
            "files": {file: _size(self.directory / file) for file in names},
            "facts": to_plain(facts or {}),
        }
        self._mark = time.monotonic()
        self._save()

    def write_run_json(self, **facts: Any) -> None:
        """Write run.json and finish the run: settings, versions, devices, timings, memory and `facts`."""
        timings = {name: stage["seconds"] for name, stage in self._stages.items()}
        stage_facts = {name: stage["facts"] for name, stage in self._stages.items() if stage["facts"]}
        record = {
            "config": self.config,
            **facts,
            "stages": stage_facts,
            "timings_s": timings,
            **platform_facts(),
        }
        write_json(self.directory / RUN_FILE, record)
        shutil.rmtree(self.directory / SCRATCH_FOLDER, ignore_errors=True)

    def _check_config(self) -> None:
        earlier = self._record().get("config")
        if earlier is not None:
            earlier = {self._renamed.get(name, name): value for name, value in earlier.items()}
        if earlier is not None and earlier != self.config:
            found = _differences(earlier, self.config)
            more = len(found) - MAX_DIFFERENCES
            shown = "; ".join(found[:MAX_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")
            raise InputError(
                f"{self.directory} holds a run with other settings: {shown}",
                hint="choose another folder with -o, or --overwrite to start again",
            )

    def _record(self) -> dict[str, Any]:
        for name in (STAGES_FILE, RUN_FILE):
            record = _read_record(self.directory / name)
            if record is not None:
                return record if name == STAGES_FILE else {"config": record["config"]}
        return {}

    def _save(self) -> None:
        record = {"config": self.config, "stages": self._stages}
        write_json(self.directory / STAGES_FILE, record | {"crc32": json_checksum(record)})

    def _clear(self) -> None:
        """Remove the files that the earlier run recorded, and nothing else."""
        root = self.directory.resolve()
        for stage in self._record().get("stages", {}).values():
            for name in stage["files"]:
                file = root / name
                with contextlib.suppress(OSError, RuntimeError):  # no file of ours: a folder, a ring of links
                    if file.parent.resolve().is_relative_to(root):
                        file.unlink()
        for name in (RUN_FILE, STAGES_FILE):
            (root / name).unlink(missing_ok=True)
        shutil.rmtree(root / SCRATCH_FOLDER, ignore_errors=True)

    def _acquire(self) -> None:
        from filelock import FileLock, Timeout

        try:
            refuse_links(self.directory, below=self._below)
            self.directory.mkdir(parents=True, exist_ok=True)
            path = self.directory / LOCK_FILE
            self._lock = FileLock(path, timeout=0)
            self._lock.acquire()
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            path.write_text(
                json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started})
            )
        except Timeout:
            raise OutputError(f"{self.directory} is in use by {_holder(path)}") from None
        except OSError as error:
            self._release()
            raise OutputError(
                f"cannot write to {self.directory}: {error.strerror}", hint="is the disk full or read-only?"
            ) from error

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def open_log(directory: Path, name: str) -> TextIO:
    """A file in the folder `logs` of an output folder, open to append lines. Raises OutputError if either is a link."""
    refuse_links(directory, ("logs", f"logs/{name}"))
    path = directory / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a", buffering=1, errors="surrogateescape")


def platform_facts() -> dict[str, Any]:
    """Versions, devices and peak memory of this process."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in ("sv3d_jax", "jax", "jaxlib", "flax", "numpy", "Pillow", "trimesh", "safetensors"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    facts: dict[str, Any] = {
        "packages": packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "peak_memory_bytes": peak_memory(),
    }
    if "jax" in sys.modules:
        devices = sys.modules["jax"].local_devices()
        facts["devices"] = [f"{device.platform}:{device.id} {device.device_kind}" for device in devices]
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
        facts["device_peak_memory_bytes"] = [peak for peak in peaks if peak is not None]
    return facts


def require_space(path: Path, needed: int, what: str) -> None:
    """Raise OutputError if the disk where `path` lies or will lie has fewer than `needed` bytes free."""
    if (free := free_bytes(path)) < needed:
        raise OutputError(
            f"{what} takes at least {_megabytes(needed)}, but {_megabytes(free)} are free where {path} lies",
            hint="free some space, or choose a folder on another disk",
        )


def _megabytes(count: int) -> str:
    """A number of bytes with its unit."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def free_bytes(path: Path) -> int:
    """Free bytes of the disk where `path` lies or will lie; a large number where the system does not tell its size."""
    while not path.exists():
        path = path.absolute().parent
    usage = shutil.disk_usage(path)
    return usage.free if usage.total else sys.maxsize


def peak_memory() -> int | None:
    """Peak memory of this process in bytes; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _holder(path: Path) -> str:
    try:
        holder = read_json(path)
        return f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
    except (InputError, KeyError, TypeError):
        return "another run"


def _read_record(path: Path) -> dict[str, Any] | None:
    """The record of a run; None if the file is absent or damaged, so that what it recorded is made again."""
    record = read_record(path)
    if record is None or not isinstance(record.get("config"), dict):
        return None
    # Records of earlier versions have no checksum.
    if "crc32" in record and record.pop("crc32") != json_checksum(record):
        return None
    stages = record.setdefault("stages", {})
    if not isinstance(stages, dict) or (
        path.name == STAGES_FILE and not all(map(_is_stage, stages.values()))
    ):
        return None
    return record


def _is_stage(stage: Any) -> bool:
    """Whether a value is what `OutputFolder.finish_stage` records of a stage."""
    if not isinstance(stage, dict) or type(stage.get("seconds")) not in (int, float):
        return False
    files, facts = stage.get("files"), stage.get("facts")
    if not isinstance(files, dict) or not isinstance(facts, dict) or not math.isfinite(stage["seconds"]):
        return False
    return all(type(size) is int and outside_reason(name) is None for name, size in files.items())


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return [
            text
            for key in keys
            for text in _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [f"{name} was {before}, is {now}"]
