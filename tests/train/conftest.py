"""Runs of a test file are of the same programs: compiled once, as by the command line."""

import pytest

from sv3d_jax.devices import enable_compile_cache


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    enable_compile_cache(tmp_path_factory.mktemp("compiled"))
