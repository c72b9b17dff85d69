"""What identifies a function: its code and all that it closes over, as a value that is the same in every process."""

import dataclasses
import hashlib
import sys
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np

AREAS = ("infer", "recon", "train")
LIBRARIES = ("flax", "optax")  # besides jax, what programs are traced from
STABLE = ("builtins", "numpy", "jax", "jaxlib", "ml_dtypes", *LIBRARIES)  # their versions identify their code
OPAQUE = "Opaque("
"""In the repr of a description that holds for this process alone."""


class Opaque:
    """An object that a program closes over and that cannot be hashed by content; compared by identity."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"{OPAQUE}{type(self.value).__qualname__})"


def describe(value: Any) -> Any:
    """Cache key of a function: its code and everything it closes over, as a hashable value.

    Functions are identified by their code, closure, defaults and, if partial or bound, by what they are bound to;
    frozen dataclasses by their type and the fields that they are compared by, or by their `program_key`; arrays by
    their content. The repr is the same in every process, unless it contains an `Opaque`: any other object, and
    functions and classes from outside this package, whose code may change while the package stays the same. A program
    with one is kept in memory and not on disk.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value).__name__, value
    if isinstance(value, partial):
        return "partial", describe(value.func), describe(value.args), describe(value.keywords)
    if isinstance(value, MethodType):
        return "method", describe(value.__func__), describe(value.__self__)
    if isinstance(value, FunctionType):
        return _describe_function(value)
    if isinstance(value, np.dtype):
        return "dtype", str(value)
    if isinstance(value, type):
        return _name(value) if _is_stable(value) else Opaque(value)
    if hasattr(value, "program_key"):
        return describe(type(value)), describe(value.program_key())
    if dataclasses.is_dataclass(value):
        own = [(f.name, describe(getattr(value, f.name))) for f in dataclasses.fields(value) if f.compare]
        return describe(type(value)), tuple(own)
    if isinstance(value, (tuple, list)):
        return describe(type(value)), tuple(map(describe, value))
    if isinstance(value, dict):
        return "dict", tuple((describe(key), describe(item)) for key, item in value.items())
    if isinstance(value, (np.ndarray, np.generic)):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return "array", str(value.dtype), value.shape, content
    return Opaque(value)


def _describe_function(function: FunctionType) -> Any:
    code, closure = function.__code__, [cell.cell_contents for cell in function.__closure__ or ()]
    # A function that calls itself closes over itself.
    closure = ["itself" if item is function else item for item in closure]
    bound = describe((closure, function.__defaults__, function.__kwdefaults__))
    if not (_in_source(code.co_filename) or function.__module__.partition(".")[0] in LIBRARIES):
        return Opaque(function), bound
    # Functions that share a qualified name (lambdas) are distinguished by line number.
    return _name(function), code.co_firstlineno, hashlib.sha256(code.co_code).hexdigest(), bound


def _is_stable(kind: type) -> bool:
    """Whether a class's behaviour is fixed by our source and library versions, so that it may be cached on disk."""
    package = kind.__module__.partition(".")[0]
    if package in STABLE:
        return True
    return _in_source(getattr(sys.modules.get(kind.__module__), "__file__", None) or "")


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


@cache
def _source_files() -> frozenset[Path]:
    """The files of this package."""
    folders = [Path(__file__).parent]
    for area in AREAS:  # which need not lie in its folder
        spec = find_spec(f"{__package__}.{area}")
        folders += map(Path, spec.submodule_search_locations or ()) if spec else ()
    return frozenset(file.resolve() for folder in folders for file in folder.rglob("*.py"))


@cache
def _in_source(file: str) -> bool:
    """Whether code lies in the files that `SOURCE_DIGEST` is of."""
    return Path(file).resolve() in _source_files()


def _digest_of_source() -> str:
    digest = hashlib.sha256()
    for file in sorted(_source_files()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


SOURCE_DIGEST = _digest_of_source()
"""Digest of the code that programs are traced from, computed at import time."""
