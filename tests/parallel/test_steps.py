"""Steps on eight fake devices are those of one, up to the order of sums."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.test_imports import ROOT

MESHES = ("data=8", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2")
ENVIRONMENT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}


def run_here(function: str, *arguments: str) -> None:
    """Call a function of this file in a process with eight devices."""
    call = f"import tests.parallel.test_steps as t; t.{function}(*{arguments!r})"
    done = subprocess.run(
        [sys.executable, "-c", call], env=os.environ | ENVIRONMENT, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def largest_difference(first, second) -> float:
    """Of any leaf, relative to the largest element of that leaf."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(np.asarray(a)).max(), 1e-6))
        for a, b in pairs
    )


def compare_gradients(mesh: str) -> None:
    from tests.parallel.steps import gradients

    loss, gradient = gradients("", jax.devices()[:1])
    split_loss, split_gradient = gradients(mesh)
    assert float(split_loss) == pytest.approx(float(loss), rel=1e-5)
    assert largest_difference(gradient, split_gradient) <= 1e-5
    if "fsdp" in mesh:  # nothing that can be split lies whole on a device
        kernel = split_gradient["unet"]["input_blocks_1_0"]["in_layers_2"]["kernel"]
        assert kernel.addressable_shards[0].data.size * 4 == kernel.size


def compare_steps(mesh: str, *flags: str) -> None:
    from tests.parallel.steps import first_params, train

    changes = {"accumulate": 2} if "accumulate" in flags else {}
    one, losses = train("", jax.devices()[:1], **changes)
    many, split_losses = train(mesh, **changes)
    np.testing.assert_allclose(split_losses, losses, rtol=1e-5)
    for start, a, b in zip(*map(jax.tree.leaves, (first_params(), one.params, many.params)), strict=True):
        update = np.abs(np.asarray(a) - start).max()
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 0.01 * update + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_are_those_of_one_device(mesh):
    run_here("compare_gradients", mesh)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES[1:])
def test_five_steps_are_those_of_one_device(mesh):
    run_here("compare_steps", mesh)


def test_steps_with_every_axis_and_in_parts_are_those_of_one_device():
    run_here("compare_steps", MESHES[-1], "accumulate")
