"""Messages in Python name arguments, those of the command flags."""

import inspect
from dataclasses import fields

import pytest

from sv3d_jax.cli import main
from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.errors import InputError
from sv3d_jax.names_of_flags import ARGUMENTS, SAME_NAMES, for_reader, speaking_of_flags
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.recon.config import ReconstructConfig
from sv3d_jax.recon.reconstruct import reconstruct
from sv3d_jax.runner import ComputeConfig


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ("--cfg-max 200: must lie between 0 and 100", "cfg_max=200: must lie between 0 and 100"),
        ("give --frames 4 or a list of 5 angles", "give num_frames=4 or a list of 5 angles"),
        ("or --background keep for all of it", 'or background="keep" for all of it'),
        ("--mask FILE, --box X0 Y0 X1 Y1, or", "mask=FILE, box=(X0, Y0, X1, Y1), or"),
        (
            "  --mask cat_mask.png  a picture of the same size",
            '  mask="cat_mask.png"  a picture of the same size',
        ),
        ("  --box 20 15 140 105  the object's own box", "  box=(20, 15, 140, 105)  the object's own box"),
        ("--decode-chunk 1 (decoding then takes 3 GB)", "decode_chunk=1 (decoding then takes 3 GB)"),
        ("a smaller --size (a quarter)", "a smaller size (a quarter)"),
        ("--overwrite replaces it", "--overwrite replaces it"),
        ("--data.size 33: needs", "--data.size 33: needs"),
        ("--size-limit 3", "--size-limit 3"),
    ],
)
def test_flags_become_arguments(flags, arguments):
    assert for_reader(flags) == arguments
    with speaking_of_flags():
        assert for_reader(flags) == flags


def test_every_argument_is_one():
    known = {
        field.name
        for config in (SamplingConfig, ComputeConfig, ReconstructConfig)
        for field in fields(config)
    }
    for function in (Pipeline.__call__, Pipeline.from_pretrained, reconstruct):
        known |= set(inspect.signature(function).parameters)
    assert {*ARGUMENTS.values(), *(name.replace("-", "_") for name in SAME_NAMES)} <= known


def test_the_command_speaks_of_flags(capsys):
    assert main(["orbit", "examples/figure.png", "-o", "x", "--cfg-max", "200"]) == 2
    assert "--cfg-max 200.0: must lie" in capsys.readouterr().err
    assert InputError("--cfg-max 200").message == "cfg_max=200"  # afterwards, in this process
