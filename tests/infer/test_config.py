"""Settings of the orbit and generate verbs: ranges, and what does not go together."""

from pathlib import Path

import pytest

from sv3d_jax.cli import main
from sv3d_jax.errors import InputError
from sv3d_jax.infer import batch
from sv3d_jax.infer.config import GenerateConfig, OrbitConfig
from tests.infer.runs import orbit

pytestmark = pytest.mark.usefixtures("command_line")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("num_steps", 0, "--num-steps 0: must lie between 1 and 1000"),
        ("frame_ratio", 1.5, "--frame-ratio"),
        ("seed", -1, "--seed"),
        ("size", 5000, "--size"),
        ("decode_chunk", 0, "--decode-chunk"),
        ("cache_interval", 0, "--cache-interval 0: must lie between 1 and 1000"),
        ("guidance_interval", (3.0, 1.0), "--guidance-interval 3 1: expected LOW HIGH with 0 <= LOW <= HIGH"),
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


def test_size_that_the_networks_cannot_halve_is_refused(place, capsys):
    assert orbit(place, place / "box.png", "-o", place / "odd", "--size", "60") == 2
    assert "--size 60: tiny needs a multiple of 8" in capsys.readouterr().err
