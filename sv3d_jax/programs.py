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
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jax.stages import Compiled

from sv3d_jax.devices import CACHE_BYTES
from sv3d_jax.io.outputs import write_atomic

FOLDER, SUFFIX = "programs", ".program"
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
"""Settings of jax that change programs."""


def load_or_compile(
    description: Any, compile_now: Callable[[], Compiled], inputs: Iterable[Any] = ()
) -> Compiled:
    """The program kept under `description`, for the device of its inputs; else `compile_now()`, which is kept.

    The repr of `description` must tell everything that decides the program besides this package's code, the versions
    of jax and the device. A file that cannot be read is written anew, a folder that cannot be written is let be.
    """
    cached, device = jax.config.jax_compilation_cache_dir, _device_of(inputs)
    if cached is None or "://" in cached or device is None:
        return compile_now()
    path = Path(cached) / FOLDER / (_digest(description, device) + SUFFIX)
    if path.is_file():
        try:
            parts = pickle.loads(path.read_bytes())
            program = deserialize_and_load(*parts, backend=device.client, execution_devices=[device])
        except Exception:  # whatever a damaged file or another machine's program makes jax say
            with suppress(OSError):
                path.unlink()
        else:
            with suppress(OSError):
                path.touch()  # the least recently used go first
            return program
    program, is_new = _compile_apart(compile_now)
    if is_new:
        # What fails here costs the next start its time, not this run its results.
        with suppress(OSError, ValueError, RuntimeError):
            _keep(path, pickle.dumps(serialize(program)))
    return program


def _compile_apart(compile_now: Callable[[], Compiled]) -> tuple[Compiled, bool]:
    """The program, which jax does not keep, and whether it was compiled, not taken from jax's cache."""
    limit_name = "jax_persistent_cache_min_compile_time_secs"
    with _LOCK:
        hits, limit = len(_HITS), getattr(jax.config, limit_name)
        jax.config.update(limit_name, math.inf)
        try:
            return compile_now(), len(_HITS) == hits
        finally:
            jax.config.update(limit_name, limit)


_LOCK = threading.Lock()
_HITS: list[str] = []
"""One for each program that jax has taken from its own cache."""
jax.monitoring.register_event_listener(
    lambda event, **_: _HITS.append(event) if event == "/jax/compilation_cache/cache_hits" else None
)


def _device_of(inputs: Iterable[Any]) -> Any:
    """The device of all arrays among the inputs, the default one if there are none, None if there are several."""
    found = {device for x in inputs if isinstance(x, jax.Array) for device in x.devices()}
    if found:
        return found.pop() if len(found) == 1 else None
    default = jax.config.jax_default_device or jax.local_devices()[0]
    return jax.local_devices(backend=default)[0] if isinstance(default, str) else default


def _digest(description: Any, device: Any) -> str:
    settings = [getattr(jax.config, name) for name in SETTINGS]
    settings.append(jax.config.read("jax_disable_most_optimizations"))
    settings += [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    versions = (jax.__version__, jaxlib.__version__, version("flax"), device.client.platform_version)
    machine = (device.platform, device.device_kind, device.id, jax.device_count(), *_cpu_features())
    whole = repr((description, settings, versions, machine, SOURCE_DIGEST))
    return hashlib.sha256(whole.encode()).hexdigest()


def _digest_of_source() -> str:
    digest = hashlib.sha256()
    for pattern in ("*.py", "models/*.py", "models/fast/*.py", "diffusion/*.py"):
        for file in sorted(Path(__file__).parent.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


SOURCE_DIGEST = _digest_of_source()
"""Of the code that programs are traced from, as it is when it is imported."""


@cache
def _cpu_features() -> tuple[str, ...]:
    """What this CPU can do, where it says so: its programs may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    return tuple(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _keep(path: Path, content: bytes) -> None:
    """Write it, and remove what was not used for longest beyond the limit."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, content)
    files = sorted(path.parent.glob("*" + SUFFIX), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    for file in files[:-1]:
        if total <= CACHE_BYTES:
            break
        total -= file.stat().st_size
        file.unlink(missing_ok=True)
