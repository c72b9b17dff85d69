"""Choice of the device, workarounds for slow behaviour of CPUs and NVIDIA GPUs, cache of compiled programs."""

import ctypes
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sv3d_jax.errors import InputError, SV3DError
from sv3d_jax.io.ownership import NotOwn, check_own_files, make_own_folder

CACHE_BYTES = 2 << 30
SLOW_SCATTER = ("0.10.2", "0.11.0")
"""jaxlib versions whose float32 scatter-add on NVIDIA GPUs is a retry loop (jax issue 38806)."""
NATIVE_ATOMICS = "--xla_backend_extra_options=-nvptx-allow-ftz-atomics"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
SCATTER_LIMIT_S = 0.05  # native, `scatter_seconds` is about a millisecond; as a retry loop, half a second


def open_device(name: str | None, keep_programs: bool) -> None:
    """Make `name` the default device (None: the best one), with compiled programs on disk if they are to be kept.

    Raises InputError for a device that does not exist.
    """
    select_device(name)
    if keep_programs:
        enable_compile_cache()


def select_device(name: str | None) -> None:
    """Make `name` (cpu, gpu, tpu, gpu:1) the default device; None takes the best one.

    Raises InputError, with a list of the devices, if the backend named here or in JAX_PLATFORMS does not exist.
    """
    use_native_atomics()
    import jax

    platform, _, index = (name or "").partition(":")
    if platform not in ("", "cpu", "gpu", "cuda", "rocm", "tpu") or not re.fullmatch("[0-9]{0,4}", index):
        raise InputError(
            f"--device {name}: unknown", hint="cpu, gpu, tpu, or one of several, for example gpu:1"
        )
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")  # an accelerator is then not opened at all
    try:
        devices = jax.local_devices(backend=platform or None)
    except (RuntimeError, AssertionError) as error:
        if platform:
            raise InputError(f"--device {name}: this machine has no such device", hint=_present()) from error
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(
            f"jax cannot start on JAX_PLATFORMS={asked}: {error or 'no such backend'}",
            hint="unset JAX_PLATFORMS to use the best device available",
        ) from error
    if platform:
        if int(index or 0) >= len(devices):
            raise InputError(f"--device {name}: there are {len(devices)} of this kind, counted from 0")
        jax.config.update("jax_default_device", devices[int(index or 0)])


def enable_compile_cache(directory: Path | None = None) -> None:
    """Keep compiled programs on disk for the next start: one folder per jaxlib version, of limited size.

    If jax has a cache folder already (JAX_COMPILATION_CACHE_DIR), that one is used. Programs are code: a folder that
    another user could have written to is not used, with a warning. Who may write to a bucket is not looked at.
    """
    import jax
    import jaxlib

    given = jax.config.jax_compilation_cache_dir
    if given is not None and (not given or "://" in given):  # none is wanted; a bucket
        return
    directory = Path(given or directory or cache_directory() / f"compiled-jaxlib-{jaxlib.__version__}")
    try:
        make_own_folder(directory)
        check_own_files(directory)
    except (NotOwn, OSError) as error:  # without a writable home folder programs are compiled at each start
        if isinstance(error, NotOwn):
            warn_of_foreign_cache(directory, error)
        jax.config.update("jax_compilation_cache_dir", None)
        return
    _let_jax_check_contents()
    if given:
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def warn_of_foreign_cache(folder: Path, reason: NotOwn) -> None:
    """Warn that programs are compiled although there is a folder for them."""
    warnings.warn(f"programs are compiled and not taken from {folder}: {reason}", stacklevel=3)


def _let_jax_check_contents() -> None:
    """Make jax compress its cache with zlib, whose streams have checksums, also if zstandard is installed.

    As jax calls it, zstandard writes none, and jaxlib 0.10.2 crashes on damaged programs. jax has no setting for it.
    """
    try:
        from jax._src import compilation_cache
    except ImportError:
        return
    for name in ("zstd", "zstandard"):
        setattr(compilation_cache, name, None)


