"""The documentation is true: its files exist, its links lead somewhere, its snippets run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.append(ROOT / "train" / "launch" / "README.md")
# What makes the commands and the Python of the documentation small enough for a test.
TINY = {
    "sv3d generate": "--num-steps 2 --frames 5 --preset preview",
    "sv3d orbit": "--num-steps 2 --frames 5",
    "sv3d reconstruct": "--preset preview",
    "sv3d data render": "--frames 5 --size 64",
}
TINY_PYTHON = {r"num_steps=\d+": "num_steps=2", r"sv3d_p\.safetensors": "mini"}


def source_files() -> set[str]:
    """Paths as the architecture page writes them: inside sv3d_jax relative to it, else from the root."""
    files = {file for folder in ("infer", "recon", "train") for file in (ROOT / folder).rglob("*.py")}
    linked = ("infer", "recon", "train", "configs")
    files |= {
        file for file in (ROOT / "sv3d_jax").rglob("*.py") if file.relative_to(ROOT).parts[1] not in linked
    }
    names = {str(file.relative_to(ROOT)).removeprefix("sv3d_jax/") for file in files}
    return {name for name in names if not name.endswith("__init__.py")}


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def test_the_architecture_page_names_every_file_and_no_other():
    named = set(re.findall(r"`([\w/]+\.py)`", (ROOT / "docs" / "architecture.md").read_text()))
    around = {"setup.py", *(f"tests/test_{name}.py" for name in ("docs", "imports", "extending"))}
    assert {name for name in named - around if not name.endswith("__init__.py")} == source_files()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets(page, "bash")], ids=lambda page: page.name
)
def test_the_commands_of_a_page_run(page, tmp_path):
    workplace(page, tmp_path)
    for line in "".join(snippets(page, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        tiny = next((flags for start, flags in TINY.items() if line.startswith(start)), "")
        done = run([sys.executable, "-m", "sv3d_jax", *words[1:], *tiny.split()], tmp_path)
        assert words[0] == "sv3d" and done.returncode == 0, f"{line}\n{done.stderr}"


def test_every_test_that_a_page_names_exists():
    named = {
        name for page in PAGES for name in re.findall(r"`(tests/[\w/.]+py(?:::\w+)?)`", page.read_text())
    }
    assert len(named) > 40
    for name in sorted(named):
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text() if test else (ROOT / file).is_file(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets(page, "python")], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs(page, tmp_path):
    workplace(page, tmp_path)
    script = "".join(snippets(page, "python"))
    for found, tiny in TINY_PYTHON.items():
        script = re.sub(found, tiny, script)
    several = "jax.devices()" in script
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=6"} if several else {}
    done = run([sys.executable, "-c", script], tmp_path, **flags)
    assert done.returncode == 0, done.stderr


def workplace(page: Path, folder: Path) -> None:
    """What a reader has at hand: the example pictures, and the files that the page shows."""
    (folder / "examples").symlink_to(ROOT / "examples")
    for text in snippets(page, "toml"):
        (folder / text.split("\n")[0].removeprefix("# ")).write_text(text)


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)
