"""What a device is known to do badly is asked for differently, or said."""

import contextlib
import os
import subprocess
import sys
import warnings
import zlib
from types import SimpleNamespace

import jax
import pytest
from jax._src import compilation_cache

from sv3d_jax import devices


@pytest.mark.parametrize(
    ("jaxlib", "plugin", "flags", "expected"),
    [
        ("0.10.2", "jax_cuda13_plugin", "", devices.NATIVE_ATOMICS),
        ("0.11.0", "jax_cuda12_plugin", "--xla_a=1", f"--xla_a=1 {devices.NATIVE_ATOMICS}"),
        ("0.11.1", "jax_cuda13_plugin", "", ""),
        ("0.10.2", None, "", ""),
        ("0.10.2", "jax_cuda13_plugin", "--xla_backend_extra_options=x", "--xla_backend_extra_options=x"),
    ],
)
def test_native_atomics_are_asked_for_where_the_compiler_leaves_them_out(
    jaxlib, plugin, flags, expected, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(devices, "version", lambda name: jaxlib)
    monkeypatch.setattr(devices, "find_spec", lambda name: name if name == plugin else None)
    devices.use_native_atomics()
    assert os.environ["XLA_FLAGS"] == expected


def test_a_slow_scatter_is_said_with_what_helps():
    with pytest.warns(UserWarning, match=r"scatter-add is slow here: \d+ ms .*jax 0\.11\.1"):
        devices.warn_of_slow_scatter(limit_s=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        devices.warn_of_slow_scatter(limit_s=60.0)


FAULTS = """
import resource
import jax, jax.numpy as jnp
from sv3d_jax.devices import keep_freed_memory, run_in_calling_thread
if {wait}:
    run_in_calling_thread()
run = jax.jit(lambda x: jnp.sort(jnp.cumsum(x * jnp.ones((1 << 14, 1)), axis=0), axis=0).sum())
x = jnp.ones(1 << 10)
faults = []
for index in range(5):
    if index == 1:
        keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[2:]))
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="glibc alone gives memory back at once, and is asked not to"
)
def test_memory_of_a_program_is_kept_for_the_next():
    def faults(wait):
        run = [sys.executable, "-c", FAULTS.format(wait=wait)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        return int(subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout)

    assert faults(wait=True) < faults(wait=False) / 10 > 1000


@pytest.fixture
def cache_settings():
    """What enabling the cache changes is put back."""
    names = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("given", [False, True])
def test_an_own_folder_is_the_cache(given, tmp_path, cache_settings):
    folder = tmp_path / "cache"
    if given:  # as by JAX_COMPILATION_CACHE_DIR
        jax.config.update("jax_compilation_cache_dir", str(folder))
    devices.enable_compile_cache(None if given else folder)
    assert jax.config.jax_compilation_cache_dir == str(folder) and folder.is_dir()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has neither owners nor these permissions")
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("fault", ["folder of others", "folder for others", "link", "file of others"])
def test_a_cache_that_another_user_could_have_written_is_not_used(
    fault, given, tmp_path, cache_settings, monkeypatch
):
    folder = tmp_path / "cache"
    folder.mkdir(0o700)
    (folder / "program-cache").touch()
    if fault == "folder for others":
        folder.chmod(0o777)
    elif fault == "link":
        folder.symlink_to(folder.rename(tmp_path / "moved"))
    else:
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    if fault == "file of others":
        monkeypatch.setattr(devices, "make_own_folder", lambda folder: None)
    if given:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    with pytest.warns(UserWarning, match=f"programs are compiled and not taken from {folder}: "):
        devices.enable_compile_cache(None if given else folder)
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("given", ["", "gs://bucket/cache"])
def test_a_bucket_is_left_to_jax_and_no_cache_stays_none(given, tmp_path, cache_settings):
    jax.config.update("jax_compilation_cache_dir", given)
    devices.enable_compile_cache(tmp_path)
    assert jax.config.jax_compilation_cache_dir == given


def test_damage_to_the_cache_of_jax_is_noticed_with_zstandard_too(tmp_path, cache_settings, monkeypatch):
    """As jax uses zstandard, nothing would be: here it stores what it is given."""
    kept = SimpleNamespace(compress=bytes, decompress=bytes)
    monkeypatch.setattr(
        compilation_cache,
        "zstandard",
        SimpleNamespace(ZstdCompressor=lambda: kept, ZstdDecompressor=lambda: kept),
    )
    devices.enable_compile_cache(tmp_path)
    content = compilation_cache.compress_executable(b"a program")
    assert compilation_cache.decompress_executable(content) == b"a program"
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(zlib.error):  # else the bit was one that is not used
            assert compilation_cache.decompress_executable(bytes(damaged)) == b"a program"
