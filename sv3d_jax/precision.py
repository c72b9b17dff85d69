"""What bfloat16 means on a device, and whether a CPU has instructions for products of 16-bit factors."""

import time
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast.products import product
from sv3d_jax.programs import cpu_features, kept_jit, kept_number

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
LEAST_SPEEDUP = 1.3
# Multiplications of a product from which on it has 16-bit factors: the library that makes these takes a millisecond to
# prepare each of them in a process, which is nothing to a training run.
WORK_SAMPLING, WORK_TRAINING = 1 << 23, 1 << 20
MIN_WIDTH = 128
SIDE = 1024
ROUNDS = 5


def best_dtype(width: int) -> str:
    """The dtype that "auto" stands for on the default device, for a UNet of so many channels at its first level.

    It is float32 on a CPU without fast products of 16-bit factors. On one with them a narrow UNet is too: its first
    orbit would lose as much time by preparing these products as it would gain.
    """
    if jax.default_backend() != "cpu":
        return "bfloat16"
    return "bfloat16" if width >= MIN_WIDTH and speedup_in_16_bit() >= LEAST_SPEEDUP else "float32"


def compute_in(dtype: str, work_in_16_bit: int = WORK_SAMPLING, **options: Any) -> Compute:
    """How networks compute in `dtype`, with other `options` of `Compute`.

    On a CPU bfloat16 is that of the factors of large products, and activations stay float32: there a product with a
    bfloat16 result takes longer than in float32. The plain form (`reference`) is bfloat16 throughout.
    """
    if dtype == "bfloat16" and jax.default_backend() == "cpu" and not options.get("reference"):
        return Compute(work_in_16_bit=work_in_16_bit, **options)
    return Compute(DTYPES[dtype], **options)


@cache
def speedup_in_16_bit() -> float:
    """Time of a float32 product on this CPU over that of one of 16-bit factors; 1 without instructions for them.

    It is measured once and kept with the programs, so that later starts decide alike.
    """
    if not any(name in flags.split() for flags in cpu_features() for name in INSTRUCTIONS):
        return 1.0
    return kept_number(("speedup of 16-bit products", SIDE, ROUNDS), _measured_speedup)


def _measured_speedup() -> float:
    """The least times of each product, which alternate."""
    random = np.random.default_rng(0)
    factors = [random.standard_normal((SIDE, SIDE), np.float32) for _ in range(2)]
    sides = {
        _in_32_bit: [jnp.asarray(x) for x in factors],
        _in_16_bit: [jnp.asarray(x, jnp.bfloat16) for x in factors],
    }
    seconds = {multiply: [] for multiply in sides}
    for _ in range(ROUNDS + 1):  # the first round compiles
        for multiply, pair in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(multiply(*pair))
            seconds[multiply].append(time.perf_counter() - start)
    return min(seconds[_in_32_bit][1:]) / min(seconds[_in_16_bit][1:])


@kept_jit
def _in_32_bit(a: Array, b: Array) -> Array:
    return a @ b


@kept_jit
def _in_16_bit(a: Array, b: Array) -> Array:
    return product(a, b, 0)
