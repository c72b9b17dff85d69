"""The comparison itself: what it does not know or cannot compute fails, and so does a changed copy of the data."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.parity.cases import records, reference_files
from tests.parity.conftest import FOLDER
from tests.parity.families import case_of

ROOT = Path(__file__).parents[2]


def test_file_of_no_family_fails(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("?")
    assert reference_files(tmp_path) == ["notes.txt"]
    with pytest.raises(AssertionError, match=r"notes\.txt"):
        case_of(tmp_path, "notes.txt").tensors()


def test_tensor_that_nothing_computes_fails(tmp_path: Path):
    _copy(tmp_path, "schedule.*")
    _add_tensor(tmp_path / "schedule.safetensors", "sigmas_of_another_kind", np.ones(3, np.float32))
    case = case_of(tmp_path, "schedule.safetensors")
    failed = [record.tensor for record in records(case, "default", case.tensors()) if record.failed]
    assert failed == ["sigmas_of_another_kind"]


def test_tensor_that_the_description_does_not_list_fails(tmp_path: Path):
    _copy(tmp_path, "schedule.*")
    path = tmp_path / "schedule.safetensors"
    save_file(load_file(path) | {"more": np.ones(3, np.float32)}, path)
    with pytest.raises(AssertionError, match="lists"):
        case_of(tmp_path, "schedule.safetensors").tensors()


def test_value_that_is_not_a_number_fails(tmp_path: Path):
    _copy(tmp_path, "schedule.*")
    path = tmp_path / "schedule.safetensors"
    tensors = load_file(path)
    tensors["sigmas.10"][3] = np.nan
    save_file(tensors, path)
    case = case_of(tmp_path, "schedule.safetensors")
    assert [record.tensor for record in records(case, "default", case.tensors()) if record.failed] == [
        "sigmas.10"
    ]


def test_picture_that_no_case_names_fails(tmp_path: Path):
    _copy(tmp_path, "image")
    shutil.copy(FOLDER / "image/in0.png", tmp_path / "image/another.png")
    case = case_of(tmp_path, "image/another.png")
    with pytest.raises(AssertionError, match=r"another\.png"):
        records(case, "default", case.tensors())


@pytest.mark.slow
def test_changed_copy_of_a_folder_fails_in_each_file(tmp_path: Path):
    folder, work = tmp_path / "copy", tmp_path / "work"
    work.mkdir()
    _copy(
        folder,
        "schedule.*",
        "cond_vector.*",
        "clip.*",
        "orbits.json",
        "sv3d_u.keys.json",
        "tiny_u.weights.json",
    )
    _copy(folder, "image")
    files = reference_files(folder)
    for file in files:
        _change(folder / file)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    command += ["-c", ROOT / "pyproject.toml", ROOT / "tests/parity/test_parity.py", "--reference", folder]
    command += ["-k", "matches_reference"]
    assert subprocess.run(command, cwd=work, capture_output=True).returncode == 1
    failed = {
        (record["file"], record["path"])
        for record in json.loads((work / "parity.json").read_text())
        if record["error"] > record["tolerance"]
    }
    assert failed == {(file, path) for file in files for path in ("reference", "default")}


def _copy(folder: Path, *patterns: str) -> None:
    folder.mkdir(exist_ok=True)
    for source in (path for pattern in patterns for path in FOLDER.glob(pattern)):
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / source.name)


def _add_tensor(path: Path, name: str, tensor: np.ndarray) -> None:
    save_file(load_file(path) | {name: tensor}, path)
    description = json.loads(path.with_suffix(".json").read_text())
    description["tensors"][name] = [str(tensor.dtype), list(tensor.shape)]
    path.with_suffix(".json").write_text(json.dumps(description))


def _change(path: Path) -> None:
    """One output of a reference file, 1e-3 relative more; of a picture one value by one grey level."""
    if path.suffix == ".png":
        pixels = np.array(Image.open(path))
        pixels[100, 100, 1] ^= 1
        Image.fromarray(pixels).save(path)
    elif path.suffix == ".safetensors":
        tensors = load_file(path)
        name = {"schedule": "sigmas.10", "cond_vector": "static.vector_u", "clip": "embedding"}[path.stem]
        tensors[name] = tensors[name] * np.float32(1.001)
        save_file(tensors, path)
    else:
        values = json.loads(path.read_text())
        *places, last = {
            "orbits.json": ("dynamic", 1, "azimuth_rad", 3),
            "image.json": ("cases", 0, "side_len"),
            "sv3d_u.keys.json": ("keys", "model.diffusion_model.out.2.weight", 1),
            "tiny_u.weights.json": ("keys", "model.diffusion_model.out.2.weight", "sum"),
        }[path.name]
        value = values
        for place in places:
            value = value[place]
        value[last] *= 1.001
        path.write_text(json.dumps(values))
