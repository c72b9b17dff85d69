"""What identifies a function."""

from dataclasses import dataclass, field, replace
from functools import partial

import jax.numpy as jnp
import numpy as np

from sv3d_jax.describe import describe
from sv3d_jax.diffusion.guidance import guidance_scale, triangular_scale
from sv3d_jax.diffusion.sampler import Correction
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.families import FAMILIES
from sv3d_jax.models.fast import attention
from tests.tiny_model import CONFIG


@dataclass(frozen=True)
class Scaled:
    factor: float
    name: str = field(default="", compare=False)

    def __call__(self, x):
        return self.factor * x

    def shifted(self, shift, x):
        return self.factor * x + shift


def of_lambda(value):
    return lambda x: x * value


def test_functions_are_told_apart_by_what_they_close_over():
    functions = [
        Scaled(2.0),
        Scaled(3.0),
        Scaled(2.0).shifted,
        partial(Scaled(2.0).shifted, 1.0),
        partial(Scaled(2.0).shifted, 2.0),
        partial(Scaled(2.0).shifted, shift=2.0),
        partial(guidance_scale, "linear", 5),
        partial(guidance_scale, "linear", 5.0),
        partial(guidance_scale, np.arange(3)),
        partial(guidance_scale, np.arange(3.0)),
        guidance_scale,
        triangular_scale,
    ]
    descriptions = [describe(function) for function in functions]
    assert len(set(descriptions)) == len(functions)
    assert describe(Scaled(2.0, "another")) == describe(Scaled(2.0))
    assert describe(partial(guidance_scale, np.arange(3))) == descriptions[8]


def test_a_function_may_call_itself():
    def countdown(factor):
        def call(x):
            return call(x - factor) if x > 0 else x

        return call

    one, two = countdown(1), countdown(2)
    assert describe(one) == describe(one) != describe(two)


def test_a_model_is_told_by_its_family_as_well(monkeypatch):
    before = describe(CONFIG)
    assert "Opaque(" not in repr(before)
    monkeypatch.setitem(FAMILIES, "p", replace(FAMILIES["p"], cond_aug=0.5))
    assert describe(CONFIG) != before


def test_a_program_is_told_by_the_kernel_that_works_here(monkeypatch):
    compute = Compute(jnp.bfloat16)
    before = describe(compute)
    assert "Opaque(" not in repr(before)
    monkeypatch.setattr(attention, "working_kernel", lambda platform: "another")
    assert describe(compute) != before
    assert describe(Compute(jnp.float32)) == describe(Compute())


def test_a_function_on_the_host_is_no_part_of_a_program():
    one, two = (Correction(of_lambda(value), on_host=True) for value in (1.0, 2.0))
    assert describe(one) == describe(two)
    assert describe(Correction(of_lambda(1.0))) != describe(Correction(of_lambda(2.0)))
