"""What the stored values and derivatives of `tests/recon/test_reference.py` do not tell of the encoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.recon.nerf.hash_grid import HashGrid, encode, init_tables

GRID = HashGrid(num_levels=3, num_features=2, table_size=64, base_resolution=3, growth=2.0)  # one dense level


@pytest.fixture
def tables():
    return jax.random.normal(jax.random.key(0), (3, 64, 2))


def test_the_gradient_of_the_tables_is_the_transpose_of_the_encoding(tables):
    """Encoding is linear in the tables, so <g, E(t)> = <E^T(g), t> for any other tables t."""
    x = jax.random.uniform(jax.random.key(1), (50, 3))
    cotangent = jax.random.normal(jax.random.key(2), (50, 6))
    gradient = jax.grad(lambda t: jnp.vdot(cotangent, encode(GRID, t, x)))(tables)
    other = jax.random.normal(jax.random.key(3), tables.shape)
    np.testing.assert_allclose(
        jnp.vdot(gradient, other), jnp.vdot(cotangent, encode(GRID, other, x)), rtol=1e-4, atol=1e-3
    )


def test_the_encoding_is_continuous_across_cells(tables):
    below, above = 1 / 3 - 1e-6, 1 / 3 + 1e-6  # a face of cells of every level
    points = jnp.array([[below, 0.4, 0.7], [above, 0.4, 0.7]])
    first, second = encode(GRID, tables, points)
    np.testing.assert_allclose(first, second, atol=2e-4)


def test_corners_of_the_cube_are_in_the_table(tables):
    corners = jnp.array([[i, j, k] for i in (0.0, 1.0) for j in (0.0, 1.0) for k in (0.0, 1.0)])
    dense = np.asarray(encode(GRID, tables, corners))[:, :2]
    rows = [int(3 * (i + 4 * j + 16 * k)) for i, j, k in np.asarray(corners)]
    np.testing.assert_array_equal(dense, np.asarray(tables)[0, rows])


def test_tables_start_near_zero():
    tables = init_tables(GRID, jax.random.key(0))
    assert 0 < jnp.abs(tables).max() <= 1e-4
