"""Functions whose programs are kept: compiled once for their inputs, and found by later starts."""

import os
import subprocess
import sys
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
    assert programs.Programs(effort=None).compile(sums_of_few, x)(x)[0, 0] == 3.0
    monkeypatch.setenv("XLA_FLAGS", f"--{programs.YNNPACK}=LIBRARY_FUSION_TYPE_REDUCE")
    lowered = jax.jit(sums_of_few).lower(x)
    texts = programs._compile(lowered, None).as_text(), lowered.compile().as_text()
    assert ("__ynn_fusion" in texts[0]) == ("__ynn_fusion" in texts[1])
