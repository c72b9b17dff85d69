"""Weights that a run starts from: random ones, those of a model of this package or of SV3D, or SVD's UNet."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Params
from sv3d_jax.errors import WeightsError
from sv3d_jax.models.config import ModelConfig, UNetConfig
from sv3d_jax.train.config import OBJECTIVE_NAMES, TrainConfig
from sv3d_jax.train.objectives import init_params
from sv3d_jax.train.trainable import Trainable, choose_trainable
from sv3d_jax.weights.hub import find_weights, load_weights
from sv3d_jax.weights.svd import adapt_vector, is_svd, read_svd_unet

PARTS = {"autoencoder": ("vae_encoder", "vae_decoder"), "tower": ("image_tower",), "unet": ("unet",)}
INIT_STREAM, ADAPTER_STREAM = 2**31, 2**31 + 1  # larger than any step number


def first_trainable(config: TrainConfig, model: ModelConfig) -> Trainable:
    """Trained and frozen parameters before the first step; they depend only on the settings and `initial`."""
    key = jax.random.fold_in(jax.random.key(config.seed), ADAPTER_STREAM)
    return choose_trainable(first_params(config, model), config.trainable, key)


def first_params(config: TrainConfig, model: ModelConfig) -> Params:
    """The weights named by `config.initial`, or random ones if it is None.

    Raises WeightsError if the part that is trained has other sizes than in the model of the settings.
    """
    if config.initial is None:
        return fresh_params(config, model)
    path = find_weights(config.initial)
    if config.objective == "unet" and is_svd(path):
        params = {"unet": read_svd_unet(path, model)}
    else:
        given, given_model, _ = load_weights(config.initial, dtype="float32")
        part = {"autoencoder": "vae", "tower": "image_encoder", "unet": "unet"}[config.objective]
        if _widths(getattr(given_model, part)) != _widths(getattr(model, part)):
            raise WeightsError(
                f"{config.initial} has another {OBJECTIVE_NAMES[config.objective]} than the model {config.model}"
            )
        params = {name: given[name] for name in PARTS[config.objective]}
    if config.objective == "unet":
        label = params["unet"]["label_emb_0_0"]
        label["kernel"] = adapt_vector(label["kernel"], model.family)
    return jax.tree.map(jnp.asarray, params)


def fresh_params(config: TrainConfig, model: ModelConfig) -> Params:
    """Random parameters with the initialisation of the published code, from the seed of the run."""
    key = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
    return init_params(config.objective, model, key)


def _widths(part):
    """The configuration that must agree in both models; the width of the conditioning vector may differ."""
    return replace(part, vector_width=1) if isinstance(part, UNetConfig) else part
