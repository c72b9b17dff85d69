"""Photographs on the command line: masks, boxes, and the background remover."""

import json
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sv3d_jax import cutout
from sv3d_jax.cutout import Remover
from sv3d_jax.infer import pictures
from sv3d_jax.io.images import read_mask, read_picture
from sv3d_jax.preprocess import prepare_for
from tests.infer.runs import orbit
from tests.tiny_model import CONFIG, SIZE


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two pictures without a plain border, a mask of each, and their sizes: 64x48."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index, name in enumerate(("cat", "dog")):
        Image.fromarray(rng.integers(60, 200, (48, 64, 3)).astype(np.uint8)).save(folder / f"{name}.png")
        mask = np.zeros((48, 64), np.uint8)
        mask[10:30, 8 + 20 * index : 40] = 255
        Image.fromarray(mask).save(folder / f"{name}_mask.png")
    return folder


def test_a_photograph_is_cut_out_by_its_mask_and_run_json_says_so(place, photos, tmp_path):
    words = (
        photos / "cat.png",
        photos / "dog.png",
        "--mask",
        photos / "cat_mask.png",
        photos / "dog_mask.png",
    )
    assert orbit(place, *words, "-o", tmp_path / "out") == 0
    for name in ("cat", "dog"):
        expected = prepare_for(
            CONFIG, read_picture(photos / f"{name}.png"), SIZE, mask=read_mask(photos / f"{name}_mask.png")
        )
        assert (np.asarray(Image.open(tmp_path / "out" / name / "input.png")) == expected.pixels).all()
        record = json.loads((tmp_path / "out" / name / "run.json").read_text())
        assert record["stages"]["orbit"]["notes"] == ["cut out by the mask that was given"]
        assert record["config"]["mask"] == [str(photos / f"{name}_mask.png")]
        assert len(record["config"]["mask_sha256"]) == 64


def test_another_mask_under_the_same_name_is_another_run(place, photos, tmp_path, capsys):
    mask = tmp_path / "mask.png"
    words = (photos / "cat.png", "--mask", mask, "-o", tmp_path / "out")
    mask.write_bytes((photos / "cat_mask.png").read_bytes())
    assert orbit(place, *words) == 0
    mask.write_bytes((photos / "dog_mask.png").read_bytes())
    assert orbit(place, *words) == 2
    assert "mask_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words,said",
    [
        (["cat.png", "dog.png", "--mask", "cat_mask.png"], "--mask: got 1 for 2 pictures"),
        (["cat.png", "--mask", "cat_mask.png", "dog_mask.png"], "--mask: got 2 for 1 pictures"),
        (["cat.png", "dog.png", "--box", "1", "1", "9", "9"], "--box is for one picture, got 2"),
        (["cat.png", "--box", "9", "1", "5", "9"], "--box 9 1 5 9"),
        (["cat.png", "--box", "1", "1", "65", "9"], "cat.png, which is 64x48 pixels"),
        (["cat.png", "--mask", "absent.png"], "absent.png"),
        (["cat.png", "--mask", "cat_mask.png", "--background", "keep"], "give one of them"),
    ],
)
def test_masks_and_boxes_that_do_not_fit_are_refused(
    place, photos, tmp_path, capsys, monkeypatch, words, said
):
    monkeypatch.chdir(photos)
    assert orbit(place, *words, "-o", tmp_path / "out") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_one_session_of_rembg_serves_all_pictures_of_a_run(place, photos, tmp_path, monkeypatch):
    made = []

    class Session(Remover):
        @cached_property
        def session(self):
            made.append(self)

        def __call__(self, image):
            self.session  # noqa: B018
            image.putalpha(0)
            image.paste((9, 8, 7, 255), (10, 10, 30, 30))
            return np.asarray(image)

    monkeypatch.setattr(cutout, "has_rembg", lambda: True)
    monkeypatch.setattr(pictures, "Remover", Session)
    assert orbit(place, photos / "cat.png", photos / "dog.png", "-o", tmp_path / "out", "--dry-run") == 0
    assert len(made) == 1


def test_rembg_without_its_model_ends_with_3_before_anything_is_sampled(place, photos, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("")
    (tmp_path / "rembg.py").write_text("def new_session(name): raise OSError('no route to host')\n")
    command = [sys.executable, "-m", "sv3d_jax", "orbit", photos / "cat.png", "-o", tmp_path / "out"]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [*map(str, command), "--weights", str(place / "tiny")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "U2NET_HOME": str(tmp_path / "models")},
    )
    assert done.returncode == 3, done.stderr
    assert f"u2net.onnx (176 MB, Apache-2.0), is not in {tmp_path / 'models'}" in done.stderr
    assert "curl" in done.stderr and not (tmp_path / "out").exists()
