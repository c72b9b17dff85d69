"""Every tensor of every reference file, computed again by both paths. With `--reference DIR`, those of a folder."""

from dataclasses import asdict

import numpy as np

from tests.parity.cases import Case, records


def test_file_matches_reference(case: Case, path: str, parity_report: list[dict]):
    found = records(case, path, case.tensors())
    parity_report += [asdict(record) for record in found]
    assert found, f"{case.file} holds nothing to check"
    assert [] == [record for record in found if record.failed]


def test_a_thousandth_more_in_any_tensor_fails(case: Case, path: str):
    changed = {
        name: tensor if case.family.is_input(name) else thousandth_more(tensor)
        for name, tensor in case.tensors().items()
    }
    assert [] == [record for record in records(case, path, changed) if not record.failed]


def thousandth_more(tensor: np.ndarray) -> np.ndarray:
    """A tensor changed by 1e-3 relative; integers and zeros by the least that they can."""
    if np.issubdtype(tensor.dtype, np.integer):
        changed = tensor.copy()
        changed.flat[0] ^= 1
        return changed
    return tensor * 1.001 if tensor.any() else tensor + 1e-3
