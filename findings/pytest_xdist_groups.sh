#!/bin/sh
# `pytest -n 2 --dist loadgroup` of pytest-xdist 3.8.0 keeps no group together with pytest 9.2.0, and says nothing.
#
# A worker of pytest-xdist adds "@GROUP" to the identifier of each test by setting `item._nodeid`, where pytest 9.0.2 had
# it. pytest 9.2.0 has it elsewhere, so the scheduler sees tests of no group, and tests that must share a process run in
# several. Seen with Python 3.11 on Linux. Exits with 0 while this is so, with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pytest==9.2.0 pytest-xdist==3.8.0
cat >"$folder/test_group.py" <<'PYTHON'
import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(4))
def test_number(number):
    assert number < 4
PYTHON
cat >"$folder/conftest.py" <<'PYTHON'
from pathlib import Path


def pytest_collection_finish(session):
    if hasattr(session.config, "workerinput"):
        ids = "\n".join(item.nodeid for item in session.items)
        Path(__file__).with_name(session.config.workerinput["workerid"]).write_text(ids)
PYTHON
(cd "$folder" && PYTEST_ADDOPTS='' venv/bin/python -m pytest -q -n 2 --dist loadgroup -p no:cacheprovider test_group.py)
echo "identifiers that the scheduler groups by:"
cat "$folder/gw0"
echo
if grep -q '@one' "$folder/gw0"; then exit 1; fi
