"""FLOP and bytes of traced functions: closed forms, the published count, and what the compiler reports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.cost import live_bytes, product_flop, step_flop_counter
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.fast.flash import flash_attention
from sv3d_jax.models.video_unet import init_unet
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.losses import unet_loss
from sv3d_jax.train.plan import batch_shapes
from tests.tiny_model import CONFIG

FULL_FORWARD_TFLOP = 34.58  # 21 frames of 72x72, counted on the public implementation
KEY = jax.eval_shape(lambda: jax.random.key(0))


def unet_case(model, rows, tmp_path, **compute):
    """Loss, parameters and batch of the UNet as shapes."""
    config = TrainConfig(output=tmp_path)
    params = jax.eval_shape(lambda key: {"unet": init_unet(model.unet, key)}, KEY)
    return (
        unet_loss(model, config.diffusion, Compute(**compute)),
        params,
        batch_shapes(config, model, rows),
    )


def float32(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (lambda x, w: x @ w, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), [(4, 3, 5), (4, 5, 7)], 2 * 4 * 3 * 5 * 7),
        (lambda x, w: jax.lax.map(lambda row: w @ row, x), [(6, 5), (7, 5)], 6 * 2 * 7 * 5),
        (jax.jit(lambda x, w: jnp.exp(x) @ w), [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (jax.checkpoint(lambda x, w: x @ w), [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (
            functools.partial(
                jax.lax.conv_general_dilated,
                window_strides=(2, 2),
                padding="SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ),
            [(2, 8, 8, 3), (3, 3, 3, 5)],
            2 * (2 * 4 * 4 * 5) * (3 * 3 * 3),
        ),
    ],
    ids=["product", "batched", "loop", "call", "remat", "convolution"],
)
def test_products_are_counted_where_they_are(function, shapes, expected):
    assert product_flop(jax.make_jaxpr(function)(*map(lambda s: float32(*s), shapes)).jaxpr) == expected


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_products_of_attention_kernels_are_counted(platform):
    x = float32(2, 1024, 3, 64)
    traced = jax.make_jaxpr(lambda *qkv: flash_attention(*qkv, platform))(x, x, x)
    assert product_flop(traced.jaxpr) == 2 * 3 * 4 * 1024**2 * 64


@pytest.mark.slow
def test_the_full_size_unet_has_the_published_flop(tmp_path):
    loss, params, batch = unet_case(ModelConfig.published("p"), 1, tmp_path, reference=True)
    counted = step_flop_counter(loss, params)(batch) / 1e12
    assert counted == pytest.approx(3 * FULL_FORWARD_TFLOP, rel=0.005)  # that count has the norms in it


def chain(params, x):
    for weight in params:
        x = jnp.tanh(x @ weight)
    return x


def total(params, x):
    return chain(params, x).sum()


def test_a_gradient_keeps_what_each_layer_needs():
    width, rows, layers = 16, 64, 5
    live = live_bytes(jax.grad(total), [float32(width, width)] * layers, float32(rows, width))
    one = rows * width * 4
    # Of each layer its output, from which tanh knows its slope as well; at the last, up to three more in flight.
    assert layers * one <= live.activations <= (2 * layers + 3) * one


def test_what_has_the_shape_of_the_weights_is_told_apart():
    params = [float32(16, 16)] * 5
    small, large = (live_bytes(jax.grad(total), params, float32(rows, 16)) for rows in (64, 128))
    assert large.activations == 2 * small.activations
    assert large.weights == small.weights


def test_rematerialised_blocks_keep_their_inputs_and_the_inside_of_one():
    rows, width, blocks = 1024, 16, 8

    def loss(params, x):
        for weights in params:
            x = jax.checkpoint(lambda weights, x: x + chain(weights, x))(weights, x)
        return x.sum()

    params = [[float32(width, width)] * 4] * blocks
    live = live_bytes(jax.grad(loss), params, float32(rows, width))
    one = rows * width * 4
    assert blocks * one <= live.activations < (blocks + 3 * 4) * one  # else 4 or more for each of the blocks


@pytest.mark.slow
def test_rematerialisation_of_the_unet_keeps_less(tmp_path):
    bytes_of = {}
    for remat in (False, True):
        loss, params, batch = unet_case(CONFIG, 2, tmp_path, remat=remat)
        bytes_of[remat] = live_bytes(jax.value_and_grad(loss), params, batch, KEY).activations
    assert bytes_of[True] < bytes_of[False] / 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_live_bytes_are_what_the_compiler_allocates(tmp_path, dtype):
    loss, params, batch = unet_case(CONFIG, 8, tmp_path, dtype=dtype)
    gradient = jax.value_and_grad(loss)
    estimate = live_bytes(gradient, params, batch, KEY).total
    # By default a CPU begins operations as early as it can, and holds half as much again.
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    compiled = jax.jit(gradient).lower(params, batch, KEY).compile(compiler_options=options)
    memory = compiled.memory_analysis()
    allocated = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert 1 / 1.5 < estimate / allocated < 1.5  # fusion takes some away, another order and padding add some
