"""A reconstruction that is killed in every stage, and started again each time, ends with the same mesh."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import sine_orbit
from sv3d_jax.io.orbits import write_orbit
from tests.recon.scenes import ball_pictures

TINY = """
preset = "preview"
texture_size = 64
picture_every = 16
[nerf]
num_levels = 2
table_size = 1024
finest_resolution = 32
num_steps = 48
rays_per_step = 256
candidates_per_ray = 32
samples_per_ray = 8
occupancy_resolution = 16
refresh_cells = 1024
surface_resolution = 24
surface_levels = [1.0, 2.5]
[mesh]
num_steps = 48
cells = 12
"""
# Runs the command line, but for one function that kills the process when its arguments hold certain words.
RUNNER = """
import importlib, os, signal, sys
from sv3d_jax import cli
from sv3d_jax.recon import fit

place, *words = sys.argv[1].split()
owner, _, name = place.rpartition(".")
owner = importlib.import_module(owner)
original = getattr(owner, name)

def deadly(*arguments, **options):
    if all(word in str(arguments) for word in words):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(owner, name, deadly)
fit.SAVE_EVERY_S = 0.0  # after every call of 16 steps
sys.exit(cli.main(sys.argv[2:]))
"""
DEATHS = {
    "load": "sv3d_jax.recon.reconstruct.check_cameras",
    "coarse": "sv3d_jax.recon.fit._write coarse_fit.npz step=32",
    "surface": "sv3d_jax.recon.nerf.representation.field_mesh",
    "fine": "sv3d_jax.recon.fit._write fine_fit.npz step=32",
    "a half-written file": "os.replace fine.npz",
    "bake": "sv3d_jax.recon.bake.bake_texture",
    "write": "os.replace mesh_lit.glb",
}


@pytest.mark.slow
def test_killed_in_every_stage_a_run_ends_with_the_mesh_of_an_unbroken_one(tmp_path):
    cameras = sine_orbit(4)
    images, _ = ball_pictures(cameras, 32, 0.4)
    write_orbit(tmp_path / "orbit", np.round(images * 255).astype(np.uint8), cameras)
    (tmp_path / "tiny.toml").write_text(TINY)

    def run(output, death, *options):
        words = ["reconstruct", "orbit", "-o", output, "--config", "tiny.toml", "--quiet", *options]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}  # compiles once for all
        command = [sys.executable, "-c", RUNNER, death, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    whole = run("whole", "os.replace nothing", "--stage", "bake", "--picture-every", "0")
    assert whole.returncode == 0, whole.stderr
    for stage, death in DEATHS.items():
        killed = run("broken", death)
        assert killed.returncode == -signal.SIGKILL, f"{stage}: {killed.stderr}"
    resumed = run("broken", "sv3d_jax.recon.bake.textured")  # baked before the death in write
    assert resumed.returncode == 0, resumed.stderr

    for name in ("mesh.glb", "mesh_lit.glb", "mesh.obj", "mesh.png"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    left = {file.name for file in (tmp_path / "broken").rglob("*")}
    assert "run.json" in left and ".work" not in left
    assert not [name for name in left if name.endswith(".tmp")]
    pictures = {f"{stage}_0000{step}.png" for stage in ("coarse", "fine") for step in (16, 32, 48)}
    assert {file.name for file in (tmp_path / "broken" / "progress").iterdir()} == pictures
