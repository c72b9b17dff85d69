"""Disks that are full and folders that may not be written: real ones, under the real commands."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from sv3d_jax.weights.hub import write_shipped
from tests.io.gltf_files import CASES
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG
from tests.train.tiny_run import DATA

SV3D = (sys.executable, "-m", "sv3d_jax")
# The command without its questions how much room there is, as when other programs fill the disk while it writes.
UNASKED = (
    sys.executable,
    "-c",
    "import sys; from sv3d_jax.io import outputs; outputs.LEAST_SPACE = 0\n"
    "from sv3d_jax.weights import convert; convert._check_space = lambda *_: None\n"
    "from sv3d_jax.cli import main; sys.exit(main(sys.argv[1:]))",
)
# Runs a command on a disk of $1 bytes at $2, then again when there is room; copies what each leaves to $3.
ON_A_SMALL_DISK = """
size=$1 disk=$2 seen=$3; shift 3
mount -t tmpfs -o size=$size none "$disk" || exit 99
"$@" >"$seen/first.txt" 2>&1; echo $? >"$seen/first"; cp -r "$disk" "$seen/left"
mount -o remount,size=100m "$disk"
"$@" >"$seen/second.txt" 2>&1; echo $? >"$seen/second"; cp -r "$disk" "$seen/whole"
"""
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
mounts = (
    shutil.which("unshare") is not None
    and not subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True
    ).returncode
)


class Ends(NamedTuple):
    """What a command did on a full disk, and again when there was room."""

    codes: tuple[int, int]
    said: str  # by the first
    left: Path  # by the first
    whole: Path


@pytest.fixture
def on_a_small_disk(tmp_path) -> Callable[..., Ends]:
    def run(size: str, *command: str | Path) -> Ends:
        disk, seen = tmp_path / "disk", tmp_path / "seen"
        disk.mkdir()
        seen.mkdir()
        script = [*NAMESPACE, "sh", "-c", ON_A_SMALL_DISK, "sh", size, disk, seen, *command]
        subprocess.run(script, check=True, timeout=600)
        codes = int((seen / "first").read_text()), int((seen / "second").read_text())
        return Ends(codes, (seen / "first.txt").read_text(), seen / "left", seen / "whole")

    return run


@pytest.fixture
def weights(tmp_path) -> Path:
    write_shipped(reference_params(CONFIG), CONFIG, tmp_path / "tiny")
    return tmp_path / "tiny"


def check(ends: Ends, *results: str) -> None:
    """The first run ended with one sentence, and left whole files or none; the second has all results."""
    assert ends.codes == (5, 0), ends.said
    errors = [line for line in ends.said.splitlines() if line.startswith("sv3d:")]
    assert len(errors) == 1 and "disk" in ends.said
    for path in ends.left.rglob("*"):
        assert not path.name.endswith(".tmp") or path.name.startswith("."), path
        assert path.name != "run.json"
    for result in results:
        assert (ends.whole / result).stat().st_size, result


needs_mounts = pytest.mark.skipif(not mounts, reason="file systems cannot be mounted here")


@needs_mounts
def test_a_render_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path, on_a_small_disk):
    command = ("data", "render", CASES / "fan.glb", "-o", tmp_path / "disk" / "out", "--frames", "21")
    ends = on_a_small_disk("60k", *UNASKED, *command, "--size", "64", "--quiet")
    check(ends, "out/run.json", "out/frames/020.png", "out/contact.png")
    whole = {path.name: path.read_bytes() for path in (ends.whole / "out" / "frames").iterdir()}
    kept = [*(ends.left / "out" / "frames").iterdir()]
    assert 0 < len(kept) < 21 and all(path.read_bytes() == whole[path.name] for path in kept)


@needs_mounts
@pytest.mark.slow
@pytest.mark.parametrize("output, size", [("model", "600k"), ("model.safetensors", "600k")])
def test_a_conversion_whose_disk_fills_up_says_so_and_leaves_no_model(
    tmp_path, weights, on_a_small_disk, output, size
):
    ends = on_a_small_disk(size, *UNASKED, "convert", weights, tmp_path / "disk" / output, "--quiet")
    check(ends, output)
    assert not (ends.left / output).exists()


@needs_mounts
@pytest.mark.slow
@pytest.mark.parametrize("size", ["20k", "150k"], ids=["no room for a save", "room for a part of one"])
def test_a_run_that_cannot_save_says_so_and_is_trained_when_there_is_room(tmp_path, on_a_small_disk, size):
    (tmp_path / "model.toml").write_text(CONFIG.to_toml())
    data = "".join(f"{name} = {value}\n" for name, value in DATA.items())
    (tmp_path / "run.toml").write_text(
        f'objective = "tower"\nmodel = "{tmp_path}/model.toml"\ndata_dir = "{tmp_path}/data"\nbatch_size = 2\n'
        f"max_steps = 6\nsave_every = 2\nvalidate_every = 100\n[data]\n{data}"
        "[diffusion]\nframes_per_sample = 3\n[watch]\nsamples_every = 0\n"
    )
    command = ("train", "--config", tmp_path / "run.toml", "-o", tmp_path / "disk" / "run")
    ends = on_a_small_disk(size, *UNASKED, *command)
    check(ends, "run/run.json", "run/checkpoints/6/_CHECKPOINT_METADATA")
    assert not [path for path in (ends.left / "run" / "checkpoints").glob("*") if path.name.isdigit()]


def test_a_file_that_may_not_grow_further_ends_like_a_full_disk(tmp_path):
    """Where nothing can be mounted: the system refuses to write more than so many bytes of any file."""
    command = [*SV3D, "data", "objects", "-o", tmp_path / "out", "--count", "2", "--quiet"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    # The limit is one for modules that Python would compile as well.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    first = subprocess.run(
        command, preexec_fn=limited, env=environment, capture_output=True, text=True, timeout=600
    )
    assert first.returncode == 5 and "cannot write" in first.stderr and first.stderr.count("\n") == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", ".stages.json"]
    assert subprocess.run(command, capture_output=True, timeout=600).returncode == 0
    assert (tmp_path / "out" / "1.glb").stat().st_size > 4096


# Root may write everywhere. In a user namespace without a mapping a process loses that, and is bound like any user.
BOUND = () if os.getuid() else ("unshare", "--user")


@pytest.mark.skipif(not (os.getuid() or mounts), reason="root cannot give up its rights here")
@pytest.mark.parametrize("place", ["parent", "folder"])
def test_a_folder_of_another_user_is_refused_before_any_work(tmp_path, place):
    parent, output = tmp_path / "shared", tmp_path / "shared" / "out"
    (output if place == "folder" else parent).mkdir(parents=True)
    for folder in (output, parent) if place == "folder" else (parent,):
        folder.chmod(0o555)
        if os.getuid() == 0:
            os.chown(folder, 65534, 65534)
    command = [*BOUND, *SV3D, "data", "objects", "-o", output, "--count", "1", "--no-compile-cache"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 5, ended.stderr
    where = output if place == "folder" else parent
    assert f"{where} cannot be written" in ended.stderr and ended.stderr.count("\n") == 2
    assert [*parent.rglob("*")] == ([output] if place == "folder" else [])
