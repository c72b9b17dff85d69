"""The programs of accelerators are lowered here, on a CPU, from the shapes of the published model."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from sv3d_jax.diffusion.config import StepKind
from sv3d_jax.diffusion.denoiser import Conditioning
from sv3d_jax.diffusion.sampler import Sampler
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.layers import attend
from sv3d_jax.models.vae import decode, init_vae
from sv3d_jax.models.video_unet import init_unet
from sv3d_jax.sampling import SamplingInputs, SamplingSteps, UNetDenoiser
from sv3d_jax.train.config import OptimizerConfig, TrainConfig
from sv3d_jax.train.losses import unet_loss
from sv3d_jax.train.optimizer import make_optimizer
from sv3d_jax.train.plan import batch_shapes
from sv3d_jax.train.state import new_state
from sv3d_jax.train.step import train_step
from tests.tiny_model import CONFIG as TINY

PLATFORMS = {"tpu": "tpu", "cuda": "gpu"}  # as export and as devices call them
DEVICES = {"tpu": AbstractDevice("TPU v5", 2, "tpu"), "cuda": AbstractDevice("NVIDIA H200", 132, "gpu")}
KERNELS = r"custom_call @(tpu_custom_call|__gpu\$xla.gpu.triton)"
KEY = jax.eval_shape(lambda: jax.random.key(0))
FULL = ModelConfig.published("p")
MODELS = [pytest.param(TINY, id="tiny"), pytest.param(FULL, id="sv3d_p", marks=pytest.mark.slow)]


@pytest.fixture(params=PLATFORMS)
def lowered(request, recwarn):
    """Lowers a function of `compute` and shapes for one platform; returns the text of its program."""

    def lower(function, *shapes, **compute):
        compute = Compute(jnp.bfloat16, platform=PLATFORMS[request.param], **compute)
        jitted = jax.jit(partial(function, compute))
        kernels = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
        export = jax.export.export(jitted, platforms=[request.param], disabled_checks=[kernels])
        with use_abstract_mesh(AbstractMesh((), (), abstract_device=DEVICES[request.param])):
            return export(*shapes).mlir_module()

    return lower


def shapes_of(tree, dtype=jnp.bfloat16):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)


def sampler_inputs(model):
    """What a sampler of one orbit is given, as shapes."""
    frames, side = model.num_frames, model.native_size // model.vae.downsampling
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    params = shapes_of(jax.eval_shape(lambda key: init_unet(model.unet, key), KEY))
    condition = Conditioning(
        context=float32(1, 1, model.unet.context_width),
        concat=float32(1, frames, side, side, 4),
        vector=float32(1, frames, model.unet.vector_width),
    )
    return SamplingInputs(params, condition, float32(frames)), float32(1, frames, side, side, 4), float32(51)


def check(text):
    """No 3-D convolution, no 64-bit numbers, nothing for the host to do."""
    assert "stablehlo.convolution" in text
    assert not re.search(r"dim_numbers = \[b, (0, 1, 2|2, 0, 1), f\]", text)
    assert "f64" not in text
    assert "callback" not in text


def test_attention_kernels(lowered):
    """Those of Pallas, with gradients, for the tokens of the published model's first and second level."""

    def forward(compute, *qkv):
        return attend(*qkv, compute)

    def gradient(compute, *qkv):
        return jax.grad(lambda *qkv: forward(compute, *qkv).astype(jnp.float32).sum(), (0, 1, 2))(*qkv)

    for tokens, heads in ((5184, 5), (1296, 10)):
        x = jax.ShapeDtypeStruct((2, tokens, heads, 64), jnp.bfloat16)
        assert len(re.findall(KERNELS, lowered(forward, x, x, x))) == 1
        # Forward again; queries; keys and values.
        assert len(re.findall(KERNELS, lowered(gradient, x, x, x))) == 3


@pytest.mark.parametrize("model", MODELS)
def test_sampler(model, lowered):
    fixed, noise, sigmas = sampler_inputs(model)

    def sampler(compute, fixed, noise, sigmas):
        steps = SamplingSteps(UNetDenoiser(model.unet, compute), Sampler(50), (StepKind(),) * 50)
        return steps.sample(fixed, noise, sigmas, None)

    text = lowered(sampler, fixed, noise, sigmas, fold=True)
    check(text)
    assert text.count("stablehlo.while") >= 1  # the steps are a loop, not unrolled


@pytest.mark.parametrize("model", MODELS)
def test_decoder(model, lowered):
    _, latents, _ = sampler_inputs(model)
    params = shapes_of(jax.eval_shape(lambda key: init_vae(model.vae, key), KEY)["vae_decoder"])
    one = jax.ShapeDtypeStruct(latents.shape[1:], jnp.float32)
    check(lowered(lambda compute, *inputs: decode(inputs[0], model.vae, inputs[1], compute), params, one))


@pytest.mark.parametrize("model", MODELS)
def test_training_step(model, lowered, tmp_path):
    config = TrainConfig(output=tmp_path)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    begin = lambda key: new_state({"unet": init_unet(model.unet, key)}, optimizer)  # noqa: E731

    def step(compute, state, batch, key):
        loss = unet_loss(model, config.diffusion, compute)
        return train_step(state, batch, key, loss=loss, optimizer=optimizer, ema_decay=0.999)

    check(lowered(step, jax.eval_shape(begin, KEY), batch_shapes(config, model, 1), KEY, remat=True))
