"""Functions whose programs are kept: compiled once for their inputs, and found by later starts."""

import os
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax import programs
from sv3d_jax.colors import linear_from_srgb
from sv3d_jax.recon.dmtet.surface import deform
from sv3d_jax.recon.losses import nearby_points, photometric_loss
from tests.test_imports import ROOT


def test_a_function_is_compiled_once_for_its_inputs_and_found_by_a_later_start(program_folder, compilations):
    x, y = jnp.ones((2, 3)), np.zeros((2, 3), np.float32)
    for _ in range(2):  # as in two processes
        started = programs.Programs()
        for _ in range(2):
            assert started.compile(photometric_loss, x, y)(x, y) == 1.0
    assert len(compilations) == 1
    assert started.compile(photometric_loss, x[:1], y[:1])(x[:1], y[:1]) == 1.0  # of another shape
    assert started.compile(photometric_loss, x, y, environment="another")(x, y) == 1.0
    assert len(compilations) == 3 == len(list(program_folder.iterdir()))


def test_a_kept_program_gives_its_input_away_as_before(program_folder, compilations):
    for _ in range(2):
        x = jnp.arange(4.0)
        program = programs.Programs().compile(linear_from_srgb, x, donate_argnums=0)
        np.testing.assert_allclose(program(x), linear_from_srgb(np.arange(4.0, dtype=np.float32)), rtol=1e-6)
        assert x.is_deleted()
    assert len(compilations) == 1


def test_a_kept_function_takes_arrays_by_position_and_settings_by_keyword(program_folder, compilations):
    key, x = jax.random.key(3), jnp.zeros((2, 3))
    for _ in range(2):
        moved = programs.kept_jit(nearby_points)
        np.testing.assert_allclose(moved(x, 0.5, key), nearby_points(x, 0.5, key), rtol=1e-6)
        bent = programs.kept_jit(deform)
        np.testing.assert_allclose(bent(x, x + 1, cells=4), deform(x, x + 1, 4), rtol=1e-6)
    assert len(compilations) == 2
    moved(x, 2, key)  # a number is an array
    bent(x, x, cells=5)
    assert len(compilations) == 4
    jax.jit(partial(bent, cells=6))(x, x)  # a part of the program around it
    assert len(compilations) == 4


SEVERAL = """
import sys
import threading
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sv3d_jax import programs
from sv3d_jax.colors import linear_from_srgb
from sv3d_jax.recon.losses import photometric_loss

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
if sys.argv[2] == "later":
    jax.stages.Lowered.compile = None  # what is not kept fails
mesh = jax.make_mesh((2, 2), ("data", "frames"))
x = jax.device_put(np.arange(16.0).reshape(4, 4), NamedSharding(mesh, PartitionSpec("data", "frames")))
everywhere = NamedSharding(mesh, PartitionSpec())
y = jax.numpy.arange(1.0, 17.0).reshape(4, 4)  # not placed: goes where x is
program = programs.Programs().compile(photometric_loss, x, y, out_shardings=lambda: everywhere)
result = program(x, y)
assert result == 1.0 and result.sharding == everywhere, result
"""


def test_programs_for_several_devices_are_kept(tmp_path):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    for start in ("first", "later"):
        command = [sys.executable, "-c", SEVERAL, str(tmp_path), start]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / programs.FOLDER).iterdir())) == 1


def sums_of_few(x):
    """Squares of vectors: what XLA leaves to YNNPACK, by itself."""
    return jnp.sum(jnp.square(x), axis=0)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a library of CPUs alone")
def test_a_cpu_does_not_leave_short_sums_to_ynnpack(monkeypatch):
    x = jnp.ones((3, 512, 512))
    assert "__ynn_fusion" not in programs.Programs().compile(sums_of_few, x).as_text()
    # A jaxlib without the option, and a user's choice, which holds.
    with monkeypatch.context() as other:
        other.setattr(programs, "YNNPACK", "xla_cpu_no_such_option")
        assert programs.Programs().compile(sums_of_few, x)(x)[0, 0] == 3.0
    assert programs.Programs().compile(sums_of_few, x)(x)[0, 0] == 3.0
    monkeypatch.setenv("XLA_FLAGS", f"--{programs.YNNPACK}=LIBRARY_FUSION_TYPE_REDUCE")
    lowered = jax.jit(sums_of_few).lower(x)
    texts = programs._compile(lowered, None).as_text(), lowered.compile().as_text()
    assert ("__ynn_fusion" in texts[0]) == ("__ynn_fusion" in texts[1])


def many_layers(params, x):
    """A chain that first derives something from every matrix, as layers do from their kernels."""
    for matrix in params:
        x = jnp.tanh(x @ (matrix @ matrix.T))
    return x


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an option of CPUs alone")
def test_networks_keep_what_they_derive_from_weights_no_longer_than_needed(monkeypatch):
    params, x = [jnp.full((256, 256), 0.01)] * 12, jnp.ones((4, 256))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    plain, saving = (programs.Programs(effort).compile(many_layers, params, x) for effort in (None, 1))
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (plain, saving)]
    assert sizes[1] < sizes[0] / 3
    np.testing.assert_array_equal(plain(params, x), saving(params, x))
    monkeypatch.setattr(programs, "SCHEDULER", "xla_cpu_no_such_option")  # a jaxlib without it
    np.testing.assert_array_equal(
        programs.Programs(1).compile(many_layers, params, x)(params, x), plain(params, x)
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only CPUs compile in the background")
def test_a_program_that_is_compiled_in_the_background_is_waited_for(monkeypatch):
    x, kept, threads = jnp.ones((3, 5)), programs.Programs(), []
    begun, go_on, compile_now = threading.Event(), threading.Event(), programs._compile

    def compile_slowly(*inputs):
        threads.append(threading.current_thread())
        begun.set()
        assert go_on.wait(60)
        return compile_now(*inputs)

    monkeypatch.setattr(programs, "_compile", compile_slowly)
    programs.in_background(lambda: kept.compile(sums_of_few, x))
    assert begun.wait(60)
    threading.Timer(0.2, go_on.set).start()
    np.testing.assert_array_equal(kept.compile(sums_of_few, x)(x), np.full(5, 3.0))
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


def test_what_fails_in_the_background_fails_where_it_is_needed(monkeypatch):
    x, kept, done = jnp.ones((3, 7)), programs.Programs(), threading.Event()

    def fails(x):
        raise ValueError("no such layer")

    programs.in_background(lambda: kept.compile(fails, x))
    programs.in_background(done.set)
    if jax.default_backend() == "cpu":
        assert done.wait(60)
    with pytest.raises(ValueError, match="no such layer"):
        kept.compile(fails, x)


def test_nothing_runs_in_the_background_under_settings_of_one_thread_alone():
    calls, done = [], threading.Event()
    with jax.default_matmul_precision("highest"):
        programs.in_background(lambda: calls.append(1))
    programs.in_background(done.set)
    assert done.wait(60) or jax.default_backend() != "cpu"
    assert not calls
