"""The orbit and generate verbs as a user runs them, on a tiny model written as weights."""

import json
import shutil
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cli import main
from sv3d_jax.infer.config import GenerateConfig
from sv3d_jax.infer.generate import run_generate
from sv3d_jax.io.images import Picture, read_picture
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.preprocess import prepare_for
from sv3d_jax.progress import NullProgress
from tests.infer.runs import FRAMES, files_with_times, orbit
from tests.tiny_model import CONFIG, SIZE, picture


def test_several_pictures_get_a_folder_of_their_name_each(made):
    assert sorted(folder.name for folder in made.iterdir()) == ["ball", "box", "run.json"]
    for folder in (made / "ball", made / "box"):
        assert {"orbit.gif", "contact.png", "input.png", "cameras.json", "run.json"} <= {
            file.name for file in folder.iterdir()
        }
        assert read_orbit(folder).images.shape == (5, SIZE, SIZE, 3)


def test_last_frame_and_input_png_are_the_prepared_picture(made, place):
    prepared = prepare_for(CONFIG, read_picture(place / "box.png"), SIZE).pixels
    for name in ("input.png", "frames/004.png"):
        assert (np.asarray(Image.open(made / "box" / name)) == prepared).all()


def test_run_json_tells_settings_seed_weights_and_timings(made):
    record = json.loads((made / "box" / "run.json").read_text())
    assert record["config"]["num_steps"] == 2 and record["config"]["verb"] == "orbit"
    stage = record["stages"]["orbit"]
    assert stage["seed"] == 0 and len(stage["weights"]["sha256"]) == 64
    assert {"compile", "sample", "decode"} <= set(stage["timings_s"])
    assert record["peak_memory_bytes"] > 0


def test_finished_run_is_left_as_it_is(made, place):
    before = files_with_times(made)
    assert orbit(place, place / "box.png", place / "ball.png", "-o", made) == 0
    assert files_with_times(made) == before


def test_other_settings_are_refused_and_named(made, place, capsys):
    before = files_with_times(made)
    assert orbit(place, place / "box.png", place / "ball.png", "-o", made, "--seed", "5") == 2
    assert "seed was 0, is 5" in capsys.readouterr().err
    assert files_with_times(made) == before


def test_another_picture_under_the_same_name_is_another_run(made, place, tmp_path, capsys):
    Image.fromarray(picture(7)).save(tmp_path / "box.png")
    assert orbit(place, tmp_path / "box.png", "-o", made / "box") == 2
    assert "picture_sha256" in capsys.readouterr().err


def test_dry_run_plans_and_writes_nothing(place, capsys):
    assert orbit(place, place / "box.png", "-o", place / "dry", "--dry-run") == 0
    assert "memory: about" in capsys.readouterr().out
    assert not (place / "dry").exists()


def test_cameras_file_is_followed(made, place):
    cameras = made / "box" / "cameras.json"
    assert orbit(place, place / "ball.png", "-o", place / "followed", "--cameras", cameras) == 0
    followed = read_orbit(place / "followed").camera_to_world
    np.testing.assert_allclose(followed, read_orbit(made / "box").camera_to_world, atol=1e-12)


def test_a_run_recorded_under_the_flags_of_version_0_1_is_still_known(made, place, capsys):
    """`--steps` is now `--num-steps`, on the command line and in the folder."""
    copy = shutil.copytree(made / "box", place / "older")
    for name in ("run.json", ".stages.json"):
        if (file := copy / name).exists():
            record = json.loads(file.read_text().replace('"num_steps"', '"steps"'))
            record.pop("crc32", None)  # that version wrote no checksums
            file.write_text(json.dumps(record))
    assert '"steps"' in (copy / "run.json").read_text()
    before = files_with_times(copy)
    words = [word.replace("--num-steps", "--steps") for word in FRAMES]
    words = ["orbit", "--weights", str(place / "tiny"), *words, "-o", str(copy)]
    assert main([*words, str(place / "box.png")]) == 0
    assert "--steps is now --num-steps" in capsys.readouterr().err
    assert files_with_times(copy) == before


