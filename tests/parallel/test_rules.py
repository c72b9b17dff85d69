"""The table of shardings, on shapes alone."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sv3d_jax.arrays import named_leaves
from sv3d_jax.errors import InputError
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.video_unet import init_unet
from sv3d_jax.parallel.devices import LocalRows, device_mesh, local_rows, mesh_shape
from sv3d_jax.parallel.rules import param_spec, tree_specs
from sv3d_jax.train.config import OptimizerConfig
from sv3d_jax.train.optimizer import make_optimizer
from sv3d_jax.train.state import new_state

POD = {"data": 4, "fsdp": 16, "tensor": 2}


@pytest.fixture(scope="module")
def full_state():
    """Shapes of the training state of the published sv3d_p."""
    config = ModelConfig.published("p").unet

    def begin(key):
        return new_state({"unet": init_unet(config, key)}, make_optimizer(OptimizerConfig(), 10))

    return jax.eval_shape(begin, jax.random.key(0))


def bytes_per_device(state, specs, shape):
    leaves, flat = (
        jax.tree.leaves(state),
        jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec)),
    )
    parts = [np.prod([shape[axis] for axis in spec if axis], initial=1) for spec in flat]
    return sum(leaf.size * leaf.dtype.itemsize / n for leaf, n in zip(leaves, parts, strict=True))


def test_layers_that_follow_each_other_split_by_the_same_features():
    attention = ("unet", "input_blocks_1_1", "transformer_blocks_0", "attn1")
    assert param_spec((*attention, "to_q", "kernel"), (320, 320), POD) == PartitionSpec("fsdp", "tensor")
    assert param_spec((*attention, "to_out_0", "kernel"), (320, 320), POD) == PartitionSpec("tensor", "fsdp")
    convolution = ("unet", "input_blocks_1_0", "in_layers_2", "kernel")
    assert param_spec(convolution, (3, 3, 320, 640), POD) == PartitionSpec(None, None, "fsdp", None)
    assert param_spec((*convolution[:-1], "bias"), (640,), POD) == PartitionSpec(None)


def test_an_axis_is_left_out_where_it_does_not_divide():
    first = ("unet", "input_blocks_0_0", "kernel")
    assert param_spec(first, (3, 3, 8, 320), POD) == PartitionSpec(None, None, None, None)
    hidden = ("unet", "middle_block_1", "transformer_blocks_0", "ff", "net_0", "proj", "kernel")
    assert param_spec(hidden, (40, 320), POD) == PartitionSpec(None, "tensor")


def test_a_full_size_state_is_spread_over_a_pod(full_state):
    specs = tree_specs(full_state, POD)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(full_state))
    assert whole == pytest.approx(4 * 4 * 1_525_278_442, rel=1e-6)
    assert bytes_per_device(full_state, specs, POD) < 0.8 * whole / POD["fsdp"]  # half of it in `tensor` too


def test_averages_and_moments_lie_where_their_parameters_do(full_state):
    specs = tree_specs(full_state, POD)
    is_spec = lambda leaf: isinstance(leaf, PartitionSpec)  # noqa: E731
    by_name = named_leaves(specs, is_leaf=is_spec)
    params = {name: spec for name, spec in by_name.items() if name.startswith("params/")}
    assert len(params) == 1428  # as published
    for name, spec in params.items():
        path = name.removeprefix("params/")
        assert by_name[f"ema/{path}"] == by_name[f"opt_state/1/0/mu/{path}"] == spec


def test_mesh_sizes():
    assert mesh_shape("", 8) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert mesh_shape("fsdp=4", 8) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert mesh_shape("data=2, fsdp=2, tensor=2", 8) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("text", ["data=3", "rows=8", "fsdp", "fsdp=0", "fsdp=4,fsdp=2", "tensor=16"])
def test_mesh_that_does_not_fit_is_refused(text):
    with pytest.raises(InputError, match="--mesh"):
        mesh_shape(text, 8)


def test_processes_load_the_rows_of_their_devices():
    second_of_two = LocalRows(first=2, last=4, parts=4)
    assert second_of_two(8) == slice(4, 8)
    assert second_of_two(3) == slice(0, 3)  # not to be split: whole everywhere
    assert local_rows(device_mesh("", jax.devices()[:1]))(5) == slice(0, 5)
