"""Linear layers in 8 bits: how far off they are, and which they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast.quantize import FORMATS, matmul_8_bit
from sv3d_jax.models.layers import Dense


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.012), ("fp8", 0.04)])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_products_of_rounded_values_are_near_the_exact_ones(kind, error, platform):
    x = jax.random.normal(jax.random.key(0), (4, 9, 320))
    x = x.at[0, 3].multiply(1e4).at[1, 2].set(0.0)  # a large row takes nothing from the others
    kernel = jax.random.normal(jax.random.key(1), (320, 64)) * jnp.logspace(-4, 0, 64)
    exact = jnp.matmul(x, kernel, precision="highest")
    got = matmul_8_bit(x, kernel, kind, platform)
    size = jnp.linalg.norm(x, axis=-1)[..., None] * jnp.linalg.norm(kernel, axis=0)
    deviation = np.where(size > 0, (got - exact) / jnp.maximum(size, 1e-9) * np.sqrt(320), 0.0)
    assert error / 3 < deviation.std() < error
    np.testing.assert_array_equal(got[1, 2], 0.0)


def test_values_that_8_bits_hold_are_exact():
    x = jnp.array([[127.0, -3.0, 0.0, 64.0]])
    kernel = jnp.array([[1.0, 127.0], [0.0, -2.0], [5.0, 1.0], [127.0, 0.0]])
    for platform in ("cpu", "gpu"):
        np.testing.assert_allclose(matmul_8_bit(x, kernel, "int8", platform), x @ kernel, rtol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_accelerators_multiply_8_bits(kind):
    x, kernel = jnp.ones((3, 8), jnp.bfloat16), jnp.ones((8, 5), jnp.bfloat16)
    program = jax.make_jaxpr(lambda *inputs: matmul_8_bit.fun(*inputs, kind, "tpu"))(x, kernel)
    product = next(eqn for eqn in program.jaxpr.eqns[::-1] if eqn.primitive.name in ("dot_general", "jit"))
    assert all(value.aval.dtype == FORMATS[kind][0] for value in product.invars)
    assert product.outvars[0].aval.dtype == (jnp.int32 if kind == "int8" else jnp.float32)
    assert program.out_avals[0].dtype == jnp.bfloat16


def test_what_is_not_a_number_stays_so():
    x = jnp.ones((2, 8)).at[0, 3].set(jnp.nan)
    for kind in FORMATS:
        got = matmul_8_bit(x, jnp.ones((8, 4)), kind, "cpu")
        assert jnp.isnan(got[0]).all() and jnp.isfinite(got[1]).all()


def test_there_is_no_gradient():
    with pytest.raises(NotImplementedError, match="for sampling"):
        jax.grad(lambda x: matmul_8_bit(x, jnp.ones((8, 4)), "int8", "cpu").sum())(jnp.ones((2, 8)))


def test_only_what_may_be_is_rounded():
    x = jax.random.normal(jax.random.key(0), (7, 32))
    exact, rounded = Compute(), Compute(quantize="int8")
    params = Dense(16).init(jax.random.key(1), x)

    def out(quantizable, compute):
        return np.asarray(Dense(16, quantizable=quantizable, compute=compute).apply(params, x))

    np.testing.assert_array_equal(out(False, rounded), out(False, exact))
    np.testing.assert_array_equal(out(True, exact), out(False, exact))
    assert 1e-4 < np.abs(out(True, rounded) - out(True, exact)).max() < 0.05
    plain = Compute(reference=True, quantize="int8")
    np.testing.assert_allclose(out(True, plain), out(False, exact), atol=1e-6)
