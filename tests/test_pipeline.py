"""The pipeline on a tiny model with random weights, and against the published sampler's stored run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.diffusion.guidance import triangular_scale
from sv3d_jax.errors import CameraError, Cancelled, InputError
from sv3d_jax.infer.config import OrbitConfig
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.progress import Progress
from sv3d_jax.runner import ComputeConfig
from tests.reference_weights import reference_params, tiny_config
from tests.tiny_model import COMPILE_QUICKLY, CONFIG, SIZE, picture, tiny_pipeline

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def orbit(pipe):
    return pipe(picture(), seed=7, output_type="np")


def test_frames_are_the_orbit_at_the_model_s_size(orbit):
    assert orbit.frames.shape == (5, SIZE, SIZE, 3)
    assert orbit.latents.shape == (5, 8, 8, 4)
    assert 0 <= orbit.frames.min() and orbit.frames.max() <= 1
    np.testing.assert_allclose(orbit.cameras.azimuths_deg, [72, 144, 216, 288, 0])


def test_the_decoder_that_is_compiled_in_the_background_is_the_one_that_is_used(pipe, orbit):
    decoders = [key for key, _ in pipe.runner.programs.items() if "sv3d_jax.pipeline._decode" in repr(key)]
    shapes = [kinds[-1][0] for _, _, kinds, *_ in decoders]
    assert (4, 8, 8, 4) in shapes, "four frames of five, as the input view is not decoded"
    assert len(set(shapes)) == len(decoders)


def test_last_frame_is_the_picture_bit_for_bit(orbit):
    assert (orbit.frames_uint8()[-1] == orbit.picture).all()
    assert orbit.picture.shape == (SIZE, SIZE, 3)


def test_eight_bits_are_cut_off_not_rounded(orbit):
    cut = np.floor(orbit.frames[:-1].astype(np.float64) * 255)
    assert (orbit.frames_uint8()[:-1] == cut).mean() > 0.999
    assert (orbit.frames_uint8()[:-1] != np.rint(orbit.frames[:-1] * 255)).any()


def test_same_seed_gives_the_same_bits(pipe, orbit):
    again = pipe(picture(), seed=7, output_type="np")
    assert (again.frames == orbit.frames).all()


def test_another_seed_gives_another_orbit(pipe, orbit):
    other = pipe(picture(), seed=8, output_type="np")
    assert np.abs(other.frames[:-1] - orbit.frames[:-1]).max() > 0.05


def test_a_mask_is_taken_as_a_file_a_picture_and_an_array(pipe, tmp_path):
    photo = np.random.default_rng(0).integers(60, 200, (48, 64, 3)).astype(np.uint8)
    mask = np.zeros((48, 64), bool)
    mask[10:30, 10:40] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    forms = [tmp_path / "mask.png", Image.open(tmp_path / "mask.png"), mask]
    orbits = pipe([photo] * 3, mask=forms, num_steps=1, output_type="latent")
    assert all((orbit.picture == orbits[0].picture).all() for orbit in orbits)
    assert (orbits[0].picture < 255).any() and (orbits[0].picture[0] == 255).all()
    assert orbits[0].notes == ["cut out by the mask that was given"]


def test_masks_and_boxes_are_as_many_as_the_pictures(pipe):
    with pytest.raises(InputError, match="got 1 masks for 2 pictures"):
        pipe([picture(), picture()], mask=[np.ones((SIZE, SIZE), bool)])
    with pytest.raises(InputError, match="got 4 boxes for 2 pictures"):
        pipe([picture(), picture()], box=(1, 1, 9, 9))


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def stepwise(pipe, told):
    return pipe(picture(), seed=7, output_type="latent", callback=told.append)


def test_callback_does_not_change_the_numbers(orbit, stepwise):
    assert (np.asarray(stepwise.latents) == np.asarray(orbit.latents)).all()


def test_callback_hears_of_every_step(stepwise, told):
    assert [(info.step, info.total) for info in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[-1].sigma == 0 and told[0].sigma > told[1].sigma
    assert (np.asarray(told[-1].latents[0]) == np.asarray(stepwise.latents)).all()


def test_cancelling_in_a_callback_stops_at_that_step(pipe):
    steps = []

    def cancel_at_two(info):
        steps.append(info.step)
        if info.step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        pipe(picture(), callback=cancel_at_two)
    assert steps == [1, 2]


def test_picture_in_a_batch_gives_the_orbit_it_gives_alone(pipe, orbit):
    batch = pipe([picture(1), picture()], seed=[3, 7], output_type="np")
    assert [item.seed for item in batch] == [3, 7]
    np.testing.assert_allclose(batch[1].frames, orbit.frames, atol=1e-4)  # sums in another order
    assert np.abs(batch[0].frames - orbit.frames).max() > 0.05


def test_names_of_version_0_1_are_taken_with_a_warning(pipe):
    with pytest.warns(DeprecationWarning, match="steps is now num_steps"):
        old = pipe(picture(), steps=2, output_type="latent").latents
    with pytest.warns(DeprecationWarning, match="cfg_min=a, cfg_max=b"):
        pipe(picture(), num_steps=1, cfg=(1.0, 2.0), output_type="latent")
    assert (old == pipe(picture(), num_steps=2, output_type="latent").latents).all()


def test_an_option_is_not_taken_under_its_old_and_its_new_name(pipe):
    with pytest.raises(TypeError, match="steps is the former name of num_steps"):
        pipe(picture(), steps=2, num_steps=3)


def test_an_unknown_option_is_an_error_as_of_any_function(pipe):
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_step': did you mean num_steps"):
        pipe(picture(), num_step=2)


def test_only_known_formats_are_taken():
    with pytest.raises(InputError, match="quantize='int4'"):
        tiny_pipeline(quantize="int4")
    with pytest.raises(InputError, match="the reference form has no linear layers in 8 bits"):
        tiny_pipeline(quantize="int8", reference=True)


def test_chunks_of_decoding_do_not_change_the_frames(pipe, orbit):
    chunks = []
    pixels = pipe.decode(orbit.latents[None], 3, chunks.append)[0]
    assert chunks == [3, 2]
    np.testing.assert_allclose(np.clip((pixels[:-1] + 1) / 2, 0, 1), orbit.frames[:-1], atol=2e-5)


def test_cameras_change_the_orbit(pipe, orbit):
    other = pipe(picture(), seed=7, elevations_deg=40.0, output_type="np")
    assert np.abs(other.frames[:-1] - orbit.frames[:-1]).max() > 1e-3


def test_camera_path_stands_for_its_angles(pipe, orbit):
    path = CameraPath(orbit.cameras.azimuths_deg, orbit.cameras.elevations_deg)
    assert (pipe(picture(), seed=7, cameras=path, output_type="np").frames == orbit.frames).all()


def test_output_types_hold_the_same_frames(pipe, orbit):
    pil = pipe(picture(), seed=7)
    assert all(isinstance(frame, Image.Image) for frame in pil.frames)
    assert (pil.frames_uint8() == orbit.frames_uint8()).all()
    on_device = pipe(picture(), seed=7, output_type="jax").frames
    assert isinstance(on_device, jax.Array) and (np.asarray(on_device) == orbit.frames).all()


def test_pictures_may_come_as_files_pil_images_or_arrays(pipe, orbit, tmp_path):
    pil = Image.fromarray(picture())
    pil.save(tmp_path / "box.png")
    for image in (str(tmp_path / "box.png"), tmp_path / "box.png", pil):
        got = pipe(image, seed=7, output_type="latent")
        assert (np.asarray(got.latents) == np.asarray(orbit.latents)).all()


def test_bfloat16_stays_near_float32(orbit):
    half = tiny_pipeline(dtype="bfloat16")(picture(), seed=7, output_type="np")
    assert half.latents.dtype == jnp.float32  # the sampler's state and guidance
    error = np.abs(np.asarray(half.latents) - np.asarray(orbit.latents)).max()
    assert 0 < error < 0.1 * np.abs(orbit.latents).max()


@pytest.mark.slow
def test_reference_path_agrees(orbit):
    reference = tiny_pipeline(reference=True)(picture(), seed=7, output_type="np")
    np.testing.assert_allclose(reference.frames, orbit.frames, atol=1e-3)


def test_saved_orbit_is_an_orbit_folder(orbit, tmp_path):
    files = orbit.save(tmp_path, video="gif")
    names = {file.relative_to(tmp_path).as_posix() for file in files}
    assert names == {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {"orbit.gif", "contact.png", "input.png", "cameras.json"} <= names
    read = read_orbit(tmp_path)
    assert (np.rint(read.images * 255).astype(np.uint8) == orbit.frames_uint8()).all()
    np.testing.assert_allclose(read.azimuths_deg, orbit.cameras.azimuths_deg)
    assert read.input_frame == 4


def test_orbit_left_in_latents_says_so_when_saved(stepwise, tmp_path):
    with pytest.raises(InputError, match="latents"):
        stepwise.save(tmp_path)


def test_progress_goes_through_the_stages(pipe):
    class Recorder(Progress):
        def __init__(self):
            self.seen = []

        def stage(self, name, total=None):
            self.seen.append([name, total, 0])

        def advance(self, steps=1):
            self.seen[-1][2] += steps

    recorder = Recorder()
    pipe(picture(), seed=7, progress=recorder)
    assert recorder.seen == [["preprocess", 1, 1], ["compile", None, 0], ["sample", 4, 4], ["decode", 4, 4]]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"size": 30}, InputError, "multiple of 8"),
        ({"num_steps": -1}, InputError, "^num_steps=-1: must lie between 1 and 1000"),
        ({"num_steps": 0}, InputError, "^num_steps=0: must lie"),
        ({"num_frames": 0}, CameraError, "frames must lie between 2 and 128, got 0"),
        ({"cfg": 2.0}, InputError, "cfg must be the lowest and the highest scale of the frames, got 2.0"),
        ({"cfg_max": 200}, InputError, "^cfg_max=200: must lie"),
        ({"method": "heun"}, InputError, "solver must be euler or dpmpp_2m, or a Solver, got 'heun'"),
        ({"seed": jax.random.key(0)}, InputError, "seed .*must be a whole number"),
        ({"guidance": np.ones(5)}, InputError, "guidance must be one of triangular.*got array"),
        ({"cameras": np.ones(5)}, CameraError, "cameras must be a CameraPath, got array"),
        (
            {"latents": np.ones((5, 4, 4))},
            InputError,
            r"latents must be finite floats of shape \(1, 5, 8, 8, 4\)",
        ),
        ({"latents": np.ones((5, 8, 8, 4), int)}, InputError, "latents must be finite floats"),
        ({"latents": np.full((5, 8, 8, 4), np.nan)}, InputError, "latents must be finite floats"),
        ({"seed": [1, 2]}, InputError, "2 seeds for 1 pictures"),
        ({"seed": -1}, InputError, "seed"),
        ({"guidance": "square"}, InputError, "triangular"),
        ({"output_type": "png"}, InputError, "pil"),
        ({"elevations_deg": float("nan")}, CameraError, r"elevations_deg\[0\]"),
        ({"azimuths_deg": [0.0, 90.0]}, CameraError, "num_frames=5 values, got 2"),
        ({"cameras": "x"}, CameraError, "cameras must be a CameraPath, got 'x'"),
        ({"box": "abcd"}, InputError, "a box is four numbers, x0 y0 x1 y1, got 'abcd'"),
        ({"box": 3}, InputError, "a box is four numbers, x0 y0 x1 y1, got 3"),
        ({"frame_ratio": "x"}, InputError, "got 'x'"),
        ({"guidance_interval": 3}, InputError, "guidance_interval must be the lowest and the highest.*got 3"),
    ],
)
def test_bad_options_are_named(pipe, options, error, says):
    with pytest.raises(error, match=says):
        pipe(picture(), **options)


def test_hints_name_arguments(pipe):
    with pytest.raises(CameraError) as caught:
        pipe(picture(), azimuths_deg=[0.0, 90.0, 180.0, 270.0])
    assert caught.value.hint == "give num_frames=4 or a list of 5 angles"


def test_the_solver_may_be_called_method(pipe):
    by_name, by_method = (
        pipe(picture(), **{name: "dpmpp_2m"}, output_type="np") for name in ("solver", "method")
    )
    np.testing.assert_array_equal(by_name.frames, by_method.frames)


def test_a_dtype_is_taken_as_well_as_its_name():
    assert ComputeConfig(dtype=jnp.bfloat16) == ComputeConfig(dtype="bfloat16")
    with pytest.raises(InputError, match="dtype must be auto, float32 or bfloat16, got 'int8'"):
        ComputeConfig(dtype=np.int8)


def test_latents_are_the_noise_to_begin_with(pipe, orbit):
    noise = pipe.noise([7], 5, SIZE)[0]
    for latents in (noise, noise[0], np.asarray(noise, np.float64)):
        again = pipe(picture(), seed=7, latents=latents, output_type="np")
        np.testing.assert_array_equal(again.frames, orbit.frames)
    other = pipe(picture(), seed=7, latents=-noise, output_type="np")
    assert np.abs(other.frames - orbit.frames).max() > 0.01


def test_sampling_goes_on_with_latents_that_a_callback_returns(pipe, stepwise):
    def flip(info):
        return -info.latents if info.step == info.total else None

    flipped = pipe(picture(), seed=7, output_type="latent", callback=flip)
    np.testing.assert_array_equal(flipped.latents, -np.asarray(stepwise.latents))
    with pytest.raises(InputError, match="the callback's latents must be finite floats of shape"):
        pipe(picture(), callback=lambda info: info.latents[:, 1:])


def test_seed_0_is_the_default_as_of_the_command(pipe):
    assert pipe(picture()).seed == OrbitConfig(images=(), output=Path()).seed == 0


@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
def test_a_saved_pipeline_is_read_back_bit_for_bit(pipe, orbit, name, tmp_path):
    pipe.save(tmp_path / name)
    again = Pipeline.from_pretrained(tmp_path / name, dtype="float32")
    assert again.config == pipe.config
    np.testing.assert_array_equal(again(picture(), seed=7, output_type="np").frames, orbit.frames)


def test_a_pipeline_is_saved_in_the_dtype_asked_for(pipe, tmp_path):
    pipe.save(tmp_path / "half.safetensors", dtype="bfloat16")
    tensors = load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype.name for tensor in tensors.values()} == {"bfloat16"}


def test_a_pipeline_says_what_it_is(pipe):
    assert re.fullmatch(
        r"Pipeline\(tiny: 5 frames of 32x32, 0.\d+ million parameters, float32, cpu\)", repr(pipe)
    )


def test_progress_is_shown_where_it_is_asked_for(pipe, capsys):
    pipe(picture())
    pipe(picture(), progress=False)
    assert not capsys.readouterr().err
    pipe(picture(), progress=True)
    assert "preprocess" in capsys.readouterr().err


def test_mini_says_what_it_cannot_do(pipe, monkeypatch, capsys):
    monkeypatch.setattr(pipe, "weights", {"source": "mini"})
    pipe(picture(), progress=True)
    assert "it knows one kind of object, upright figures" in capsys.readouterr().err


def test_array_that_is_no_picture_is_refused(pipe):
    with pytest.raises(InputError, match=r"float64 \(40, 40, 3\)"):
        pipe(np.zeros((40, 40, 3)))


def test_an_array_without_pixels_is_refused(pipe):
    with pytest.raises(InputError, match=r"uint8 \(0, 0, 3\)"):
        pipe(np.zeros((0, 0, 3), np.uint8))


def test_unknown_dtype_is_refused():
    with pytest.raises(InputError, match="float64"):
        Pipeline({}, CONFIG, dtype="float64")


@pytest.mark.slow
def test_published_run_from_picture_to_frames():
    stored = load_file(REFERENCE / "sampler_p.safetensors")
    config = tiny_config("p")
    pipe = Pipeline(reference_params(config), config)
    last = {"image": (0, 2, 3, 1), "cond_aug_noise": (0, 2, 3, 1), "noise": (0, 2, 3, 1)}
    pixels, pixel_noise, noise = (jnp.asarray(stored[name].transpose(axes)) for name, axes in last.items())
    cameras = CameraPath(np.rad2deg(stored["azimuths_rad"]), 90 - np.rad2deg(stored["polars_rad"]))
    condition = pipe.condition(pixels, pixel_noise, cameras)
    steps = []
    latents = pipe.sampler(
        noise[None],
        condition,
        triangular_scale(5),
        pipe.sigmas(10),
        after_step=lambda step, sigma, x: steps.append(np.asarray(x[0])),
    )()
    for ours, theirs in zip(steps, stored["x_steps"][1:].transpose(0, 1, 3, 4, 2), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-5 * np.abs(theirs).max())
    theirs = stored["pixels_before_replace"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pipe.decode(latents)[0], theirs, atol=5e-5 * np.abs(theirs).max())


ON_TWO_DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh
from tests.tiny_model import picture, tiny_pipeline

pictures, seeds = [picture(0), picture(1)], [7, 3]
alone = tiny_pipeline()(pictures, seed=seeds, output_type="np")
pipe = tiny_pipeline(mesh=Mesh(np.array(jax.devices()), ("data",)))
told = []
for callback in (None, told.append):
    split = pipe(pictures, seed=seeds, output_type="np", callback=callback)
    for one, two in zip(alone, split, strict=True):
        np.testing.assert_allclose(one.frames, two.frames, atol=1e-4)
assert len(told[0].latents.sharding.device_set) == 2, told[0].latents.sharding
"""


ON_SIX_DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh
from tests.tiny_model import picture, tiny_pipeline

flop, latents = {}, {}
for shape in ((1, 1, 1), (1, 2, 1), (1, 1, 3), (1, 2, 3)):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    pipe = tiny_pipeline(mesh=Mesh(devices, ("data", "cfg", "frames")))
    latents[shape] = np.asarray(pipe(picture(0), seed=7, output_type="latent", num_frames=6).latents)
    [program] = [p for key, p in pipe.runner.programs.items() if "SamplingSteps.sample" in str(key[0])]
    flop[shape] = program.cost_analysis()["flops"]  # of one device
alone = latents.pop((1, 1, 1))
for divided in latents.values():
    np.testing.assert_allclose(divided, alone, atol=2e-5)
branches, frames, both = (flop[shape] / flop[1, 1, 1] for shape in latents)
assert branches < 0.55 and frames < 0.4 and both < 0.2, flop
"""


@pytest.mark.slow
@pytest.mark.parametrize(("count", "script"), [(2, ON_TWO_DEVICES), (6, ON_SIX_DEVICES)])
def test_orbits_divided_over_devices_are_the_same(count, script):
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", script], cwd=root, env=os.environ | COMPILE_QUICKLY | flags)
    assert run.returncode == 0
