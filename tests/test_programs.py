"""Compiled programs that outlive their process."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax import programs
from sv3d_jax.describe import describe
from sv3d_jax.diffusion.guidance import guidance_scale
from sv3d_jax.diffusion.solvers import Euler
from sv3d_jax.programs import load_or_compile, loading_ahead
from tests.test_imports import ROOT
from tests.tiny_model import picture, tiny_pipeline


@pytest.fixture
def folder(program_folder: Path) -> Path:
    return program_folder


def compiled(name: str = "program", factor: float = 2.0):
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    return jax.jit(lambda x: {"y": factor * x}).lower(x).compile()


def never(name):
    raise AssertionError("compiled again")


def result(program) -> list[float]:
    return np.asarray(program(jnp.arange(3.0))["y"]).tolist()


def test_a_kept_program_is_loaded_and_not_compiled(folder):
    for compile_now in (compiled, never, never):
        assert result(load_or_compile(("double", 1), compile_now)) == [0.0, 2.0, 4.0]
    assert result(load_or_compile(("triple", 1), lambda name: compiled(name, 3.0))) == [0.0, 3.0, 6.0]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(programs, "SOURCE_DIGEST", "other code"),
        lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false"),
        lambda patch: patch.setattr(programs, "cpu_features", lambda: ("another CPU",)),
        lambda patch: patch.setattr(jax, "__version__", "0.0"),
        lambda patch: patch.setattr(jax, "device_count", lambda: 99),
        lambda patch: patch.setattr(programs, "SETTINGS", ()),
    ],
)
def test_what_decides_a_program_finds_it_no_more(change, folder, monkeypatch):
    load_or_compile("double", compiled)
    change(monkeypatch)
    with pytest.raises(AssertionError, match="compiled again"):
        load_or_compile("double", never)


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one bit turned over somewhere."""
    changed = bytearray(content)
    changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def never_loaded(*_, **__):
    raise AssertionError("a damaged program was loaded")


@pytest.mark.parametrize("trials", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_a_program_with_a_flipped_bit_is_compiled_again_and_never_loaded(trials, folder, monkeypatch):
    load_or_compile("double", compiled)
    [path] = folder.iterdir()
    rng, names = np.random.default_rng(trials), []

    def compile_now(name):
        names.append(name)
        assert not path.exists()
        return compiled()

    for _ in range(trials):
        path.write_bytes(flipped(path.read_bytes(), rng))
        with monkeypatch.context() as patch:
            patch.setattr("pickle.loads", never_loaded)
            patch.setattr(programs, "deserialize_and_load", never_loaded)
            assert result(load_or_compile("double", compile_now)) == [0.0, 2.0, 4.0]
        assert result(load_or_compile("double", never)) == [0.0, 2.0, 4.0]
    assert len(names) == trials


@pytest.mark.slow
def test_no_program_of_an_orbit_is_loaded_with_a_flipped_bit(folder, monkeypatch):
    kept, trials, rng = {}, 200, np.random.default_rng(0)

    def recorded(description, compile_now, inputs):
        before = set(folder.glob("*"))
        program = load_or_compile(description, compile_now, inputs)
        if added := set(folder.glob("*")) - before:
            kept[added.pop()] = description, program, inputs
        return program

    monkeypatch.setattr(programs, "load_or_compile", recorded)
    tiny_pipeline()(picture())
    monkeypatch.setattr(programs, "deserialize_and_load", never_loaded)
    assert len(kept) > 2
    recompiled = 0
    for path in [*kept] * (trials // len(kept) + 1):
        description, program, inputs = kept[path]
        path.write_bytes(flipped(path.read_bytes(), rng))
        again = load_or_compile(description, lambda name, program=program: program, inputs)
        recompiled += again is program
    assert recompiled >= trials


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-100], lambda content: b"", lambda content: b"x" * 50]
)
def test_a_damaged_program_is_compiled_and_kept_again(damage, folder):
    load_or_compile("double", compiled)
    [path] = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert result(load_or_compile("double", compiled)) == [0.0, 2.0, 4.0]
    assert result(load_or_compile("double", never)) == [0.0, 2.0, 4.0]


def test_a_program_under_the_name_of_another_is_not_loaded(folder):
    load_or_compile("double", compiled)
    [double] = folder.iterdir()
    load_or_compile("triple", lambda name: compiled(name, 3.0))
    [triple] = set(folder.iterdir()) - {double}
    triple.replace(double)
    assert result(load_or_compile("double", compiled)) == [0.0, 2.0, 4.0]


def linked(path: Path) -> None:
    """Move a file or folder and leave a link to it."""
    path.symlink_to(path.rename(path.with_name(path.name + ".moved")))


