"""What a device is known to do badly is asked for differently, or said."""

import os
import subprocess
import sys
import warnings

import pytest

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
