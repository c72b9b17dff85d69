"""Sizes and names of the source: what keeps a stranger's search for a place short."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.test_imports import ROOT, source_files

MAX_FUNCTION, MAX_FILE = 60, 450
AROUND = [
    ROOT / "setup.py",
    *sorted(file for name in ("benchmarks", "tests") for file in (ROOT / name).rglob("*.py")),
]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", [*source_files(), *AROUND], ids=name_of)
def test_files_and_functions_are_short(file):
    text = file.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            assert node.end_lineno - node.lineno < MAX_FUNCTION, node.name  # type: ignore[operator]


def test_no_class_name_has_two_meanings():
    places = defaultdict(list)
    for file in source_files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name_of(file))
    assert not {name: files for name, files in places.items() if len(files) > 1}


def public_without_docstring(file: Path) -> list[str]:
    missing, tree = [], ast.parse(file.read_text())
    documented = {  # methods by class; a method that overrides one of these inherits its docstring
        node.name: {
            inner.name for inner in node.body if isinstance(inner, Function) and ast.get_docstring(inner)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    for node in tree.body:
        if isinstance(node, (Function, ast.ClassDef)) and not node.name.startswith("_"):
            missing += [] if ast.get_docstring(node) else [node.name]
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            inherited = documented[node.name].union(*(documented.get(base, ()) for base in bases))
            public = [
                inner.name for inner in node.body if isinstance(inner, Function) and inner.name[0] != "_"
            ]
            missing += [f"{node.name}.{name}" for name in public if name not in inherited]
    return missing


@pytest.mark.parametrize("file", source_files(), ids=name_of)
def test_public_names_have_docstrings(file):
    assert public_without_docstring(file) == []


def test_no_program_is_started_through_a_shell():
    for file in source_files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                assert all(keyword.arg != "shell" for keyword in node.keywords), name_of(file)
            called = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert called not in ("os.system", "os.popen", "subprocess.getoutput"), name_of(file)
            assert not called.startswith(("os.exec", "os.spawn")), name_of(file)
