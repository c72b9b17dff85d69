"""Every tensor of every reference file, computed again by both paths. With `--reference DIR`, those of a folder."""

from tests.parity.cases import Case, failures, records, thousandth_more


def test_file_matches_reference(case: Case, path: str, parity_report: list[dict]):
    assert failures(case, path, parity_report) == []


def test_a_thousandth_more_in_any_tensor_fails(case: Case, path: str):
    found = records(case, path, thousandth_more(case))
    assert [] == [record for record in found if not record.failed]
