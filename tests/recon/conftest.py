"""Every test that takes `case` runs for each file of the recon reference data."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "reference"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    from tests.recon.families import cases  # the networks' tests need none of it

    folder = metafunc.config.getoption("--reference") or FOLDER
    nested = folder / "recon"
    parameters = [
        pytest.param(case, id=case.file, marks=[pytest.mark.slow] if case.family.slow else [])
        for case in cases(nested if nested.is_dir() else folder)
    ]
    metafunc.parametrize("case", parameters)
