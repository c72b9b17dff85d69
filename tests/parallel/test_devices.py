"""Finding the other processes of a run."""

import subprocess
import sys

import pytest

from sv3d_jax.parallel.devices import _has_peers
from tests.test_imports import ROOT


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"JAX_COORDINATOR_ADDRESS": "host:1234"}, True),
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}, True),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False),  # an interactive step
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ],
)
def test_environments_that_speak_of_other_processes(environment, expected):
    assert _has_peers(environment) is expected


def test_a_lone_process_opens_no_device():
    script = (
        "from sv3d_jax.parallel.devices import start_processes\n"
        "import jax._src.xla_bridge as bridge\n"
        "assert start_processes() and not bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
