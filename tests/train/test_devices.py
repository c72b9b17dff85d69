"""A batch is split over all devices; the numbers stay those of one."""

import os
import subprocess
import sys

import numpy as np
import pytest

from sv3d_jax.train.checkpoints import read_checkpoint
from tests.test_imports import ROOT
from tests.tiny_model import COMPILE_QUICKLY
from tests.train.tiny_run import train

RUN = "import sys, pathlib; from tests.train.tiny_run import train; train(pathlib.Path(sys.argv[1]), 'two')"


@pytest.mark.slow
def test_two_devices_train_as_one(tmp_path):
    train(tmp_path, "one")
    environment = (
        os.environ
        | COMPILE_QUICKLY
        | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_PLATFORMS": "cpu",
        }
    )
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], env=environment, cwd=ROOT, check=True)
    one, two = (read_checkpoint(tmp_path / name / "checkpoints", 6)[0] for name in ("one", "two"))
    # Adam divides by the root of the squared gradient: sums in another order move small ones by up to the rate.
    assert all(
        np.allclose(one[name], two[name], rtol=1e-3, atol=1e-4) for name in one if name.startswith("params")
    )
