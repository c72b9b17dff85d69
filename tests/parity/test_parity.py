"""Every tensor of every reference file, computed again by all paths. With `--reference DIR`, those of a folder."""

from tests.parity.cases import Case, a_little_more, failures, records


def test_file_matches_reference(case: Case, path: str, parity_report: list[dict]):
    assert failures(case, path, parity_report) == []


def test_a_thousandth_more_in_any_tensor_fails(case: Case, path: str):
    """In 16 bits, where a thousandth is rounding, a tenth more."""
    found = records(case, path, a_little_more(case, 0.1 if path == "bfloat16" else 1e-3))
    assert [] == [record for record in found if not record.failed]