FAULTS = [
    (
        "belongs to another user",
        lambda path, patch: patch.setattr(os, "getuid", lambda: path.stat().st_uid + 1),
    ),
    ("may be written by other users", lambda path, patch: path.chmod(0o720)),
    ("may be written by other users", lambda path, patch: path.chmod(0o702)),
    ("is a symbolic link", lambda path, patch: linked(path)),
]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has neither owners nor these permissions")
@pytest.mark.parametrize(("reason", "make"), FAULTS)
@pytest.mark.parametrize("place", ["cache", "folder", "file"])
def test_what_another_user_could_have_written_is_not_loaded(reason, make, place, folder, monkeypatch):
    load_or_compile("double", compiled)
    [file] = folder.iterdir()
    content = file.read_bytes()
    with monkeypatch.context() as patch:
        make({"cache": folder.parent, "folder": folder, "file": file}[place], patch)
        if place == "file":  # of this user's folders
            patch.setattr(programs, "make_own_folder", lambda folder: None)
        patch.setattr("pickle.loads", never_loaded)
        with pytest.warns(UserWarning, match=f"programs are compiled and not taken from .*{reason}"):
            assert result(load_or_compile("double", compiled)) == [0.0, 2.0, 4.0]
    if place == "file":
        assert result(load_or_compile("double", never)) == [0.0, 2.0, 4.0]
        assert not file.is_symlink() and file.stat().st_mode & 0o777 == 0o600
    else:
        assert file.read_bytes() == content


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no such permissions")
def test_programs_are_this_users_alone_whatever_the_umask(folder):
    folder.parent.rmdir()
    before = os.umask(0)
    try:
        load_or_compile("double", compiled)
    finally:
        os.umask(before)
    assert result(load_or_compile("double", never)) == [0.0, 2.0, 4.0]


def test_programs_do_not_lie_in_the_cache_of_jax_as_well(folder):
    """One that jax has loaded from its own could not always be kept again."""

    def slow(name):
        def program(x):
            return jnp.linalg.svd(jnp.outer(x, x) + 3)[1] + 0.125

        program.__name__ = name
        return jax.jit(program).lower(jax.ShapeDtypeStruct((4,), jnp.float32)).compile()

    x, limit_name = jnp.arange(4.0), "jax_persistent_cache_min_compile_time_secs"
    limit = getattr(jax.config, limit_name)
    jax.config.update(limit_name, 0)
    try:
        expected = slow("program")(x)  # jax keeps it
        before = set(folder.parent.glob("*-cache"))
        assert before
        np.testing.assert_array_equal(load_or_compile("slow", slow)(x), expected)
        assert set(folder.parent.glob("*-cache")) == before
        np.testing.assert_array_equal(load_or_compile("slow", never)(x), expected)
        assert getattr(jax.config, limit_name) == 0
    finally:
        jax.config.update(limit_name, limit)


def of_lambda(value):
    return lambda x: x * value


def test_a_class_that_is_defined_again_is_another(folder):
    """As when the cell of a notebook is run again: neither in memory nor on disk is its old program taken."""

    def solver():
        @dataclass(frozen=True)
        class Mine:
            def update(self, x):
                return x

        return Mine()

    one, two = solver(), solver()
    assert describe(one) == describe(one) != describe(two)
    load_or_compile(describe(one.update), compiled)
    assert not folder.exists()
    load_or_compile(describe(Euler().update), compiled)
    assert len(list(folder.iterdir())) == 1


def test_programs_of_code_outside_the_package_are_not_kept(folder):
    """Its functions may change without a change of the package."""
    one, two = of_lambda(1.0), of_lambda(2.0)
    assert describe(one) == describe(one) != describe(two)
    load_or_compile(describe(one), compiled)
    assert not folder.exists()
    load_or_compile(describe(partial(guidance_scale, "linear", 5)), compiled)
    assert len(list(folder.iterdir())) == 1


def test_nothing_happens_at_import():
    """Neither settings nor listeners of jax are changed."""
    code = (
        "import jax\n"
        "values = dict(jax.config.values)\n"
        "listeners = len(jax._src.monitoring.get_event_listeners())\n"
        "import sv3d_jax.programs, sv3d_jax.runner, sv3d_jax.pipeline\n"
        "assert dict(jax.config.values) == values\n"
        "assert len(jax._src.monitoring.get_event_listeners()) == listeners\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_programs_not_used_for_longest_make_room(folder, monkeypatch):
    for name in "abc":
        load_or_compile(name, compiled)
        for path in folder.iterdir():
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))  # a second passes
    load_or_compile("a", never)
    size = max(path.stat().st_size for path in folder.iterdir())
    monkeypatch.setattr(programs, "CACHE_BYTES", 2.5 * size)
    load_or_compile("d", compiled)
    for kept in "ad":
        load_or_compile(kept, never)
    for gone in "bc":
        with pytest.raises(AssertionError, match="compiled again"):
            load_or_compile(gone, never)


def test_a_folder_that_cannot_be_written_costs_nothing_else(folder):
    folder.write_text("a file where the folder should be")
    assert result(load_or_compile("double", compiled)) == [0.0, 2.0, 4.0]


def test_a_damaged_program_that_cannot_be_replaced_costs_nothing_else(folder, monkeypatch):
    load_or_compile("double", compiled)
    [path] = folder.iterdir()
    path.write_bytes(b"damaged")

    def refused(*_, **__):
        raise PermissionError("read-only")

    for name in ("touch", "unlink"):
        monkeypatch.setattr(type(path), name, refused)
    monkeypatch.setattr(os, "replace", refused)
    assert result(load_or_compile("double", compiled)) == [0.0, 2.0, 4.0]
    assert path.read_bytes() == b"damaged"


