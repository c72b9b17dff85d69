"""Forms of one layer that must agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.models import layers
from sv3d_jax.models.layers import Compute


@pytest.mark.parametrize("form", [layers._attend_by_head, layers._attend_by_queries])
def test_attention_in_parts_is_that_at_once(form, monkeypatch):
    monkeypatch.setattr(layers, "MAX_QUERIES", 7)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 20, 3, 8))  # parts of 5 queries

    def total(form, *qkv):
        return (jnp.arange(8) * form(*qkv, Compute())).sum()

    expected = layers._attend_at_once(q, k, v, Compute())
    np.testing.assert_allclose(form(q, k, v, Compute()), expected, atol=1e-6)
    gradients = [jax.grad(total, (1, 2, 3))(each, q, k, v) for each in (form, layers._attend_at_once)]
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
