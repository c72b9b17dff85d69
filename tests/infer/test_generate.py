"""The orbit and generate verbs as a user runs them, on a tiny model written as weights."""

import json
import os
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
from PIL import Image

from sv3d_jax import cutout
from sv3d_jax.cli import main
from sv3d_jax.cutout import Remover
from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.errors import Cancelled, InputError, OutOfMemory
from sv3d_jax.infer import batch, generate
from sv3d_jax.infer.config import GenerateConfig, OrbitConfig
from sv3d_jax.infer.generate import run_generate, run_orbit
from sv3d_jax.io.images import Picture, read_mask, read_picture
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.plan import memory_advice, plan_orbit, require_accelerator
from sv3d_jax.preprocess import prepare_for
from sv3d_jax.progress import NullProgress
from sv3d_jax.weights.hub import write_shipped
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG, SIZE, picture

FRAMES = ("--frames", "5", "--num-steps", "2", "--format", "gif", "--quiet")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    write_shipped(reference_params(CONFIG), CONFIG, folder / "tiny")
    for index, name in enumerate(("box", "ball")):
        Image.fromarray(picture(index)).save(folder / f"{name}.png")
    return folder


def orbit(place: Path, *words: str) -> int:
    return main(["orbit", "--weights", str(place / "tiny"), *FRAMES, *map(str, words)])


@pytest.fixture(scope="module")
def made(place) -> Path:
    assert orbit(place, place / "box.png", place / "ball.png", "-o", place / "out") == 0
    return place / "out"


def files_with_times(folder: Path) -> dict[Path, int]:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {file: file.stat().st_mtime_ns for file in files}


def test_several_pictures_get_a_folder_of_their_name_each(made):
    assert sorted(folder.name for folder in made.iterdir()) == ["ball", "box"]
    for folder in made.iterdir():
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
            file.write_text(file.read_text().replace('"num_steps"', '"steps"'))
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


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("num_steps", 0, "--num-steps 0: must lie between 1 and 1000"),
        ("frame_ratio", 1.5, "--frame-ratio"),
        ("seed", -1, "--seed"),
        ("size", 5000, "--size"),
        ("decode_chunk", 0, "--decode-chunk"),
        ("cache_interval", 0, "--cache-interval 0: must lie between 1 and 1000"),
        ("guidance_interval", (3.0, 1.0), "--guidance-interval 3 1: a lower and a higher noise level"),
    ],
)
def test_option_out_of_range_names_its_flag(option, value, says):
    with pytest.raises(InputError, match=says):
        OrbitConfig(images=(Path("a.png"),), output=Path("out"), **{option: value})


def test_churn_needs_the_solver_that_knows_it():
    with pytest.raises(InputError, match="--churn goes with --solver euler, not with dpmpp_2m"):
        OrbitConfig(images=(Path("a.png"),), output=Path("out"), churn=1.0, solver="dpmpp_2m")


def test_cache_interval_does_not_go_with_low_memory():
    options = {"images": (Path("a.png"),), "output": Path("out"), "cache_interval": 2}
    with pytest.raises(InputError, match="--cache-interval does not go with --low-memory"):
        OrbitConfig(**options, low_memory=True)
    attempts = batch._attempts(OrbitConfig(**options, auto_fit=True))
    assert [(now.decode_chunk, now.low_memory, now.dtype) for now in attempts] == [
        (None, False, "auto"),
        (1, False, "auto"),
        (1, False, "bfloat16"),
    ]


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


def test_size_that_the_networks_cannot_halve_is_refused(place, capsys):
    assert orbit(place, place / "box.png", "-o", place / "odd", "--size", "60") == 2
    assert "--size 60: tiny needs a multiple of 8" in capsys.readouterr().err


def test_mini_reconstructs_in_preview_unless_told():
    common = {"images": (Path("a.png"),), "output": Path("out")}
    assert GenerateConfig(**common).reconstruction == "preview"
    assert GenerateConfig(**common, weights="other").reconstruction == "fast"
    assert GenerateConfig(**common, preset="fast").reconstruction == "fast"


def test_distillation_needs_and_implies_a_fine_stage(place, capsys):
    assert GenerateConfig(images=(Path("a.png"),), output=Path("out"), sds=True).reconstruction == "fast"
    words = ["generate", str(place / "box.png"), "-o", str(place / "guided"), "--sds", "--preset", "preview"]
    assert main(words) == 2
    assert "--preset fast" in capsys.readouterr().err
    assert not (place / "guided").exists()


