"""Persistent cache of compiled executables, keyed by everything they depend on; later starts neither trace nor compile.

Code calls `Programs.compile`, or a function decorated with `kept_jit`.

jax's own compilation cache does not save the tracing, which takes seconds for a network. Executables are stored beside
that cache, if it is in use. We bypass it for these programs: an executable that jax loaded from its own cache may not
serialize correctly again (jaxlib 0.10.2 on CPU: missing functions on reload).

Loading a program runs what is in it. So a file is read only if it and its folders are this user's alone, and loaded
only if it begins with the SHA-256 of its name and of the rest. `jax.experimental.serialize_executable` pickles
executables; the trees of arguments and results are pickled too, since jax's other form of trees
(`PyTreeDef.serialize_using_proto`) has no named tuples.
"""

import hashlib
import io
import json
import math
import operator
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, partial, wraps
from importlib.metadata import version
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jax.stages import Compiled, Lowered

from sv3d_jax.background import Background
from sv3d_jax.describe import LIBRARIES, OPAQUE, SOURCE_DIGEST, describe
from sv3d_jax.devices import CACHE_BYTES, warn_of_foreign_cache
from sv3d_jax.io.ownership import NotOwn, make_own_folder, read_own_file

FOLDER, SUFFIX, NUMBER_SUFFIX, LIST_SUFFIX = "programs", ".program", ".number", ".list"
LOADERS = 2
"""Threads that load programs before they are asked for."""
DIGEST_BYTES = hashlib.sha256().digest_size
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
"""Settings of jax that change programs."""
THREAD_SETTINGS = (*SETTINGS, "jax_default_device", "jax_disable_jit", "jax_numpy_dtype_promotion")
YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
"""Option of XLA: what a CPU leaves to the library YNNPACK. That takes up to ten times XLA's own time for sums of few
values, such as the squares of a vector's three components (jaxlib 0.10.2)."""
EFFORT = "xla_backend_optimization_level"
"""Option of XLA: LLVM's level of optimization. At 1 networks compile in nine tenths of the time and run as fast."""
SCHEDULER, LEAST_MEMORY = "xla_cpu_scheduler_type", "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
"""Option of XLA: the order of operations. Its own on a CPU lets many run at once, and so a guided step of the full-size
UNet (5 frames of 32x32, bfloat16) keeps 2.8 GiB of values, this one 0.3, in the same time on two cores."""
YNNPACK_PRODUCTS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
"""Value of that option: products alone. XLA itself makes those of bfloat16 in float32."""


class Programs:
    """The programs of functions, each compiled once for the shapes of its inputs, or loaded from disk."""

    def __init__(self, effort: int | None = None) -> None:
        """`effort`, for networks, is LLVM's level of optimization on a CPU, where memory is saved too; None: as XLA."""
        self._effort = effort
        self._programs: dict[Any, Compiled] = {}
        self._locks: dict[Any, RLock] = {}

    def compile(
        self,
        function: Callable[..., Any],
        *inputs: Any,
        environment: Any = (),
        donate_argnums: int | tuple[int, ...] = (),
        out_shardings: Callable[[], Any] | None = None,
    ) -> Compiled:
        """The program of a function for inputs of these shapes, dtypes and devices, which are pytrees of arrays.

        It is found by the function and what that closes over (see `describe`), by the inputs, and by `environment`: a
        value that names what else decides how the function is traced, and `out_shardings`, which are computed only
        where the program is compiled. Arrays that the function closes over become constants of the program.
        """
        leaves, structure = jax.tree.flatten(inputs)
        kinds = tuple((leaf.shape, leaf.dtype, _division(leaf)) for leaf in leaves)
        key = (describe(function), structure, kinds, donate_argnums, environment, self._effort)
        with self._locks.setdefault(key, RLock()):  # other threads wait for what one is compiling
            if key not in self._programs:

                def compile_now(name):
                    def program(*inputs):
                        return function(*inputs)

                    program.__name__ = name
                    shardings = None if out_shardings is None else out_shardings()
                    jitted = jax.jit(program, donate_argnums=donate_argnums, out_shardings=shardings)
                    return _compile(jitted.lower(*inputs), _devices_of(leaves), self._effort)

                self._programs[key] = load_or_compile(key, compile_now, leaves)
        return self._programs[key]

    def items(self) -> Iterable[tuple[Any, Compiled]]:
        """Descriptions and programs so far."""
        return self._programs.items()


