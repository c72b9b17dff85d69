"""Every test that takes `case` and `path` runs for each reference file by the plain and by the default path, and for
those of networks by the default path in bfloat16, and with factors of products in it."""

from pathlib import Path

import pytest

from tests.parity.cases import reference_files
from tests.parity.families import case_of

FOLDER = Path(__file__).parents[1] / "reference"
# Compiling takes most of the time: of the UNet one path for every run, of the autoencoder one shape.
QUICK_UNET = ("unet_p_8x16.safetensors", "default")
LONG_VAE = "vae_64x96.safetensors"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    folder = metafunc.config.getoption("--reference") or FOLDER
    parameters = []
    for case in (case_of(folder, file) for file in reference_files(folder)):
        for path in case.family.paths:
            slow = case.file == LONG_VAE or (case.family.slow and (case.file, path) != QUICK_UNET)
            marks = [pytest.mark.slow] if slow else []
            parameters.append(pytest.param(case, path, id=f"{case.file}-{path}", marks=marks))
    metafunc.parametrize(("case", "path"), parameters)
