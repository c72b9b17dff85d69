"""Every number of the recon reference data that the 3D stage reads. With `--reference DIR`, those of a folder."""

from dataclasses import asdict

from tests.parity.cases import Case, records, thousandth_more

PATH = "default"  # there is one


def test_file_matches_reference(case: Case, parity_report: list[dict]):
    found = records(case, PATH, case.tensors())
    parity_report += [asdict(record) for record in found]
    assert found, f"{case.file} holds nothing to check"
    assert [] == [record for record in found if record.failed]


def test_a_thousandth_more_in_any_tensor_fails(case: Case):
    found = records(case, PATH, thousandth_more(case))
    assert [] == [record for record in found if not record.failed]
