"""Every number of the recon reference data. With `--reference DIR`, those of a folder."""

from tests.parity.cases import Case, a_little_more, failures, records

PATH = "default"  # there is one


def test_file_matches_reference_and_no_thousandth_more(case: Case, parity_report: list[dict]):
    assert failures(case, PATH, parity_report) == []
    found = records(case, PATH, a_little_more(case, 1e-3))
    assert [] == [record for record in found if not record.failed]
