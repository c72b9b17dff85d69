"""Every number of the recon reference data. With `--reference DIR`, those of a folder."""

from tests.parity.cases import Case, a_little_more, failures, records

PATH = "default"  # there is one


def test_file_matches_reference(case: Case, parity_report: list[dict]):
    assert failures(case, PATH, parity_report) == []


def test_a_thousandth_more_in_any_tensor_fails(case: Case):
    found = records(case, PATH, a_little_more(case, 1e-3))
    assert [] == [record for record in found if not record.failed]
