"""Damaged files: mutations of good ones, and what may come of reading them."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

WORDS = [
    *("1e400", "-1e300", "1e300", "1e-320", "-1", "0", "NaN", "-Infinity", "nan", "-inf", "true", "null"),
    *(
        '""',
        '"12"',
        '"../../x"',
        "[]",
        "{}",
        "[[1]]",
        "4294967296",
        "-9223372036854775809",
        "1" + "0" * 400,
        "9" * 5000,
    ),
]
VALUES: list[Any] = [
    *(
        10**400,
        -(10**300),
        1e300,
        1e-320,
        -1,
        0,
        0.5,
        float("nan"),
        float("inf"),
        True,
        None,
        2**63,
        -(2**31),
    ),
    *("", "12", "nan", "../../x", "a\0b", "\udcff", [], {}, [[1]], [None] * 3, {"a": 1}, 1, 7),
]


@st.composite
def damaged(draw, content: bytes, kind: str) -> bytes:
    """The content with one to three mutations; `kind` is "binary", "text" or "json"."""
    if kind == "json" and draw(st.booleans()):
        return json.dumps(_changed_tree(draw, json.loads(content))).encode()
    for _ in range(draw(st.integers(1, 3))):
        if kind != "binary" and draw(st.booleans()):
            content = _changed_word(draw, content)
        else:
            content = _changed_bytes(draw, content)
    return content


def _changed_bytes(draw, content: bytes) -> bytes:
    place = draw(st.integers(0, len(content)))
    end = min(len(content), place + draw(st.sampled_from([1, 2, 4, 8, 64, 1000])))
    change = draw(st.sampled_from(["flip", "cut", "delete", "repeat", "insert", "fill"]))
    match change:
        case "flip":
            mask = 1 << draw(st.integers(0, 7))
            return (
                content[:place]
                + bytes(byte ^ mask for byte in content[place : place + 1])
                + content[place + 1 :]
            )
        case "cut":
            return content[:place]
        case "delete":
            return content[:place] + content[end:]
        case "repeat":
            return content[:end] + content[place:]
        case "insert":
            return content[:place] + draw(st.binary(min_size=1, max_size=16)) + content[place:]
    filling = draw(st.sampled_from([b"\xff", b"\0", b"\x7f", b"\x80"]))
    return content[:place] + filling * (end - place) + content[end:]


def _changed_word(draw, content: bytes) -> bytes:
    """Another number or text in the place of one, or a line that is left out or repeated."""
    if draw(st.integers(0, 3)) == 0:
        lines = content.split(b"\n")
        index = draw(st.integers(0, len(lines) - 1))
        lines[index : index + 1] = draw(st.sampled_from([[], [lines[index]] * 2]))
        return b"\n".join(lines)
    words = list(re.finditer(rb'-?\d+(\.\d+)?([eE][-+]?\d+)?|"[^"]*"', content))
    if not words:
        return content[: len(content) // 2]
    word = draw(st.sampled_from(words))
    return content[: word.start()] + draw(st.sampled_from(WORDS)).encode() + content[word.end() :]


def _changed_tree(draw, document: Any) -> Any:
    """A JSON value with another value at a random place, without it, or with two values exchanged."""
    places = list(_places(document))
    holder, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "leave out", "exchange"])):
        case "replace":
            holder[key] = draw(st.sampled_from(VALUES))
        case "leave out":
            del holder[key]
        case _:
            other, name = draw(st.sampled_from(places))
            holder[key], other[name] = json.loads(json.dumps([other[name], holder[key]]))
    return document


def _places(node: Any):
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


def is_finite(value: Any) -> bool:
    """Whether all numbers in a value are finite: in arrays, dataclasses, mappings and lists."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_finite, value))
    if isinstance(value, (float, np.ndarray)) and np.asarray(value).dtype.kind == "f":
        return bool(np.isfinite(value).all())
    return True


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}
