"""Products of 16-bit factors: values, gradients, and which layers are computed from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.hoist import hoist
from sv3d_jax.models import layers
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast import products, winograd
from sv3d_jax.models.video_unet import VideoUNet
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG

ALL = Compute(work_in_16_bit=0, platform="cpu")
PLAIN = Compute(reference=True)


def normal(*shape: int, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def rounded(x) -> np.ndarray:
    """Values in 16 bits, as float64."""
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(7, 16, 5), (8, 3, 33), (1, 4, 4)])
def test_factors_are_rounded_and_sums_are_not(axis, rows, inputs, outputs):
    """Values and both gradients, whichever factor is the narrower."""
    a, b = normal(rows, inputs), normal(*(inputs, outputs)[:: 1 - 2 * axis], seed=1)
    g = normal(rows, outputs, seed=2)
    y, gradients = jax.vjp(lambda a, b: products.product(a, b, axis), a, b)
    matrix = rounded(b).T if axis else rounded(b)
    to_b = rounded(a).T @ rounded(g)
    expected = rounded(a) @ matrix, rounded(g) @ matrix.T, to_b.T if axis else to_b
    for ours, theirs in zip((y, *gradients(g)), expected, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_it_is_the_gradient_of_whatever_calls_it():
    """In a jitted program, where the compiler may move transpositions about, and over a batch."""
    x, kernel = normal(3, 4, 6), normal(6, 40, seed=1)

    def loss(x, kernel):
        return jnp.sin(products.matmul_16_bit(x, kernel)).transpose(2, 0, 1).sum()

    ours = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    theirs = jax.grad(lambda x, kernel: jnp.sin(x @ kernel).sum(), (0, 1))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max()), ours, theirs)
    pairs = jax.jit(jax.vmap(products.product, (0, None, None)), static_argnums=2)(x, kernel, 0)
    np.testing.assert_allclose(pairs, products.matmul_16_bit(x, kernel), atol=1e-5)


def test_gradients_have_the_dtypes_of_their_inputs():
    x, kernel = normal(8, 4), normal(4, 4).astype(jnp.bfloat16)
    to_x, to_kernel = jax.grad(lambda x, k: products.matmul_16_bit(x, k).sum(), (0, 1))(x, kernel)
    assert (to_x.dtype, to_kernel.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(6, 8), (5, 7)])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (0, 1))])
def test_a_convolution_of_any_kind(stride, sides, padding, monkeypatch):
    monkeypatch.setattr(products, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_PIXELS", 1)
    x, kernel = normal(2, *sides, 5), normal(3, 3, 5, 7, seed=1)
    ours, theirs = (
        jax.value_and_grad(lambda x, k, c=c: (layers.conv2d(x, k, stride, padding, c) ** 2).sum(), (0, 1))(
            x, kernel
        )
        for c in (ALL, PLAIN)
    )
    assert "bf16" in str(jax.make_jaxpr(lambda x: layers.conv2d(x, kernel, stride, padding, ALL))(x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max()), ours, theirs)


@pytest.mark.parametrize("name", ["doubling", "over time"])
def test_other_convolutions(name, monkeypatch):
    monkeypatch.setattr(products, "MIN_CHANNELS", 1)
    monkeypatch.setattr(products, "MIN_CHANNELS_OVER_TIME", 1)
    if name == "doubling":
        x, kernel = normal(2, 4, 6, 5), normal(3, 3, 5, 5, seed=1)

        def convolve(x, compute):
            return layers.choose.double_then_convolve(layers.double_then_convolve, x, kernel, compute)
    else:
        x, kernel = normal(2, 4, 3, 2, 5), normal(3, 5, 5, seed=1)

        def convolve(x, compute):
            return layers.temporal_conv(x, kernel, compute)

    assert "bf16" in str(jax.make_jaxpr(lambda x: convolve(x, ALL))(x))
    theirs = convolve(x, PLAIN)
    np.testing.assert_allclose(convolve(x, ALL), theirs, atol=0.01 * np.abs(theirs).max())


def test_attention_by_head():
    q, k, v = (normal(1, 256, 2, 8, seed=seed) for seed in range(3))

    def run(compute):
        return jax.value_and_grad(lambda *qkv: jnp.sin(layers.attend(*qkv, compute)).sum(), (0, 1, 2))

    assert "bf16" in str(jax.make_jaxpr(run(ALL))(q, k, v))
    ours, theirs = run(ALL)(q, k, v), run(PLAIN)(q, k, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max()), ours, theirs)


@pytest.fixture(scope="module")
def unet():
    """Parameters of the tiny UNet, and inputs."""
    shapes = ((1, 3, 8, 8, 8), (1,), (1, 1, 8), (1, 3, CONFIG.unet.vector_width))
    return reference_params(CONFIG)["unet"], [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]


def apply(compute, params, *inputs):
    return VideoUNet(CONFIG.unet, compute).apply({"params": params}, *inputs)


def test_a_network_differs_by_rounding_alone(unet):
    """Also its gradient: that of every parameter points the same way."""
    params, inputs = unet
    exact, close = (jax.jit(lambda p, c=c: apply(c, p, *inputs))(params) for c in (Compute(), ALL))
    assert 1e-6 < jnp.linalg.norm(close - exact) / jnp.linalg.norm(exact) < 0.02
    exact, close = (
        jax.jit(jax.grad(lambda p, c=c: jnp.square(apply(c, p, *inputs)).mean()))(params)
        for c in (Compute(), ALL)
    )

    def points_the_same_way(a, b):
        assert jnp.vdot(a, b) >= 0.99 * jnp.linalg.norm(a) * jnp.linalg.norm(b)

    jax.tree.map(points_the_same_way, exact, close)


def test_small_products_and_the_plain_form_stay_as_they_are(unet):
    params, inputs = unet
    for compute in (Compute(work_in_16_bit=1 << 40), Compute(work_in_16_bit=0, reference=True)):
        assert "bf16" not in str(jax.make_jaxpr(lambda p, c=compute: apply(c, p, *inputs))(params))
    assert Compute(work_in_16_bit=10).multiplies_in_16_bit(10)
    assert not Compute(work_in_16_bit=10).multiplies_in_16_bit(9)


def test_kernels_are_rounded_once_for_all_steps(unet, monkeypatch):
    """Also those that Winograd's products transform first."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_PIXELS", 1)
    params, inputs = unet
    compute = Compute(work_in_16_bit=0, platform="cpu", fold=True)
    once, each_step = hoist(lambda p, *given: apply(compute, p, *given), (params,), tuple(inputs))
    kept = jax.eval_shape(once, (params,))
    count = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    assert sum(leaf.size for leaf in kept if leaf.dtype == jnp.bfloat16) > 0.9 * count
    step = jax.make_jaxpr(each_step)((params,), tuple(inputs), kept).jaxpr
    cast = {eqn.invars[0] for eqn in step.eqns if eqn.primitive.name == "convert_element_type"}
    assert not [var for var in cast & set(step.invars[: len(jax.tree.leaves(params))]) if var.aval.ndim > 1]