@pytest.mark.parametrize("name", ["os.open", "pathlib.Path.mkdir"])
def test_a_folder_that_cannot_be_opened_costs_nothing_else(folder, monkeypatch, name):
    load_or_compile("double", compiled)

    def refused(*_, **__):
        raise PermissionError(13, "not yours")

    monkeypatch.setattr(name, refused)
    assert result(load_or_compile("double", compiled)) == [0.0, 2.0, 4.0]


def test_a_full_disk_costs_nothing_else(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert result(load_or_compile("double", compiled)) == [0.0, 2.0, 4.0]
    assert not list(folder.iterdir())


def test_a_bucket_is_no_folder(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    load_or_compile("double", compiled)
    assert not list(tmp_path.iterdir())


def test_without_a_cache_nothing_is_kept(folder):
    jax.config.update("jax_compilation_cache_dir", None)
    load_or_compile("double", compiled)
    assert not folder.exists()


@pytest.fixture
def loads(monkeypatch) -> list[tuple[str, bool]]:
    """What is loaded from disk as in a new process: the beginning of a file's name, and whether it is loaded ahead."""
    seen, load = [], programs._load

    def recorded(path, devices, **options):
        seen.append((path.name[:8], threading.current_thread() is not threading.main_thread()))
        return load(path, devices, **options)

    monkeypatch.setattr(programs, "_load", recorded)
    monkeypatch.setattr(programs, "_asked_for", set())
    return seen


def run_of(*factors: int, name: str = "run", compile_now=None) -> list[float]:
    with loading_ahead(name):
        return [
            result(load_or_compile(factor, compile_now or partial(compiled, factor=factor)))[1]
            for factor in factors
        ]


def test_a_run_loads_ahead_what_the_last_one_used(folder, loads, monkeypatch):
    assert run_of(3, 5) == [3, 5]
    tried = [name for name, _ in loads]
    assert loads == [(name, False) for name in tried]
    for started in (True, False):  # a thread has begun with them, or not yet when they are asked for
        loads.clear()
        monkeypatch.setattr(programs, "_asked_for", set())
        monkeypatch.setattr(programs.Future, "cancel", lambda self, started=started: not started)
        assert run_of(3, 5, compile_now=never) == [3, 5]
        found = sorted(load for load in loads if load[1] == started)  # two threads load at once
        assert found == sorted((name, started) for name in tried)
    loads.clear()
    assert run_of(3, 5, compile_now=never) == [3, 5]
    assert not any(ahead for _, ahead in loads), (
        "programs that this process has asked for are loaded ahead again"
    )


def test_threads_import_nothing(folder, monkeypatch):
    """Where two import modules that need each other, Python reports a deadlock."""
    load_or_compile("double", compiled)
    [path] = folder.iterdir()
    devices = programs._devices_of(())
    assert result(programs._load(path, devices, may_import=False)) == [0.0, 2.0, 4.0]
    monkeypatch.delitem(sys.modules, "jax._src.tree_util")
    assert programs._load(path, devices, may_import=False) is None
    assert "jax._src.tree_util" not in sys.modules


def test_what_the_last_run_used_is_kept_in_its_order(folder, loads):
    def listed() -> list[str]:
        [file] = folder.glob("*.list")
        return [name[:8] for name in json.loads(bytes(programs._payload(file)))]

    run_of(3, 5)
    three, five = [name for name, _ in loads]
    assert listed() == [three, five]
    run_of(5)
    assert listed() == [five]
    run_of()  # one that finds its results done, or is dry
    with pytest.raises(AssertionError, match="compiled again"):
        run_of(5, 3, 7, compile_now=never)
    assert listed() == [five]
    with loading_ahead("run"):
        run_of(3, name="another")  # inside a run: part of it
    assert listed() == [three]


def test_a_damaged_list_costs_nothing_else(folder, loads):
    run_of(3)
    [file] = folder.glob("*.list")
    for content in (b"", file.read_bytes()[:-1] + b"?"):
        file.write_bytes(content)
        assert run_of(3, compile_now=never) == [3]


ORBIT = """
import sys
import jax
import numpy as np
from sv3d_jax.models.video_unet import VideoUNet
from tests.tiny_model import picture, tiny_pipeline

if sys.argv[2] == "again":
    def called(*_):
        raise AssertionError("traced again")
    VideoUNet.__call__ = called
orbits = [tiny_pipeline()(picture(), callback=callback) for callback in (None, lambda info: None)]
np.save(sys.argv[1], np.stack([orbit.frames_uint8() for orbit in orbits]))
"""


def test_a_second_start_does_not_trace_the_network(tmp_path):
    """Nor where there are more devices than the one that an orbit takes."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    for start in ("first", "again"):
        words = [sys.executable, "-c", ORBIT, str(tmp_path / start), start]
        done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{start}.npy") for start in ("first", "again")))
