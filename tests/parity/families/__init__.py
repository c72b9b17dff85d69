"""One module per family of reference files: which tensors are given, how the others are computed, how close."""

import re
from importlib import import_module
from pathlib import Path

from tests.parity.cases import Case, Family, unknown_family

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
    """The case of a file; one of no known family fails its check."""
    family = next((family for family in FAMILIES if re.fullmatch(family.pattern, file)), None)
    return Case(folder, file, family or unknown_family())
