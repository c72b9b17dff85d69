"""Imports point one way, and code that runs on accelerator hosts imports with little installed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AREAS = ("infer", "recon", "train")
# From the leaves up; a file may import from its own level and below. Names are relative to sv3d_jax.
LEVELS = (
    (
        "arrays",
        "colors",
        "errors",
        "names_of_flags",
        "signals",
        "flags",
        "config",
        "progress",
        "devices",
        "describe",
        "background",
        "programs",
        "hoist",
        "cost",
        "cameras",
        "io",
    ),
    ("models", "diffusion", "render", "geometry"),
    (
        "weights",
        "plan",
        "precision",
        "cutout",
        "preprocess",
        "conditioning",
        "runner",
        "sampling",
        "inputs",
        "orbit",
        "pipeline",
        "parallel",
        "metrics",
    ),
    AREAS,
    ("cli", "doctor", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# These may reach any area, lazily.
FREE = {"sv3d_jax/__init__.py", "infer/generate.py"}
ALLOWED = {
    ("io", "geometry"),  # a mesh file is read into a Mesh
}


def source_files() -> list[Path]:
    folders = [ROOT / name for name in ("sv3d_jax", *AREAS)]
    return [file for folder in folders for file in sorted(folder.rglob("*.py")) if not linked(file)]


def linked(file: Path) -> bool:
    return any(parent.is_symlink() for parent in file.parents if ROOT in parent.parents)


def imported_modules(file: Path) -> set[str]:
    """Modules below sv3d_jax that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name.removeprefix("sv3d_jax.") for name in names if name.startswith("sv3d_jax.")}


def subject(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "sv3d_jax" else parts[0]


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    if str(file.relative_to(ROOT)) in FREE:
        return
    own = subject(file)
    for name in imported_modules(file):
        other = name.split(".")[0]
        if other not in LEVEL or (own, other) in ALLOWED:
            continue
        assert LEVEL[other] <= LEVEL[own], f"{own} is below {other}, and imports sv3d_jax.{name}"
        assert other == own or not {own, other} <= set(AREAS), f"the area {own} imports the area {other}"


def test_every_file_has_a_level():
    assert {subject(file) for file in source_files()} - {"__init__"} <= set(LEVEL)


def test_only_models_imports_flax():
    users = {subject(file) for file in source_files() if "flax" in file.read_text() and imports_flax(file)}
    assert users == {"models"}


def imports_flax(file: Path) -> bool:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return any(module.split(".")[0] == "flax" for module in modules)


ABSENT = "PIL trimesh skimage tyro imageio av xatlas jaxtyping beartype huggingface_hub filelock grain torch".split()
BARE_HOST = f"""
import importlib, importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError("absent here: " + name, name=name)
sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def host_modules() -> list[str]:
    """Modules of models, samplers, rendering, geometry and the training step."""
    files = [
        file
        for file in source_files()
        if subject(file) in ("models", "diffusion", "render", "geometry", "cameras")
    ]
    files += [ROOT / "train" / name for name in ("step.py", "state.py", "optimizer.py", "config.py")]
    dotted = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files
    ]
    return [name if name.startswith("sv3d_jax") else f"sv3d_jax.{name}" for name in dotted]


def test_computing_code_imports_on_a_host_with_little_installed():
    done = subprocess.run([sys.executable, "-c", BARE_HOST, *host_modules()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_the_package_loads_no_jax():
    script = "import sys, sv3d_jax, sv3d_jax.cli; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_every_public_name_can_be_had():
    import sv3d_jax

    assert all(getattr(sv3d_jax, name) for name in sv3d_jax.__all__)
    assert set(sv3d_jax._LAZY) < set(sv3d_jax.__all__)
    assert dir(sv3d_jax) == sorted([*sv3d_jax.__all__, "__version__"])
    undescribed = [name for name in dir(sv3d_jax) if f"`{name}`" not in (sv3d_jax.__doc__ or "")]
    assert {name for name in undescribed if not name.endswith("Error")} <= ERRORS | {"__version__"}


ERRORS = {"Cancelled", "OutOfMemory", "Preempted"}
