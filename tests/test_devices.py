"""What a device is known to do badly is asked for differently, or said."""

import os
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
