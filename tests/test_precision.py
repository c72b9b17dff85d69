"""Which precision a CPU computes in, and that later starts decide alike."""

import json

import jax.numpy as jnp
import pytest

from sv3d_jax import precision, programs
from sv3d_jax.cli import main
from sv3d_jax.models.compute import Compute
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.runner import ComputeConfig
from sv3d_jax.weights.hub import read_model_config
from tests.tiny_model import tiny_pipeline


@pytest.fixture
def cpu(monkeypatch, program_folder):
    """A CPU of the given flags, whose products take the given times."""

    def make(flags: str, *speedups: float):
        precision.speedup_in_16_bit.cache_clear()
        monkeypatch.setattr(precision, "cpu_features", lambda: (f"flags : fpu {flags} lm",))
        measured = iter(speedups)
        monkeypatch.setattr(precision, "_measured_speedup", lambda: next(measured))

    yield make
    precision.speedup_in_16_bit.cache_clear()


@pytest.mark.parametrize(
    ("flags", "speedups", "width", "dtype"),
    [
        ("avx2", (), 320, "float32"),
        ("avx2 avx512_bf16", (2.0,), 320, "bfloat16"),
        ("amx_bf16", (5.0,), 320, "bfloat16"),
        ("amx_bf16", (1.1,), 320, "float32"),
        ("amx_bf16", (5.0,), 64, "float32"),
        ("amx_bf16_of_another_name", (), 320, "float32"),
    ],
)
def test_a_wide_network_is_computed_in_the_faster_precision(cpu, flags, speedups, width, dtype):
    cpu(flags, *speedups)
    assert precision.best_dtype(width) == dtype


def test_later_starts_decide_alike(cpu, program_folder):
    """The measurement is kept; a damaged file is measured again."""
    cpu("amx_bf16", 3.0)
    assert precision.speedup_in_16_bit() == 3.0
    cpu("amx_bf16")
    assert precision.speedup_in_16_bit() == 3.0
    [file] = program_folder.glob(f"*{programs.NUMBER_SUFFIX}")
    file.write_bytes(file.read_bytes()[:-1] + b"9")
    cpu("amx_bf16", 1.0)
    assert precision.speedup_in_16_bit() == 1.0
    cpu("amx_bf16")
    assert precision.speedup_in_16_bit() == 1.0


def test_a_measurement_takes_both_products():
    """Here, whatever this CPU is."""
    assert 0.01 < precision._measured_speedup() < 100


def test_bfloat16_on_a_cpu_is_that_of_factors():
    compute = ComputeConfig(dtype="bfloat16").compute()
    assert (compute.dtype, compute.work_in_16_bit) == (jnp.float32, precision.WORK_SAMPLING)
    assert ComputeConfig(dtype="float32").compute() == Compute(fold=True)
    plain = ComputeConfig(dtype="bfloat16", reference=True).compute()
    assert (plain.dtype, plain.work_in_16_bit) == (jnp.bfloat16, None)


def test_a_pipeline_keeps_kernels_in_16_bits_and_activations_in_32(cpu):
    pipe = tiny_pipeline(dtype="bfloat16")
    kernel = pipe.params["unet"]["input_blocks_0_0"]["kernel"]
    assert (kernel.dtype, pipe.compute.dtype) == (jnp.bfloat16, jnp.float32)
    cpu("amx_bf16", 3.0)
    assert tiny_pipeline().compute == Compute(fold=True)  # too narrow to gain
    model = read_model_config("mini")
    assert ComputeConfig().resolve(model).dtype == "float32"
    assert isinstance(pipe, Pipeline)
    plan = pipe.plan(1)
    assert plan.weights_bytes == 2 * plan.parameters


@pytest.mark.parametrize(
    ("speedup", "found"),
    [(1.0, "no instructions"), (1.2, "1/1.2 of float32's time: not used"), (4.0, "128 channels or more")],
)
def test_doctor_says_what_bfloat16_is_worth_on_a_cpu(speedup, found, monkeypatch, capsys):
    monkeypatch.setattr(precision, "speedup_in_16_bit", lambda: speedup)
    main(["doctor", "--json", "--device", "cpu"])
    assert found in json.loads(capsys.readouterr().out)["bfloat16"]


def test_a_damaged_number_that_cannot_be_removed_is_not_used(cpu, program_folder, monkeypatch):
    cpu("amx_bf16", 3.0)
    precision.speedup_in_16_bit()
    [file] = program_folder.glob(f"*{programs.NUMBER_SUFFIX}")
    file.write_bytes(file.read_bytes()[:-1] + b"9")

    def refuse(path, **options):
        raise PermissionError(path)

    monkeypatch.setattr(type(file), "unlink", refuse)
    cpu("amx_bf16", 1.5)
    assert precision.speedup_in_16_bit() == 1.5
