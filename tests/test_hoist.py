"""A function in parts computes what the whole one does, and what can be done once is done once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.hoist import hoist


@jax.custom_vjp
def scaled(x, factor):
    return x * (factor @ factor)


scaled.defvjp(lambda x, factor: (scaled(x, factor), None), lambda _, gradient: (gradient, None))


def network(weights, condition, level, x, shift):
    """Parts of it depend on everything from the first arguments alone to all of them."""
    token = jax.nn.silu(condition @ weights["a"])  # first group
    token = jnp.broadcast_to(token[:, None], (len(token), 5, token.shape[-1]))
    label = jax.nn.silu(jnp.sin(level) * weights["b"]) @ weights["a"]  # first and second
    y, _ = jax.lax.scan(lambda carry, row: (carry + row, None), x, weights["b"])
    return {"y": scaled(y @ weights["a"], weights["b"]) + label + token + shift, "label": label}


WEIGHTS = {"a": jnp.arange(16.0).reshape(4, 4) / 8, "b": jnp.linspace(-1, 1, 4)}
FIXED = (WEIGHTS, jnp.array([[0.5, -1, 2, 0.25]]))
X = jnp.linspace(0, 3, 20).reshape(1, 5, 4)


def parts(*groups):
    return hoist(network, *groups)


def products(function, *args):
    """Matrix products of a function, outside of loops."""
    return sum(eqn.primitive.name == "dot_general" for eqn in jax.make_jaxpr(function)(*args).eqns)


def test_parts_make_up_the_function():
    level, rest = (jnp.float32(0.7),), (X, jnp.float32(0.1))
    once, at_level, last = parts(FIXED, level, rest)
    kept = once(FIXED)
    result = last(FIXED, level, rest, kept, at_level(FIXED, level, kept))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result, network(*FIXED, *level, *rest)
    )


def test_each_part_computes_only_what_is_new():
    level, rest = (jnp.float32(0.7),), (X, jnp.float32(0.1))
    once, at_level, last = parts(FIXED, level, rest)
    kept = once(FIXED)
    kept_at_level = at_level(FIXED, level, kept)
    assert products(once, FIXED) == 2  # the token; the factor inside of `scaled`
    assert products(at_level, FIXED, level, kept) == 1
    assert products(last, FIXED, level, rest, kept, kept_at_level) == 1


def test_what_is_kept_is_not_repeated():
    once, *_ = parts(FIXED, (jnp.float32(0.7),), (X, jnp.float32(0.1)))
    assert max(leaf.size for leaf in once(FIXED)) == 4  # not the token of all five rows


def test_a_part_may_be_mapped_over_levels():
    rest = (X, jnp.float32(0.1))
    once, at_level, last = parts(FIXED, (jnp.float32(0),), rest)
    levels, kept = jnp.linspace(0, 1, 3), once(FIXED)
    table = jax.vmap(lambda level: at_level(FIXED, (level,), kept))(levels)
    for i, level in enumerate(levels):
        result = last(FIXED, (level,), rest, kept, [leaf[i] for leaf in table])
        np.testing.assert_allclose(result["y"], network(*FIXED, level, *rest)["y"], rtol=1e-6)


def test_one_group_is_the_function_itself():
    [whole] = hoist(lambda x, y: x + jnp.sum(y), (X, X))
    np.testing.assert_array_equal(whole((X, X)), X + X.sum())


def test_groups_may_be_shapes():
    once, last = hoist(
        lambda a, x: a @ a + x, (jax.ShapeDtypeStruct((4, 4), jnp.float32),), (jnp.float32(0),)
    )
    square = (WEIGHTS["a"],)
    np.testing.assert_allclose(last(square, (1.0,), once(square)), WEIGHTS["a"] @ WEIGHTS["a"] + 1, rtol=1e-6)
    with pytest.raises(TypeError):
        hoist(lambda a: a + "b", (jnp.float32(0),))
