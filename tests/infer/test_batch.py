"""Several pictures in one run: sampled at once, on several devices, and when memory runs out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sv3d_jax.errors import Cancelled, OutOfMemory
from sv3d_jax.infer.batch import OrbitSampler
from sv3d_jax.infer.config import OrbitConfig
from sv3d_jax.infer.generate import run_orbit
from sv3d_jax.io.images import Picture
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.preprocess import prepare_for
from sv3d_jax.progress import NullProgress
from tests.infer.runs import FRAMES, files_with_times, orbit
from tests.tiny_model import COMPILE_QUICKLY, CONFIG, picture, tiny_pipeline


def test_cancelled_run_keeps_finished_pictures(place):
    class CancelAtSecond(NullProgress):
        samplings = 0

        def stage(self, name, total=None):
            self.samplings += name == "sample"

        def advance(self, steps=1):
            if self.samplings == 2:
                raise Cancelled

    config = OrbitConfig(
        images=(place / "box.png", place / "ball.png"),
        output=place / "cancelled",
        weights=str(place / "tiny"),
        frames=5,
        num_steps=2,
        format="gif",
    )
    with pytest.raises(Cancelled):
        run_orbit(config, CancelAtSecond())
    assert (place / "cancelled" / "box" / "run.json").is_file()
    assert not (place / "cancelled" / "ball" / "run.json").exists()


@pytest.fixture
def little_memory(monkeypatch):
    """Decoding wants one frame at a time, a pipeline that saves memory, and 16 bits."""
    tried, decode = [], Pipeline.decode

    def demanding(self, latents, chunk=None, advance=lambda frames: None):
        tried.append((chunk, self.runner.config.low_memory, self.runner.config.dtype))
        if tried[-1] != (1, True, "bfloat16"):
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
        return decode(self, latents, chunk, advance)

    monkeypatch.setattr(Pipeline, "decode", demanding)
    return tried


def test_auto_fit_goes_down_the_list_until_it_fits(place, tmp_path, little_memory, monkeypatch):
    images = (place / "box.png", place / "ball.png")
    loaded, load = [], Pipeline.from_pretrained
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *a, **k: loaded.append(1) or load(*a, **k))
    assert orbit(place, *images, "-o", tmp_path / "out", "--auto-fit", "--decode-chunk", "2") == 0
    assert len(loaded) == 1  # its weights are kept from attempt to attempt
    assert little_memory == [
        (2, False, "float32"),
        (1, False, "float32"),
        (1, True, "float32"),
        (1, True, "bfloat16"),
        (1, True, "bfloat16"),  # the second picture begins where the first one ended
    ]
    for name in ("box", "ball"):
        [*_, note] = json.loads((tmp_path / "out" / name / "run.json").read_text())["stages"]["orbit"][
            "notes"
        ]
        assert note == "memory ran out: --decode-chunk 1 --low-memory --dtype bfloat16"


def test_auto_fit_goes_on_when_loading_is_too_much(place, tmp_path, monkeypatch):
    load, tried = Pipeline.from_pretrained, []

    def demanding(source, variant, compute, **more):
        tried.append(compute.low_memory)
        if not compute.low_memory:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
        return load(source, variant, compute, **more)

    monkeypatch.setattr(Pipeline, "from_pretrained", demanding)
    assert orbit(place, place / "box.png", "-o", tmp_path / "out", "--auto-fit") == 0
    assert tried == [False, False, True]


def exhausted(*_, **__):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")


def test_auto_fit_loads_again_where_a_second_copy_of_the_weights_is_too_much(monkeypatch):
    """A model in another precision is made of the loaded one; where both do not fit, the first one has to go."""
    loaded = []

    def load(source, variant, compute, **_):
        loaded.append((compute.low_memory, compute.dtype))
        return tiny_pipeline()

    monkeypatch.setattr(Pipeline, "from_pretrained", load)
    monkeypatch.setattr(Pipeline, "computing", exhausted)
    monkeypatch.setattr(Pipeline, "decode", exhausted)
    config = OrbitConfig(images=(Path("box.png"),), output=Path("out"), auto_fit=True)
    sampler = OrbitSampler(config, CONFIG, config.camera_path(CONFIG.num_frames), NullProgress(), 1)
    rgba = picture()
    prepared = prepare_for(CONFIG, Picture(rgba[..., :3], rgba[..., 3]), CONFIG.native_size)
    with pytest.raises(OutOfMemory):
        sampler([prepared])
    assert loaded == [(False, "auto"), (True, "auto"), (True, "bfloat16")]


def test_without_auto_fit_memory_that_runs_out_is_an_error(place, tmp_path, little_memory, capsys):
    assert orbit(place, place / "box.png", "-o", tmp_path / "out") == 4
    said = capsys.readouterr().err
    assert "cpu ran out of memory; memory: about" in said and "--auto-fit" in said
    assert len(little_memory) == 1


def test_pictures_sampled_at_once_give_the_orbits_of_each(made, place, tmp_path, monkeypatch):
    sampled, call = [], Pipeline.__call__
    monkeypatch.setattr(
        Pipeline,
        "__call__",
        lambda self, images, *how, **more: sampled.append(len(images)) or call(self, images, *how, **more),
    )
    images = (place / "box.png", place / "ball.png")
    assert orbit(place, *images, "-o", tmp_path / "out", "--batch", "2") == 0
    assert sampled == [2]
    for name in ("box", "ball"):
        ours, theirs = (read_orbit(folder / name).images for folder in (tmp_path / "out", made))
        np.testing.assert_allclose(ours, theirs, atol=2 / 255)
    before = files_with_times(tmp_path / "out")
    assert orbit(place, *images, "-o", tmp_path / "out") == 0  # done, however many at once
    assert files_with_times(tmp_path / "out") == before and sampled == [2]


@pytest.mark.slow
def test_pictures_are_divided_over_devices(made, place, tmp_path):
    """Three pictures on two devices: two at once, then one, which is sampled on both."""
    images = [place / "box.png", place / "ball.png", tmp_path / "box_again.png"]
    images[2].write_bytes(images[0].read_bytes())
    words = ["orbit", "--weights", place / "tiny", *FRAMES, *images, "-o", tmp_path / "out"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    environment = os.environ | COMPILE_QUICKLY | flags
    subprocess.run([sys.executable, "-m", "sv3d_jax", *words], env=environment, check=True)
    for name, same in (("box", "box"), ("ball", "ball"), ("box_again", "box")):
        ours, theirs = (read_orbit(folder).images for folder in (tmp_path / "out" / name, made / same))
        np.testing.assert_allclose(ours, theirs, atol=2 / 255)


def test_low_memory_gives_the_same_orbit(made, place, tmp_path):
    assert orbit(place, place / "box.png", "-o", tmp_path / "out", "--low-memory") == 0
    ours, theirs = (read_orbit(folder).images for folder in (tmp_path / "out", made / "box"))
    np.testing.assert_allclose(ours, theirs, atol=2 / 255)