def test_pictures_of_one_name_are_refused(place, tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "box.png")
    assert orbit(place, place / "box.png", tmp_path / "box.png", "-o", tmp_path / "out") == 2
    assert "several pictures are named box" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_picture_that_cannot_be_used_stops_before_any_work(place, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert orbit(place, place / "box.png", tmp_path / "bad.png", "-o", tmp_path / "out") == 2
    assert str(tmp_path / "bad.png") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_how_it_is_sampled_can_be_said(made, place):
    """Other solvers and intervals of guidance give other frames of the same orbit."""
    options = ("--solver", "dpmpp_2m", "--guidance-interval", "1", "20", "--cache-interval", "2")
    options += ("--quantize", "int8")
    assert orbit(place, place / "ball.png", "-o", place / "otherwise", *options) == 0
    config = json.loads((place / "otherwise" / "run.json").read_text())["config"]
    assert (config["solver"], config["guidance_interval"]) == ("dpmpp_2m", [1.0, 20.0])
    assert config["quantize"] == "int8"
    changed = read_orbit(place / "otherwise").images[:-1] != read_orbit(made / "ball").images[:-1]
    assert changed.any()


def test_models_of_ours_take_renders_as_they_are():
    rgb = np.full((SIZE, SIZE, 3), 255, np.uint8)
    rgb[20:28, 6:14] = 30
    ours = ModelConfig.from_dict({**CONFIG.to_dict(), "training": {"unet": {"step": 1}}})
    assert (prepare_for(ours, Picture(rgb), SIZE).pixels == rgb).all()
    centred = prepare_for(CONFIG, Picture(rgb), SIZE).pixels
    assert (centred[12:20, 12:20] < 40).all()
    scaled = prepare_for(ours, Picture(rgb), SIZE, frame_ratio=0.5).pixels
    assert (scaled[10:22, 10:22] < 60).all()


@pytest.mark.slow
def test_main_job_with_the_shipped_model(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "figure.png"
    assert main(["generate", str(example), "-o", str(tmp_path / "out"), "--num-steps", "4"]) == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {
        "orbit.mp4",
        "contact.png",
        "cameras.json",
        "mesh.glb",
        "mesh.ply",
        "turntable.mp4",
        "run.json",
    } <= names
    frames = imageio.v3.imread(tmp_path / "out" / "orbit.mp4")
    assert len(frames) == 21
    given = np.asarray(Image.open(tmp_path / "out" / "input.png"), float)
    assert np.abs(frames[-1] - given).mean() < 6  # of 255, after H.264
    mesh = read_mesh(tmp_path / "out" / "mesh.glb")
    assert len(mesh.faces) > 100 and np.abs(mesh.vertices).max() < 1
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert set(record["timings_s"]) == {"orbit", "mesh"}
    assert record["peak_memory_bytes"] < 6 << 30


@pytest.mark.slow
def test_resumed_run_makes_the_mesh_alone(tmp_path):
    """The orbit was done when the run was stopped: the mesh follows from its files, which stay."""
    example = Path(__file__).parents[2] / "examples" / "figure.png"
    command = ["generate", str(example), "-o", str(tmp_path / "out"), "--num-steps", "2", "--quiet"]

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sv3d_jax.infer.generate._mesh", stop)
        assert main(command) == 130
    before = files_with_times(tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sv3d_jax.infer.batch.OrbitSampler.__call__", stop)
        assert main(command) == 0
    after = files_with_times(tmp_path / "out")
    assert before.items() <= after.items()
    assert (tmp_path / "out" / "mesh.glb") in after


@pytest.mark.parametrize(("orbit", "is_advised"), [("static", True), ("sine", False)])
def test_an_orbit_that_shows_top_and_bottom_is_advised_for_meshes(place, orbit, is_advised, monkeypatch):
    notes = []
    monkeypatch.setattr(NullProgress, "note", lambda self, text: notes.append(text))
    config = GenerateConfig(
        images=(place / "box.png",),
        output=place / "dry",
        weights=str(place / "tiny"),
        orbit=orbit,
        dry_run=True,
    )
    assert run_generate(config, NullProgress())["dry_run"]
    assert any("--orbit sine" in note for note in notes) == is_advised


@pytest.mark.parametrize("name", ["frames/000.png", "contact.png", "input.png"])
def test_no_run_writes_over_its_own_picture_or_mask(place, tmp_path, capsys, name):
    given = tmp_path / name
    given.parent.mkdir(exist_ok=True)
    shutil.copy(place / "box.png", given)
    for words in ([given], [place / "box.png", "--mask", given]):
        assert orbit(place, *words, "-o", tmp_path) == 2
        assert f"{given} is an input of this run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*.*")] == [given.name]
