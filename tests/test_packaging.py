"""The wheel and the sdist, installed outside the clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = (
    "sv3d_jax",
    "infer",
    "recon",
    "train",
    "configs",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
)

pytestmark = pytest.mark.slow


def build(kind: str, source: Path, output: Path) -> Path:
    """The sdist or wheel of a source tree, without build isolation and so without the network."""
    script = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, output], cwd=source, check=True, capture_output=True)
    [built] = output.iterdir()
    return built


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A wheel built from the tree, and one from the sdist of the tree."""
    folder = tmp_path_factory.mktemp("packaging")
    tree = folder / "tree"
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                tree / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
            )
        else:
            shutil.copy2(ROOT / name, tree / name)
    sdist = build("sdist", tree, folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    return {"tree": build("wheel", tree, folder / "a"), "sdist": build("wheel", unpacked, folder / "b")}


@pytest.fixture(scope="module", params=["tree", "sdist"])
def installed(request, wheels, tmp_path_factory):
    """The Python of a fresh environment that holds the wheel, and borrows its requirements from this one."""
    folder = tmp_path_factory.mktemp(request.param)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    wheel = wheels[request.param]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    subprocess.run(pip, check=True)
    [site] = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


def test_both_wheels_hold_every_source_file_once_under_one_name(wheels):
    expected = {
        f"{prefix}{file.relative_to(ROOT)}"
        for folder, prefix in (
            ("sv3d_jax", ""),
            *((name, "sv3d_jax/") for name in ("infer", "recon", "train", "configs")),
        )
        for pattern in ("*.py", "*.toml", "*.safetensors")
        for file in (ROOT / folder).rglob(pattern)
        if not any(parent.is_symlink() for parent in file.parents if ROOT in parent.parents)
    }
    for wheel in wheels.values():
        names = zipfile.ZipFile(wheel).namelist()
        assert len(names) == len(set(names))
        assert {name.split("/")[0] for name in names} == {"sv3d_jax", "sv3d_jax-0.1.0.dist-info"}
        assert expected <= set(names)


def test_shipped_weights_fit_their_limits():
    sizes = [
        file.stat().st_size for file in (ROOT / "sv3d_jax" / "weights" / "mini").rglob("*") if file.is_file()
    ]
    assert 0 < sum(sizes) <= 24e6 and max(sizes) < 16 * 2**20


def test_the_installed_doctor_finds_its_own_copy_and_weights(installed, tmp_path):
    sv3d = installed.parent / "sv3d"
    done = subprocess.run(
        [sv3d, "doctor", "--json"], cwd=tmp_path, capture_output=True, text=True, env=plain()
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0 and "mini" in report["weights"], report["problems"]


def test_the_installed_package_is_not_the_clone(installed, tmp_path):
    script = (
        "import sv3d_jax.infer, sv3d_jax.configs; print(sv3d_jax.infer.__file__, sv3d_jax.configs.__file__)"
    )
    done = subprocess.run(
        [installed, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=plain()
    )
    assert all(Path(file).is_relative_to(installed.parents[1]) for file in done.stdout.split()), done.stderr


def test_the_installed_command_makes_an_orbit_and_a_mesh(installed, tmp_path):
    picture = next((ROOT / "examples").glob("*.png"))
    words = [installed.parent / "sv3d", "generate", picture, "-o", "out", "--num-steps", "2", "--frames", "5"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=plain())
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "out" / name).stat().st_size for name in ("orbit.mp4", "mesh.glb", "run.json"))


def plain() -> dict[str, str]:
    """An environment that does not point back at the clone."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
