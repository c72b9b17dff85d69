"""Weights that a run starts from: fresh ones, those of a model of ours or of SV3D, or SVD's UNet."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Params
from sv3d_jax.errors import WeightsError
from sv3d_jax.models.config import ModelConfig, UNetConfig
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.objectives import init_params
from sv3d_jax.train.trainable import Trainable, choose_trainable
from sv3d_jax.weights.hub import find_weights, load_weights
from sv3d_jax.weights.svd import adapt_vector, is_svd, read_svd_unet

PARTS = {"autoencoder": ("vae_encoder", "vae_decoder"), "tower": ("image_tower",), "unet": ("unet",)}
INIT_STREAM, ADAPTER_STREAM = 2**31, 2**31 + 1  # far from the number of any step


def first_trainable(config: TrainConfig, model: ModelConfig) -> Trainable:
    """What a run trains and what it leaves, before its first step: a function of the settings and of `initial`."""
    key = jax.random.fold_in(jax.random.key(config.seed), ADAPTER_STREAM)
    return choose_trainable(first_params(config, model), config.trainable, key)


def first_params(config: TrainConfig, model: ModelConfig) -> Params:
    """The weights that the settings name, else fresh ones."""
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
                f"{config.initial} has another {config.objective} than the model {config.model}"
            )
        params = {name: given[name] for name in PARTS[config.objective]}
    if config.objective == "unet":
        label = params["unet"]["label_emb_0_0"]
        label["kernel"] = adapt_vector(label["kernel"], model.family)
    return jax.tree.map(jnp.asarray, params)


def fresh_params(config: TrainConfig, model: ModelConfig) -> Params:
    """Parameters as published code initialises them, from the seed of the run."""
    key = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
    return jax.jit(partial(init_params, config.objective, model))(key)


def _widths(part):
    """What must be alike in both models; the width of the condition vector need not."""
    return replace(part, vector_width=0) if isinstance(part, UNetConfig) else part
