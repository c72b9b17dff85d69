"""The coarse stage's scene: density and diffuse albedo of points in a box of half-size 2.

Density is per unit length in that box ("field units"), whatever the size of the scene in its world.
"""

import math

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float, Params, PRNGKeyArray
from sv3d_jax.recon.config import NerfConfig
from sv3d_jax.recon.nerf.hash_grid import HashGrid, encode, init_tables
from sv3d_jax.recon.views import BOX_HALF_SIZE

MAX_LOG_DENSITY = 8.0
# The albedo/light scale is ambiguous, so a bright albedo may exceed 1 before it is normalised.
MAX_ALBEDO = 4.0
NORMAL_STEP = 0.01 / 0.6 * BOX_HALF_SIZE  # 0.01 in SV3D's world, as threestudio has it


def hash_grid(config: NerfConfig) -> HashGrid:
    """The encoding that a config describes."""
    return HashGrid(
        num_levels=config.num_levels,
        num_features=config.num_features,
        table_size=config.table_size,
        base_resolution=config.base_resolution,
        growth=(config.finest_resolution / config.base_resolution) ** (1 / (config.num_levels - 1)),
    )


def init_field(config: NerfConfig, key: PRNGKeyArray) -> Params:
    """Hash tables and the two networks, of raw density and of raw albedo."""
    table_key, density_key, albedo_key = jax.random.split(key, 3)
    grid = hash_grid(config)
    hidden = [config.hidden_width] * config.hidden_layers
    return {
        "tables": init_tables(grid, table_key),
        "density": _init_mlp([grid.num_outputs, *hidden, 1], density_key),
        "albedo": _init_mlp([grid.num_outputs, *hidden, 3], albedo_key),
    }


def density(config: NerfConfig, params: Params, points: Float[Array, "n 3"]) -> Float[Array, "n"]:
    """Density of points of the box."""
    return _density(config, params, _features(config, params, points))


def density_and_albedo(
    config: NerfConfig, params: Params, points: Float[Array, "n 3"]
) -> tuple[Float[Array, "n"], Float[Array, "n 3"]]:
    """Both, from one encoding; albedo is diffuse colour in [0, MAX_ALBEDO]."""
    features = _features(config, params, points)
    return _density(config, params, features), _albedo(params, features)


def density_normals(config: NerfConfig, params: Params, points: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """Unit vectors in which density falls fastest, by central differences."""
    offsets = NORMAL_STEP * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])  # 6 3
    around = density(config, params, (points[:, None] + offsets).reshape(-1, 3)).reshape(-1, 2, 3)
    downhill = around[:, 1] - around[:, 0]
    return downhill / jnp.sqrt(jnp.sum(jnp.square(downhill), axis=-1, keepdims=True) + 1e-12)


def albedo(config: NerfConfig, params: Params, points: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """Diffuse colour alone."""
    return _albedo(params, _features(config, params, points))


def _features(config, params, points):
    unit = jnp.clip(points / (2 * BOX_HALF_SIZE) + 0.5, 0.0, 1.0)
    return encode(hash_grid(config), params["tables"], unit)


def _density(config, params, features):
    # An exponential grows opaque in few steps; exp of the raw value overflows near 88.
    raw = _mlp(params["density"], features)[:, 0]
    return config.density_scale * jnp.exp(jnp.minimum(raw, MAX_LOG_DENSITY))


def _albedo(params, features):
    # Grey of 1/2 where the network says 0; what the views show, in [0, 1], is far from both ends.
    raw = _mlp(params["albedo"], features)
    return MAX_ALBEDO * jax.nn.sigmoid(raw - math.log(2 * MAX_ALBEDO - 1))


def _init_mlp(widths: list[int], key: PRNGKeyArray) -> list[Params]:
    layers = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        key, layer_key = jax.random.split(key)
        limit = (6.0 / inputs) ** 0.5  # He: keeps the variance through ReLU
        kernel = jax.random.uniform(layer_key, (inputs, outputs), minval=-limit, maxval=limit)
        layers.append({"kernel": kernel, "bias": jnp.zeros(outputs)})
    return layers


def _mlp(layers: list[Params], x: Array) -> Array:
    for number, layer in enumerate(layers):
        x = x @ layer["kernel"] + layer["bias"]
        if number < len(layers) - 1:
            x = jax.nn.relu(x)
    return x