def kept_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled as by `jax.jit`, with programs that later starts find on disk.

    Arguments by position are pytrees of arrays; those by keyword are static, and whatever `describe` takes. Inside
    another jitted function it is the function itself.
    """
    programs = Programs()

    @wraps(function)
    def call(*inputs: Any, **static: Any) -> Any:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(inputs)):
            return function(*inputs, **static)
        arrays = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), inputs)
        return programs.compile(partial(function, **static), *arrays)(*arrays)

    return call


def load_or_compile(
    description: Any, compile_now: Callable[[str], Compiled], inputs: Iterable[Any] = ()
) -> Compiled:
    """The program kept under `description`, for the devices of its inputs; else `compile_now(name)`, which is kept.

    The repr of `description` must identify every input to compilation besides this package's code, the versions of jax
    and the device, as that of `describe` does. The compiled module must bear the name, which is unique to the
    description, so that jax cannot take it from its own cache. A file that is damaged or cannot be loaded is written
    again, and so is one that is not this user's alone, with a warning. In a folder that is not, or that cannot be
    written, nothing is kept.
    """
    devices = _devices_of(inputs)
    path = None if OPAQUE in repr(description) else _file_of(description, devices, SUFFIX)
    if path is None or devices is None:
        return compile_now("program")
    own = _has_own_folder(path)
    if own and (program := _loaded(path, devices)) is not None:
        return program
    with _not_kept_by_jax():
        program = compile_now(f"program_{path.name[:32]}")
    # What fails here costs the next start its time, not this run its results.
    with suppress(OSError, ValueError, RuntimeError):
        if own:
            _keep(path, pickle.dumps(serialize(program)))
    return program


def kept_number(description: Any, measure: Callable[[], float]) -> float:
    """The number kept under `description` for the default device; else what `measure` returns, which is kept.

    So what a start decides by a measurement, later starts decide alike. See `load_or_compile`.
    """
    path = _file_of(description, _devices_of(()), NUMBER_SUFFIX)
    if path is None:
        return measure()
    own = _has_own_folder(path)
    if own and (payload := _payload(path)) is not None:
        return float(bytes(payload))
    number = measure()
    with suppress(OSError):
        if own:
            _keep(path, repr(number).encode())
    return number


def in_background(compile_ahead: Callable[[], Any]) -> None:
    """Call this in another thread, to compile on a CPU what is needed later while this thread does other things.

    Whoever needs a program meanwhile waits for it. What it raises is raised again where the program is needed. On an
    accelerator nothing is called: compiling there measures kernels on the device, beside whatever runs. Nor is it where
    this thread has settings of its own, of which the other one would know nothing.
    """
    global _background
    if jax.default_backend() != "cpu":
        return
    settings = [getattr(jax.config, name) for name in THREAD_SETTINGS]

    def call() -> None:
        if [getattr(jax.config, name) for name in THREAD_SETTINGS] == settings:
            with suppress(Exception):
                compile_ahead()

    _background = _background or Background(1)
    _background.submit(call)


_background: Background | None = None


class _Run(NamedTuple):
    """Programs of the run inside `loading_ahead`, by the names of their files."""

    devices: tuple[Any, ...]
    expected: dict[str, Future]  # being loaded, and not asked for yet
    used: dict[str, None]  # in their order


_run: _Run | None = None
_asked_for: set[str] = set()  # by this process: most are still in memory


@contextmanager
def loading_ahead(description: Any) -> Iterator[None]:
    """Inside it, the programs that the last run under `description` used are loaded in the background, in their order.

    So a later start does not wait for one after another. The description is like that of `load_or_compile`. Where this
    run takes another course than the last one, programs are loaded in vain. Inside another `loading_ahead`, and where
    programs are not kept, it does nothing.
    """
    global _run
    devices = _devices_of(())
    path = _file_of(description, devices, LIST_SUFFIX)
    if _run is not None or path is None or devices is None or not _has_own_folder(path):
        yield
        return
    payload = _payload(path)
    names = [] if payload is None else json.loads(bytes(payload))
    loaders = Background(LOADERS)
    new = [name for name in names if name not in _asked_for]
    expected = {name: loaders.submit(_load, path.with_name(name), devices, may_import=False) for name in new}
    _run = run = _Run(devices, expected, {})
    try:
        yield
    finally:
        _run = None
        for program in expected.values():
            program.cancel()
        loaders.close()
    with suppress(OSError):
        if run.used and list(run.used) != names:
            _keep(path, json.dumps(list(run.used)).encode())


def _loaded(path: Path, devices: tuple[Any, ...]) -> Compiled | None:
    """As `_load`, which the run in progress may have done already."""
    _asked_for.add(path.name)
    if _run is None or _run.devices != devices:
        return _load(path, devices)
    _run.used[path.name] = None
    ahead = _run.expected.pop(path.name, None)
    if ahead is not None and not ahead.cancel() and (program := ahead.result()) is not None:
        return program
    return _load(path, devices)


def _compile(lowered: Lowered, devices: tuple[Any, ...] | None, effort: int | None = None) -> Compiled:
    """Compile; on a CPU with YNNPACK for products alone if any are of bfloat16, else without it.

    With an effort there, it is LLVM's level, and values are kept no longer than they are needed. An option that the
    user has set, or that this jaxlib does not know, is left as it is.
    """
    platform = jax.default_backend() if devices is None else devices[0].platform
    if platform != "cpu":
        return lowered.compile()
    has_16_bit = "xbf16>" in lowered.as_text()
    options = {YNNPACK: YNNPACK_PRODUCTS if has_16_bit else ""}
    if effort is not None:
        options |= {EFFORT: effort, SCHEDULER: LEAST_MEMORY}
    given = os.environ.get("XLA_FLAGS", "")
    options = {name: value for name, value in options.items() if name not in given}
    while True:
        try:
            return lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            unknown = {name for name in options if name in str(error)}
            if not unknown:
                raise
            options = {name: value for name, value in options.items() if name not in unknown}


def _file_of(description: Any, devices: tuple[Any, ...] | None, suffix: str) -> Path | None:
    """Where something is kept on disk under a description, or None if nothing is."""
    cached = jax.config.jax_compilation_cache_dir
    if not cached or "://" in cached or devices is None:
        return None
    return Path(cached) / FOLDER / (_digest(description, devices) + suffix)


def _has_own_folder(path: Path) -> bool:
    """Whether programs may be read from and kept in the folder of a path, which is made if it is missing."""
    try:
        make_own_folder(path.parent.parent)
        make_own_folder(path.parent)
    except NotOwn as reason:
        warn_of_foreign_cache(path.parent, reason)
        return False
    except OSError:
        return False
    return True


class _NotImported(Exception):
    """A program's trees are of a module that is not imported yet."""


