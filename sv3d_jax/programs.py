"""Compiled programs on disk, by what decides them: a later start neither traces nor compiles.

jax's own cache of compilations saves the compiler's part alone, and tracing a network takes seconds. Programs lie
beside that cache, where there is one, and not in it as well: one that jax has loaded cannot always be kept a second
time (on CPUs with jaxlib 0.10.2 it lacks its functions when it is loaded again). They are code, so the folder is to be
trusted.
"""

import hashlib
import math
import os
import pickle
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jax.stages import Compiled

from sv3d_jax.devices import CACHE_BYTES

FOLDER, SUFFIX = "programs", ".program"
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
"""Settings of jax that change programs."""


def load_or_compile(description: Any, compile_now: Callable[[], Compiled]) -> Compiled:
    """The program kept under `description`, for the default device; else `compile_now()`, which is kept.

    The repr of `description` must tell everything that decides the program besides this package's code, the versions
    of jax and the device. A file that cannot be read is written anew, a folder that cannot be written is let be.
    """
    cached = jax.config.jax_compilation_cache_dir
    if cached is None:
        return compile_now()
    device = jax.config.jax_default_device or jax.local_devices()[0]
    path = Path(cached) / FOLDER / (_digest(description, device) + SUFFIX)
    if path.is_file():
        try:
            program = deserialize_and_load(*pickle.loads(path.read_bytes()), execution_devices=[device])
            path.touch()  # the least recently used go first
            return program
        except Exception:  # whatever a damaged file or another machine's program makes jax say
            path.unlink(missing_ok=True)
    hits, limit = len(_HITS), jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    try:
        program = compile_now()
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", limit)
    if len(_HITS) == hits:
        try:
            _keep(path, pickle.dumps(serialize(program)))
        except (OSError, ValueError, RuntimeError):
            pass  # costs the next start its time, not this run its results
    return program


_HITS: list[str] = []
"""One for each program that jax has taken from its own cache."""
jax.monitoring.register_event_listener(
    lambda event, **_: _HITS.append(event) if event == "/jax/compilation_cache/cache_hits" else None
)


def _digest(description: Any, device: Any) -> str:
    settings = [getattr(jax.config, name) for name in SETTINGS]
    versions = (jax.__version__, jaxlib.__version__, version("flax"), device.client.platform_version)
    device_names = (device.platform, device.device_kind, device.id, jax.device_count())
    machine = (*device_names, os.environ.get("XLA_FLAGS", ""), *_cpu_features())
    whole = repr((description, settings, versions, machine, source_digest()))
    return hashlib.sha256(whole.encode()).hexdigest()


@cache
def source_digest() -> str:
    """Of the code that programs are traced from."""
    digest = hashlib.sha256()
    for pattern in ("*.py", "models/*.py", "diffusion/*.py"):
        for file in sorted(Path(__file__).parent.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def _cpu_features() -> tuple[str, ...]:
    """What this CPU can do, where it says so: its programs may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    return tuple(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _keep(path: Path, content: bytes) -> None:
    """Write at once or not at all, and remove what was not used for longest beyond the limit."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
    files = sorted(path.parent.glob("*" + SUFFIX), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    for file in files[:-1]:
        if total <= CACHE_BYTES:
            break
        total -= file.stat().st_size
        file.unlink(missing_ok=True)
