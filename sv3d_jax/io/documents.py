"""JSON and TOML files that users provide, read with limits on size and depth."""

import json
import re
import tomllib
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from sv3d_jax.errors import InputError, SV3DError
from sv3d_jax.io.reading import read_file, reading

MAX_JSON_BYTES = 100_000_000
MAX_TOML_BYTES = 1_000_000
MAX_DEPTH = 64  # of objects, tables and lists in each other
_NOT_JSON, _NOT_TOML = "is not JSON that can be read", "is not TOML that can be read"

# A TOML key of many names joined by dots: the time of tomllib grows with the square of their number.
_NAME = r"""(?:(?<![\w-])[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(f"(?:{_NAME}){{{MAX_DEPTH}}}")


def read_json(
    path: Path,
    absent_hint: str | None = None,
    hint: str | None = None,
    error: type[SV3DError] = InputError,
    max_bytes: int | None = None,
) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    Raises `error`, which names the file, if it does not exist (with `absent_hint`), cannot be opened, is larger than
    `max_bytes` (`MAX_JSON_BYTES` by default), or for what `parse_json` refuses.
    """
    with reading(path, _NOT_JSON, absent_hint or hint, error):
        data = read_file(path, MAX_JSON_BYTES if max_bytes is None else max_bytes, error)
    return parse_json(data, str(path), hint, error)


def read_record(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file that a run wrote for a later one; None if the file is absent or damaged."""
    try:
        record = read_json(path)
    except InputError:
        return None
    return record if isinstance(record, dict) else None


def parse_json(
    text: bytes | str, where: str, hint: str | None = None, error: type[SV3DError] = InputError
) -> Any:
    """The value of a JSON text in UTF-8. `where` names it in messages.

    Raises `error` for a text that is not JSON, names a key of an object twice, or is nested deeper than `MAX_DEPTH`.
    Numbers are not checked: Python reads NaN and Infinity too.
    """
    with reading(where, _NOT_JSON, hint, error):
        try:
            value = json.loads(_decoded(text, where, _NOT_JSON, hint, error), object_pairs_hook=_unique)
            for leaf in _leaves(value):
                if isinstance(leaf, str):  # half a character could not even be printed
                    leaf.encode("utf-8", "surrogateescape")
        except json.JSONDecodeError as cause:
            place = f"look at line {cause.lineno}, column {cause.colno}"
            raise error(f"{where} {_NOT_JSON}", hint or place) from cause
        except RecursionError as cause:
            raise _too_deep(where, _NOT_JSON, hint, error) from cause
        except _Twice as cause:
            raise error(f"{where} {_NOT_JSON}: it names {cause} twice", hint) from None
    return value


def read_toml(path: Path, hint: str | None = None, error: type[SV3DError] = InputError) -> dict[str, Any]:
    """The tables of a TOML file in UTF-8.

    Raises `error`, which names the file, if it cannot be opened, is larger than `MAX_TOML_BYTES`, or for what
    `parse_toml` refuses.
    """
    with reading(path, _NOT_TOML, hint, error):
        data = read_file(path, MAX_TOML_BYTES, error)
    return parse_toml(data, str(path), hint, error)


def parse_toml(
    text: bytes | str, where: str, hint: str | None = None, error: type[SV3DError] = InputError
) -> dict[str, Any]:
    """The tables of a TOML text in UTF-8. `where` names it in messages.

    Raises `error` for a text that is not TOML or is nested deeper than `MAX_DEPTH`.
    """
    with reading(where, _NOT_TOML, hint, error):
        text = _decoded(text, where, _NOT_TOML, hint, error)
        try:
            if _LONG_KEY.search(text):
                raise RecursionError("a key of many names")
            value = tomllib.loads(text)
            for leaf in _leaves(value):
                if isinstance(
                    leaf, int
                ):  # hexadecimal ones of more than 4300 digits could not even be printed
                    str(leaf)
        except tomllib.TOMLDecodeError as cause:
            raise error(f"{where} {_NOT_TOML}: {cause}", hint) from cause
        except RecursionError as cause:
            raise _too_deep(where, _NOT_TOML, hint, error) from cause
    return value


def json_checksum(value: Any) -> int:
    """CRC-32 of a value of JSON types, which is the same after it was written and read."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def read_frames(path: Path, absent_hint: str | None = None) -> dict[str, Any]:
    """The content of a JSON file that must be an object with a list "frames" of at least one view.

    Nothing else is checked. Raises InputError, which names the file.
    """
    document = read_json(path, absent_hint)
    frames = document.get("frames") if isinstance(document, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f'{path} needs a list "frames" of at least one view')
    return document


class _Twice(Exception):
    """A key that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice(repr(Counter(name for name, _ in pairs).most_common(1)[0][0][:80]))
    return found


def _decoded(text: bytes | str, where: str, fault: str, hint: str | None, error: type[SV3DError]) -> str:
    if isinstance(text, str):
        return text
    try:
        if b"\0" not in text[:4]:  # as in UTF-16 and UTF-32, whatever their byte order
            return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    raise error(f"{where} {fault}: it is not text in UTF-8", hint or "save it as UTF-8")


def _leaves(value: Any) -> list[Any]:
    """All keys and values that are neither objects nor lists; RecursionError beyond `MAX_DEPTH` levels."""
    leaves, level = [], [value]
    for _ in range(MAX_DEPTH + 1):
        inner = []
        for node in level:
            if isinstance(node, dict):
                leaves += node
                inner += node.values()
            elif isinstance(node, list):
                inner += node
            else:
                leaves.append(node)
        if not inner:
            return leaves
        level = inner
    raise RecursionError(f"more than {MAX_DEPTH} levels")


def _too_deep(where: str, fault: str, hint: str | None, error: type[SV3DError]) -> SV3DError:
    return error(f"{where} {fault}: it is nested deeper than {MAX_DEPTH} levels", hint)
