"""What is trained changes, and nothing else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.arrays import named_leaves
from sv3d_jax.train.config import TrainableConfig
from sv3d_jax.train.trainable import choose_trainable, fingerprint
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG

LAYERS = ("all", "temporal", "lora")
BLOCK = "unet/middle_block_1/transformer_blocks_0"


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, reference_params(CONFIG, parts=["unet"]))


def choose(params, layers):
    return choose_trainable(params, TrainableConfig(layers=layers, rank=2, alpha=3.0), jax.random.key(0))


def named(tree):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def moved(tree):
    return jax.tree.map(lambda leaf: leaf + 0.25, tree)


@pytest.mark.parametrize("layers", LAYERS)
def test_the_parts_joined_are_the_parameters(params, layers):
    trainable = choose(params, layers)
    joined = jax.jit(trainable.join)(trainable.initial, trainable.frozen)
    assert fingerprint(joined) == fingerprint(params)


def test_all_layers_leave_nothing_frozen(params):
    trainable = choose(params, "all")
    assert trainable.frozen == {} and fingerprint(trainable.initial) == fingerprint(params)


def test_temporal_layers_are_those_that_see_other_frames(params):
    chosen = {
        re.sub(r"/time_(stack|mixer|pos_embed).*", r"/\1", name)
        for name in named(choose(params, "temporal").initial)
    }
    assert {f"{block}/{kind}" for block in ("unet/middle_block_0",) for kind in ("stack", "mixer")} <= chosen
    assert {f"unet/middle_block_1/{kind}" for kind in ("stack", "mixer", "pos_embed")} <= chosen
    assert {name.rsplit("/", 1)[1] for name in chosen} == {"stack", "mixer", "pos_embed"}


def test_low_rank_changes_are_those_of_attention_and_feed_forward(params):
    trainable = choose(params, "lora")
    changed = {name.rsplit("/", 1)[0] for name in named(trainable.initial)}
    inside = {name.removeprefix(f"{BLOCK}/") for name in changed if name.startswith(f"{BLOCK}/")}
    linear = {f"attn{i}/{layer}" for i in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out_0")}
    assert inside == linear | {"ff/net_0/proj", "ff/net_2"}
    assert "unet/middle_block_1/time_stack_0/ff_in/net_2" in changed
    assert not any("proj_in" in name or "layers" in name or "embed" in name for name in changed)


@pytest.mark.parametrize("layers", ("temporal", "lora"))
def test_all_other_parameters_keep_their_bits(params, layers):
    trainable = choose(params, layers)
    before, after = named(params), named(trainable.join(moved(trainable.initial), trainable.frozen))
    if layers == "temporal":
        trained = set(named(trainable.initial))
    else:
        trained = {f"{name.rsplit('/', 1)[0]}/kernel" for name in named(trainable.initial)}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == trained


def test_a_merged_kernel_answers_as_kernel_and_change_together(params):
    trainable = choose(params, "lora")
    trained = moved(trainable.initial)
    name = f"{BLOCK}/attn1/to_q"
    kernel, merged = named(params)[f"{name}/kernel"], named(trainable.join(trained, params))[f"{name}/kernel"]
    down, up = (named(trained)[f"{name}/lora_{part}"] for part in ("down", "up"))
    x = np.random.default_rng(0).standard_normal((4, len(kernel)), np.float32)
    np.testing.assert_allclose(x @ merged, x @ kernel + 1.5 * (x @ down) @ up, rtol=1e-4, atol=1e-5)
