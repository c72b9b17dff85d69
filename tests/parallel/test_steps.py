"""Steps on eight fake devices are those of one, up to the order of sums."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sv3d_jax.models.compute import Compute
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
    """Of any leaf, relative to its largest element, or to 1 % of the largest of all leaves where that is more.

    A blend factor's gradient is one sum over all positions, whose terms cancel.
    """
    first, second = ([np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (first, second))
    floor = 0.01 * max(np.abs(leaf).max() for leaf in first)
    pairs = zip(first, second, strict=True)
    return max(np.abs(a - b).max() / max(np.abs(a).max(), floor) for a, b in pairs)


def compare_gradients(*meshes: str) -> None:
    from tests.parallel.steps import gradients

    loss, gradient = gradients("", jax.devices()[:1])
    for mesh in meshes:
        split_loss, split_gradient = gradients(mesh)
        assert float(split_loss) == pytest.approx(float(loss), rel=1e-5), mesh
        assert largest_difference(gradient, split_gradient) <= 1e-5, mesh
        kernel = split_gradient["unet"]["input_blocks_3_1"]["proj_in"]["kernel"]
        parts = 4 if "fsdp=4" in mesh else 2 if "fsdp=2" in mesh else 1
        assert kernel.addressable_shards[0].data.size * parts == kernel.size, mesh


def compare_steps(accumulate: str, *meshes: str) -> None:
    from tests.parallel.steps import first_params, train

    one, losses = train("", jax.devices()[:1], accumulate=int(accumulate))
    for mesh in meshes:
        many, split_losses = train(mesh, accumulate=int(accumulate))
        np.testing.assert_allclose(split_losses, losses, rtol=1e-5, err_msg=mesh)
        trees = (first_params(), one.params, many.params)
        for start, a, b in zip(*map(jax.tree.leaves, trees), strict=True):
            update = np.abs(np.asarray(a) - start).max()
            assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 0.01 * update + 1e-9, mesh


def compare_attention() -> None:
    """Kernels for frames and heads on several devices, with gradients, against plain products on one."""
    from sv3d_jax.models.fast.flash import flash_attention
    from sv3d_jax.models.layers import plain_attention

    q, k, v = jax.random.normal(jax.random.key(0), (3, 4, 130, 2, 16))
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("frames", "heads"))

    def total(attend, *qkv):
        out = attend(*qkv)
        return (jnp.arange(16) * jnp.sin(3 * out)).sum(), out

    def run(attend, *qkv):
        return jax.jit(jax.value_and_grad(partial(total, attend), (0, 1, 2), has_aux=True))(*qkv)

    (_, expected), gradients = run(lambda *qkv: plain_attention(*qkv, Compute()), q, k, v)
    for platform in ("gpu", "tpu"):
        for spec in (PartitionSpec("frames", None, "heads"), PartitionSpec(None, "frames")):
            divided = jax.device_put((q, k, v), NamedSharding(mesh, spec))
            (_, out), ours = run(lambda *qkv, on=platform: flash_attention(*qkv, on, True), *divided)
            assert largest_difference([expected, *gradients], [out, *ours]) <= 1e-5, (platform, spec)
            if spec[0]:  # each device has its frames and heads, and no more
                assert {each.data.shape for each in out.addressable_shards} == {(2, 130, 1, 16)}, platform


def test_attention_kernels_on_four_devices_are_plain_attention_on_one():
    run_here("compare_attention")


@pytest.mark.slow
def test_gradients_are_those_of_one_device():
    run_here("compare_gradients", *MESHES[1:])  # five steps compare all


@pytest.mark.slow
def test_five_steps_are_those_of_one_device():
    run_here("compare_steps", "1", *MESHES)


@pytest.mark.slow
def test_steps_in_parts_are_those_of_one_device():
    run_here("compare_steps", "2", MESHES[-1])
