"""One module per family of reference files: which tensors are given, how the others are computed, how close."""

import re
from importlib import import_module
from pathlib import Path

from tests.parity.cases import Case, Family
from tests.parity.compare import EXACT

_MODULES = (
    "unet",
    "vae",
    "clip",
    "cond_vector",
    "schedule",
    "sampler",
    "loss",
    "orbits",
    "pictures",
    "checkpoint",
)
FAMILIES: tuple[Family, ...] = tuple(
    family for module in _MODULES for family in import_module(f"{__name__}.{module}").FAMILIES
)


def case_of(folder: Path, file: str) -> Case:
    """The case of a file; one of no known family has a tensor that nothing computes, so that its check fails."""
    family = next((family for family in FAMILIES if re.fullmatch(family.pattern, file)), UNKNOWN)
    return Case(folder, file, family)


def _refuse(path: Path):
    raise AssertionError(f"no test knows what {path.name} holds, so nothing would check it")


UNKNOWN = Family(
    pattern=r".*",
    inputs=r"",
    load=_refuse,
    compute=lambda case, path: _refuse(case.path),
    tolerance=lambda name, path: EXACT,
)
