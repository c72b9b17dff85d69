"""Read a folder of reference data as cases: one file each, its description and its named arrays."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.parity.compare import EXACT, Record, Tolerance, compare

# Other things' data and notes, which may stand beside the files.
IGNORED = ("README.md", "recon", "gaussians", "lgm_mini")


@dataclass(frozen=True)
class Family:
    """How all files of one name pattern are checked."""

    pattern: str  # of the file's path inside the folder
    inputs: str  # pattern of the tensors that are given; all others must be computed
    load: Callable[[Path], dict[str, np.ndarray]]
    compute: Callable[["Case", str], dict[str, np.ndarray]]
    tolerance: Callable[[str, str], Tolerance]
    slow: bool = False
    paths: tuple[str, ...] = ("reference", "default")

    def is_input(self, name: str) -> bool:
        return re.fullmatch(self.inputs, name) is not None


@dataclass(frozen=True)
class Case:
    """One reference file."""

    folder: Path
    file: str
    family: Family

    @property
    def path(self) -> Path:
        return self.folder / self.file

    @property
    def description(self) -> dict[str, Any]:
        """The json file of the same name."""
        return json.loads(self.path.with_suffix(".json").read_text())

    def tensors(self) -> dict[str, np.ndarray]:
        return self.family.load(self.path)


@cache
def computed(case: Case, path: str) -> dict[str, np.ndarray]:
    """What our code makes of the case's inputs by one path; once per session, for it may take minutes."""
    return case.family.compute(case, path)


def records(case: Case, path: str, stored: Mapping[str, np.ndarray]) -> list[Record]:
    """One record for every stored tensor that is not given; one that nothing computes has the largest error."""
    result, outputs = [], computed(case, path)
    for name, tensor in stored.items():
        if case.family.is_input(name):
            continue
        allowed = case.family.tolerance(name, path)
        error = compare(outputs[name], tensor, allowed) if name in outputs else sys.float_info.max
        result.append(Record(case.file, name, path, error, allowed.limit))
    return result


def failures(case: Case, path: str, report: list[dict[str, Any]]) -> list[Record]:
    """Compare a case and add its records to the report; a file that cannot be read or computed is one of them."""
    try:
        found = records(case, path, case.tensors())
        assert found, f"{case.file} holds nothing to check"
    except Exception:
        report.append(asdict(Record(case.file, "", path, sys.float_info.max, 0.0)))
        raise
    report += [asdict(record) for record in found]
    return [record for record in found if record.failed]


def a_little_more(case: Case, share: float) -> dict[str, np.ndarray]:
    """The stored tensors with all but those given larger by a share.

    Zeros become the share. Of whole numbers one in a thousand, and at least one, changes by 1. What is empty (the shape
    of a scalar) gets a value.
    """
    changed = case.tensors()
    for name, tensor in changed.items():
        if case.family.is_input(name):
            continue
        if tensor.size == 0:
            changed[name] = np.ones(1)
        elif np.issubdtype(tensor.dtype, np.floating):
            changed[name] = tensor * (1 + share) if tensor.any() else tensor + share
        else:
            changed[name] = tensor.copy()
            changed[name].flat[::1000] ^= tensor.dtype.type(1)
    return changed


def unknown_family() -> Family:
    """The family of files that no family reads: their check fails."""

    def refuse(path: Path):
        raise AssertionError(f"no test knows what {path.name} holds, so nothing would check it")

    return Family(
        pattern=r".*",
        inputs=r"",
        load=refuse,
        compute=lambda case, path: refuse(case.path),
        tolerance=lambda name, path: EXACT,
    )


def reference_files(folder: Path) -> list[str]:
    """Paths in the folder of all files to be checked; inputs and descriptions belong to the file that needs them."""
    files = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in IGNORED
    }
    described = {str(Path(file).with_suffix(".json")) for file in files if file.endswith(".safetensors")}
    if "image/image.json" in files:
        cases = json.loads((folder / "image/image.json").read_text())["cases"]
        described |= {f"image/{case['input']}" for case in cases}
    return sorted(files - described)


def load_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, which must be those that the json beside it lists."""
    tensors = load_file(path)
    listed = json.loads(path.with_suffix(".json").read_text())["tensors"]
    found = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    assert found == listed, f"{path.name} does not hold the tensors that {path.stem}.json lists"
    return tensors


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    with np.load(path) as arrays:
        return dict(arrays)


def load_numbers(path: Path) -> dict[str, np.ndarray]:
    """The numbers of a json file."""
    return numbers(json.loads(path.read_text()))


def numbers(values: Any) -> dict[str, np.ndarray]:
    """All numbers in nested values: {"a": [{"b": 1}]} -> {"a.0.b": 1.0}, a list of numbers being one array."""
    return dict(_numbers(values, ()))


def _numbers(value: Any, place: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, (*place, key))
    elif isinstance(value, list) and not all(isinstance(item, (int, float)) for item in value):
        for index, item in enumerate(value):
            yield from _numbers(item, (*place, str(index)))
    elif isinstance(value, (int, float, list)):
        yield ".".join(place), np.asarray(value, np.float64)
