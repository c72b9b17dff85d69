"""Defects of users' JSON files become errors that name the file."""

import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io.documents import read_json


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_content_is_read_with_or_without_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"é": [1, 2.5]}', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"é": [1, 2.5]}


DAMAGED = {
    "empty": b"",
    "cut": b'{"frames": [',
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "an endless number": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_what_is_not_json_is_named_in_own_words(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_json(path)
    assert error.value.message == f"{path} is not JSON that can be read"


def test_the_place_of_a_fault_is_the_hint(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(InputError) as error:
        read_json(tmp_path / "a.json")
    assert error.value.hint == "look at line 2, column 6"


def test_an_absent_file_has_the_hint_of_its_caller(tmp_path):
    with pytest.raises(InputError, match=r"a\.json does not exist") as error:
        read_json(tmp_path / "a.json", absent_hint="make one")
    assert error.value.hint == "make one"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_json(tmp_path)
