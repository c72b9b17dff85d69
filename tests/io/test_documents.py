"""Defects of users' JSON and TOML files become errors that name the file."""

import pytest

from sv3d_jax.errors import InputError, WeightsError
from sv3d_jax.io import documents
from sv3d_jax.io.documents import MAX_DEPTH, parse_json, parse_toml, read_json, read_toml


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_content_is_read_with_or_without_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"é": [1, 2.5]}', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"é": [1, 2.5]}


DAMAGED = {
    "empty": b"",
    "cut": b'{"frames": [',
    "not UTF-8": b'{"a": "\xff"}',
    "half a character": b'{"a": "\\ud800"}',
    "an endless number": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_what_is_not_json_is_named_in_own_words(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_json(path)
    assert error.value.message.startswith(f"{path} is not JSON that can be read")


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
    with pytest.raises(InputError, match="is a folder, a file is needed"):
        read_json(tmp_path)


@pytest.mark.parametrize("unclosed", [False, True])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_json_that_is_nested_too_deeply_is_refused(depth, unclosed):
    with pytest.raises(InputError, match="it is not JSON that can be read"):
        parse_json('{"a":' * depth + "1" + "}" * depth * (not unclosed), "it")


def test_nesting_up_to_the_limit_is_read():
    value = parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "it")
    assert isinstance(value, list)
    assert parse_toml("a = " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "it")["a"]


def test_a_key_that_is_named_twice_is_refused():
    with pytest.raises(InputError, match="it names 'radius' twice"):
        parse_json('{"frames": [{"radius": 2, "radius": 3}]}', "it")


@pytest.mark.parametrize(
    "text",
    [
        "a." * 200_000 + "b = 1",
        "[" + "a." * 200_000 + "b]",
        "'a'. \"b c\" ." * 100_000 + "b = 1",
        "a = {" + "b." * 200_000 + "c = 1}",
        "a = " + "[" * 100_000,
        "a = " + "{b = " * 5000,
        "a = " + "[" * 100 + "]" * 100,
    ],
)
def test_toml_that_is_nested_too_deeply_is_refused_before_it_takes_time(text):
    with pytest.raises(InputError, match="it is not TOML that can be read: it is nested deeper than 64"):
        parse_toml(text, "it")


def test_texts_with_many_dots_are_no_keys():
    assert parse_toml("a = '" + ". " * 1000 + "'\nb = [" + "0.5, " * 1000 + "]", "it")["b"][0] == 0.5


@pytest.mark.parametrize("text", ["a = 0x" + "f" * 10_000, "a = " + "9" * 10_000])
def test_toml_has_no_numbers_that_cannot_be_printed(text):
    with pytest.raises(InputError, match="it is not TOML that can be read"):
        parse_toml(text, "it")


def test_documents_are_read_up_to_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_TOML_BYTES", 10)
    monkeypatch.setattr(documents, "MAX_JSON_BYTES", 10)
    (tmp_path / "a.toml").write_text("a = 1 #aaa")
    assert read_toml(tmp_path / "a.toml") == {"a": 1}
    (tmp_path / "a.toml").write_text("a = 1 #aaaa")
    with pytest.raises(InputError, match="a.toml has more than"):
        read_toml(tmp_path / "a.toml")
    (tmp_path / "a.json").write_text("[1]" + " " * 8)
    with pytest.raises(WeightsError, match="a.json has more than"):
        read_json(tmp_path / "a.json", error=WeightsError)


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_texts_in_other_codes_are_refused_with_what_to_do(tmp_path, code):
    for read, text in ((read_json, '{"a": "\u00e9"}'), (read_toml, 'a = "\u00e9"')):
        (tmp_path / "a").write_bytes(text.encode(code))
        with pytest.raises(InputError, match="it is not text in UTF-8") as error:
            read(tmp_path / "a")
        assert error.value.hint == "save it as UTF-8"