class _OfImportedModules(pickle.Unpickler):
    """Imports nothing: two threads that import modules which need each other deadlock."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return operator.attrgetter(name)(sys.modules[module])
        except (KeyError, AttributeError) as error:  # AttributeError: another thread is importing it
            raise _NotImported from error


def _load(path: Path, devices: tuple[Any, ...], may_import: bool = True) -> Compiled | None:
    """The program in a file, or None if there is none that can be used; one that is damaged is removed.

    None, too, where a module had to be imported that may not be.
    """
    if (payload := _payload(path)) is None:
        return None
    try:
        parts = pickle.loads(payload) if may_import else _OfImportedModules(io.BytesIO(payload)).load()
        return deserialize_and_load(*parts, backend=devices[0].client, execution_devices=devices)
    except _NotImported:
        return None
    except Exception:  # whatever another machine's program makes pickle and jax say
        with suppress(OSError):
            path.unlink()
        return None


def _payload(path: Path) -> memoryview | None:
    """What was kept in a file, or None if there is none that can be used; one that is damaged is removed."""
    try:
        content = memoryview(read_own_file(path))
    except NotOwn as reason:
        warn_of_foreign_cache(path.parent, reason)
        return None
    except OSError:
        return None
    payload = content[DIGEST_BYTES:]
    is_whole = content[:DIGEST_BYTES] == _checksum(path, payload)
    with suppress(OSError):
        if is_whole:
            path.touch()  # the least recently used go first
        else:
            path.unlink()
    return payload if is_whole else None


def _checksum(path: Path, payload: bytes | memoryview) -> bytes:
    """Digest of a program and of the name of its file, so that one under another's name is no program either."""
    digest = hashlib.sha256(path.name.encode())
    digest.update(payload)
    return digest.digest()