def test_plan_of_sv3d_has_its_published_size():
    plan = plan_orbit(ModelConfig.published("p"), dtype_bytes=2)
    assert plan.is_full_size and not plan_orbit(CONFIG).is_full_size
    halves = plan_orbit(ModelConfig.published("p"), dtype_bytes=2, low_memory=True)
    assert 2.5e9 < halves.sampling_bytes < 2.8e9  # 5.3 GB of live activations with guidance
    prepared = plan.sampling_bytes - 2 * halves.sampling_bytes
    assert 0.7e9 < prepared < 0.8e9  # as benchmarks/growth.py finds
    rounded = plan_orbit(ModelConfig.published("p"), dtype_bytes=2, quantized=True)
    assert 0.4e9 < rounded.sampling_bytes - plan.sampling_bytes < 0.45e9
    # Bytes that steps prepare, by jax.eval_shape of the published UNet: guided and full .757e9, without guidance
    # .668e9, reusing cached features .031e9 and .021e9.
    for options, expected in (
        ({"guidance_interval": (1, 9)}, 1.425e9),
        ({"cache_interval": 3}, 0.788e9),
        ({"guidance_interval": (1, 9), "cache_interval": 3}, 1.476e9),
    ):
        several = plan_orbit(ModelConfig.published("p"), dtype_bytes=2, sampling=SamplingConfig(**options))
        assert several.sampling_bytes - plan.sampling_bytes + prepared == pytest.approx(expected, rel=0.1)
    assert plan.step_flop * 50 == pytest.approx(3458e12, rel=1e-3)


def test_full_size_on_a_cpu_wants_to_be_asked_for(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    plan = plan_orbit(ModelConfig.published("p"))
    with pytest.raises(InputError, match=r"takes about \d+\.\d hours") as caught:
        require_accelerator(plan, "cpu", None)
    assert "--device cpu" in caught.value.hint
    require_accelerator(plan, "cpu", "cpu")
    require_accelerator(plan, "gpu", None)
    require_accelerator(plan_orbit(CONFIG), "cpu", None)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    require_accelerator(plan, "cpu", None)


def test_out_of_memory_lists_what_helps():
    plan = plan_orbit(ModelConfig.published("p"))
    with pytest.raises(OutOfMemory, match="weights 8.3 GiB") as caught, memory_advice(plan):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
    assert caught.value.hint.index("--decode-chunk 1") < caught.value.hint.index("--dtype bfloat16")
    with pytest.raises(RuntimeError, match="something else"), memory_advice(plan):
        raise RuntimeError("something else")


@pytest.fixture
def little_memory(monkeypatch):
    """Decoding wants one frame at a time, a pipeline that saves memory, and 16 bits."""
    from sv3d_jax.pipeline import Pipeline

    tried, decode = [], Pipeline.decode

    def demanding(self, latents, chunk=None, advance=lambda frames: None):
        tried.append((chunk, self.runner.config.low_memory, self.runner.config.dtype))
        if tried[-1] != (1, True, "bfloat16"):
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
        return decode(self, latents, chunk, advance)

    monkeypatch.setattr(Pipeline, "decode", demanding)
    return tried


def test_auto_fit_goes_down_the_list_until_it_fits(place, tmp_path, little_memory, monkeypatch):
    from sv3d_jax.pipeline import Pipeline

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
    from sv3d_jax.pipeline import Pipeline

    load, tried = Pipeline.from_pretrained, []

    def demanding(source, variant, compute, **more):
        tried.append(compute.low_memory)
        if not compute.low_memory:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
        return load(source, variant, compute, **more)

    monkeypatch.setattr(Pipeline, "from_pretrained", demanding)
    assert orbit(place, place / "box.png", "-o", tmp_path / "out", "--auto-fit") == 0
    assert tried == [False, False, True]


def test_without_auto_fit_memory_that_runs_out_is_an_error(place, tmp_path, little_memory, capsys):
    assert orbit(place, place / "box.png", "-o", tmp_path / "out") == 4
    said = capsys.readouterr().err
    assert "cpu ran out of memory; memory: about" in said and "--auto-fit" in said
    assert len(little_memory) == 1


def test_pictures_sampled_at_once_give_the_orbits_of_each(made, place, tmp_path, monkeypatch):
    from sv3d_jax.pipeline import Pipeline

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
    subprocess.run([sys.executable, "-m", "sv3d_jax", *words], env={**os.environ, **flags}, check=True)
    for name, same in (("box", "box"), ("ball", "ball"), ("box_again", "box")):
        ours, theirs = (read_orbit(folder).images for folder in (tmp_path / "out" / name, made / same))
        np.testing.assert_allclose(ours, theirs, atol=2 / 255)


def test_low_memory_gives_the_same_orbit(made, place, tmp_path):
    assert orbit(place, place / "box.png", "-o", tmp_path / "out", "--low-memory") == 0
    ours, theirs = (read_orbit(folder).images for folder in (tmp_path / "out", made / "box"))
    np.testing.assert_allclose(ours, theirs, atol=2 / 255)


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


# Photographs


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
    monkeypatch.setattr(generate, "Remover", Session)
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
