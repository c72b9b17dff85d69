"""Every test that takes `case` and `path` runs for each reference file by the plain and by the default path, and for
those of networks by the default path in bfloat16."""

from pathlib import Path

import pytest

from tests.parity.cases import reference_files
from tests.parity.families import case_of

FOLDER = Path(__file__).parents[1] / "reference"
QUICK_UNET = (
    "unet_p_8x16.safetensors",
    "default",
)  # compiling the UNet takes most of the time: one for every run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    folder = metafunc.config.getoption("--reference") or FOLDER
    parameters = []
    for case in (case_of(folder, file) for file in reference_files(folder)):
        for path in case.family.paths:
            slow = case.family.slow and (case.file, path) != QUICK_UNET
            marks = [pytest.mark.slow] if slow else []
            parameters.append(pytest.param(case, path, id=f"{case.file}-{path}", marks=marks))
    metafunc.parametrize(("case", "path"), parameters)