def run_in_calling_thread() -> None:
    """Make jax run CPU programs in the calling thread. Call it before a device is opened.

    It costs nothing to a loop that waits for each program, and `keep_freed_memory` works only for the calling thread.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_freed_memory() -> None:
    """Keep the temporary memory of a CPU program for its next call. Needs `run_in_calling_thread`; else does nothing.

    By default glibc returns that memory to the system after each call, and the next call waits for half a million new
    pages or more. Call it after the programs are compiled, so that memory freed by the compiler is returned.
    """
    import jax

    if jax.default_backend() == "cpu" and not jax.config.read("jax_cpu_enable_async_dispatch"):
        tell_allocator_to_keep()


def tell_allocator_to_keep() -> None:
    """Make glibc keep freed memory of the main thread; does nothing with other C libraries."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def use_native_atomics() -> None:
    """Turn on native scatter-adds in the jaxlib versions of `SLOW_SCATTER`. Call it before jax opens a device.

    Does nothing if the user has set xla_backend_extra_options in XLA_FLAGS.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    has_cuda = any(find_spec(f"jax_cuda{number}_plugin") for number in (12, 13))
    if has_cuda and version("jaxlib") in SLOW_SCATTER and "xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {NATIVE_ATOMICS}".strip()


def warn_of_slow_scatter(limit_s: float = SCATTER_LIMIT_S) -> None:
    """Warn if a scatter-add with many updates to one row, as hash grids make them, takes longer than `limit_s`."""
    seconds = scatter_seconds()
    if seconds > limit_s:
        warnings.warn(
            f"scatter-add is slow here: {1000 * seconds:.0f} ms where about 1 ms is normal, and so is reconstruction."
            f" Install jax 0.11.1 or later, or set XLA_FLAGS={NATIVE_ATOMICS} before the start",
            stacklevel=2,
        )


@cache
def scatter_seconds() -> float:
    """Seconds of one float32 scatter-add of 40,960 rows of width 128 into the same row, measured once."""
    import jax
    import jax.numpy as jnp

    add = jax.jit(lambda table, rows, values: table.at[rows].add(values))
    inputs = jnp.zeros((399, 128)), jnp.zeros(40960, jnp.int32), jnp.ones((40960, 128))
    jax.block_until_ready(add(*inputs))
    start = time.perf_counter()
    jax.block_until_ready(add(*inputs))
    return time.perf_counter() - start


def check_devices(devices: Sequence[Any]) -> None:
    """Raise SV3DError, which names them, if a small computation fails on some of the devices that share a work.

    Each device compiles it, so a run that uses one of several does not call this.
    """
    if len(devices) > 1 and (failure := _failure(devices)):
        raise failure


def device_failure() -> SV3DError | None:
    """An error that names those devices on which a small computation fails; None where none does, or one is used."""
    import jax

    try:
        devices = jax.local_devices()
    except RuntimeError:  # no backend starts, which is another error
        return None
    if jax.config.jax_default_device is not None or len(devices) == 1:
        return None
    return _failure(devices)


def _failure(devices: Sequence[Any]) -> SV3DError | None:
    import jax
    import numpy as np

    failing = []
    for device in devices:
        try:
            jax.block_until_ready(jax.device_put(np.ones(8, np.float32), device) + 1)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            failing.append(f"{device.platform}:{device.id} ({device.device_kind}): {reason}")
    return (
        SV3DError(
            f"{len(failing)} of {len(devices)} devices fail: {'; '.join(failing)}",
            hint="leave them out: --device with another one, or CUDA_VISIBLE_DEVICES with the numbers of the others",
        )
        if failing
        else None
    )


def memory_in_use() -> str:
    """The name of the chosen device, or of that with the least free memory; and, if it reports it, how much is free."""
    import jax

    devices = [named] if (named := jax.config.jax_default_device) else jax.local_devices()
    device = min(devices, key=_free_memory)
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return device.device_kind
    used, limit = (stats[name] / 2**30 for name in ("bytes_in_use", "bytes_limit"))
    return f"{device.device_kind}, {limit - used:.1f} of {limit:.1f} GiB free"


def _free_memory(device: Any) -> float:
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0)


def cache_directory() -> Path:
    """The folder of this package in the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "sv3d_jax"


def _present() -> str:
    import jax

    try:
        found = ", ".join(f"{device.platform}:{device.id} ({device.device_kind})" for device in jax.devices())
    except (RuntimeError, AssertionError):
        found = "none"
    return f"devices here: {found}"