def _not_kept_by_jax() -> AbstractContextManager[Any]:
    """A context in which what this thread compiles is not written to jax's own cache as well.

    jax has no public API to override a config value per thread; without the private one, programs are in both caches.
    """
    try:
        from jax._src.config import persistent_cache_min_compile_time_secs

        return persistent_cache_min_compile_time_secs(math.inf)
    except (ImportError, TypeError):
        return nullcontext()


def _division(leaf: Any) -> Any:
    """How an array is divided over several devices; None on one."""
    sharding = getattr(leaf, "sharding", None)
    return None if sharding is None or len(sharding.device_set) == 1 else sharding


def _devices_of(inputs: Iterable[Any]) -> tuple[Any, ...] | None:
    """The devices of all arrays among the inputs, in order, or the default one if there are none.

    None where arrays lie on different devices, or some of these belong to another process.
    """
    arrays = [x for x in inputs if isinstance(x, jax.Array)]
    placed = [x for x in arrays if x.committed] or arrays  # the others go where these are
    if found := {_in_order(x.sharding) for x in placed}:
        return found.pop() if len(found) == 1 and jax.process_count() == 1 else None
    default = jax.config.jax_default_device or jax.local_devices()[0]
    return (jax.local_devices(backend=default)[0] if isinstance(default, str) else default,)


def _in_order(sharding: jax.sharding.Sharding) -> tuple[Any, ...]:
    mesh = getattr(sharding, "mesh", None)
    return tuple(sharding.device_set if mesh is None else mesh.devices.flat)


def _digest(description: Any, devices: tuple[Any, ...]) -> str:
    settings = [getattr(jax.config, name) for name in SETTINGS]
    settings.append(jax.config.read("jax_disable_most_optimizations"))
    settings += [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    client, ids = devices[0].client, tuple(device.id for device in devices)
    versions = (jax.__version__, jaxlib.__version__, *map(version, LIBRARIES), client.platform_version)
    machine = (client.platform, devices[0].device_kind, ids, jax.device_count(), *cpu_features())
    whole = repr((description, settings, versions, machine, SOURCE_DIGEST))
    return hashlib.sha256(whole.encode()).hexdigest()


@cache
def cpu_features() -> tuple[str, ...]:
    """CPU model and feature flags from /proc/cpuinfo, if it exists: programs may not run on another CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    return tuple(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _keep(path: Path, payload: bytes) -> None:
    """Write it after its checksum, then evict least recently used files above the size limit."""
    # Several processes may keep the same program at once, each in a temporary file that is this user's alone.
    descriptor, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(_checksum(path, payload))
            file.write(payload)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    # Temporary files of processes that were killed are among them.
    files = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    for file in files[:-1]:
        if total <= CACHE_BYTES:
            break
        total -= file.stat().st_size
        file.unlink(missing_ok=True)
