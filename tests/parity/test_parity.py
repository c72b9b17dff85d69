"""Every tensor of every reference file, computed again by all paths. With `--reference DIR`, those of a folder."""

from tests.parity.cases import Case, a_little_more, failures, records


def test_file_matches_reference_and_no_thousandth_more(case: Case, path: str, parity_report: list[dict]):
    """In 16 bits, where a thousandth is rounding, a tenth more fails."""
    assert failures(case, path, parity_report) == []
    found = records(case, path, a_little_more(case, 0.1 if path.startswith("bfloat16") else 1e-3))
    assert [] == [record for record in found if not record.failed]
