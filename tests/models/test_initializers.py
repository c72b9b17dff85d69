"""Fresh parameters are what they would be without the means that make them quick to compile."""

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.models.compute import Compute
from sv3d_jax.models.initializers import fresh, torch_uniform
from sv3d_jax.models.layers import Conv2d

KEY = jax.random.key(3)


def test_a_flat_draw_has_the_numbers_of_one_of_the_shape():
    shape = (3, 3, 5, 4)
    expected = jax.random.uniform(KEY, shape, jnp.float32, -1 / 6, 1 / 6)
    np.testing.assert_array_equal(torch_uniform(36)(KEY, shape), expected)


def test_parameters_are_those_that_the_network_begins_with_when_it_is_computed():
    layer = Conv2d(4, compute=Compute())
    expected = layer.init(KEY, jnp.ones((1, 6, 6, 5)))["params"]
    got = fresh(layer, KEY, (1, 6, 6, 5))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert {name: leaf.shape for name, leaf in got.items()} == {"kernel": (3, 3, 5, 4), "bias": (4,)}
