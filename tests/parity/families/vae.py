"""`vae_*`: picture to moments and latent, latent to pixels with both decoders, activations."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.vae import decode, encode_moments
from sv3d_jax.weights.key_map import PREFIXES, Parameter, model_parameters
from tests.parity.cases import Case, Family, load_safetensors
from tests.parity.compare import Tolerance, absolute
from tests.parity.families.networks import (
    COMPUTE,
    NETWORK_PATHS,
    Layers,
    channels_first,
    channels_last,
    named_params,
    network_tolerance,
    params_of,
    run,
)

_SECOND = PREFIXES["vae_encoder"]  # of the autoencoder whose encoder makes conditioning latents


def compute(case: Case, path: str) -> dict[str, np.ndarray]:
    given, tensors = case.description, case.tensors()
    config, compute, base_seed = vae_config(given), COMPUTE[path], given["base_seed"]
    acts = [name.removeprefix("act.") for name in tensors if name.startswith("act.")]

    def encode(params, pixels):
        layers = Layers()
        with layers.recorded():
            moments = encode_moments(params, config.vae, pixels, compute)
        named = {
            f"act.{name}": layers.named(name.removeprefix("encoder.")) for name in acts if name[:3] == "enc"
        }
        return {"moments": jnp.concatenate(moments, -1), "mode": moments[0], **named}

    def decode_latent(params, latent):
        layers = Layers()
        with layers.recorded():
            pixels = decode(params, config.vae, latent, compute)
        named = {
            f"act.{name}": layers.named(name.removeprefix("decoder.")) for name in acts if name[:3] == "dec"
        }
        return {"decoded": pixels, **named}

    latent = channels_last(tensors["z_model"]) / config.latent_factor[0]
    outputs = run(encode, params_of(config, base_seed, "vae_encoder"), channels_last(tensors["x"]))
    outputs |= run(decode_latent, params_of(config, base_seed, "vae_decoder"), latent)
    if "embedder_autoencoder_decoded" in tensors:
        second = replace(config, vae=replace(config.vae, post_quant_conv=True))
        outputs["embedder_autoencoder_decoded"] = run(
            lambda params, z: decode(params, second.vae, z, compute),
            second_decoder(second, base_seed),
            latent,
        )
    outputs = {name: channels_first(value) for name, value in outputs.items()}
    outputs["act.quant_conv"] = outputs[
        "moments"
    ]  # the last layer; log-variances lie far inside their limits
    outputs["x"] = channels_first(tensors["image_u8"][None] / 127.5 - 1.0)
    return outputs


def vae_config(given: Mapping[str, Any]) -> ModelConfig:
    return ModelConfig.from_dict({"vae": {"channels": given["ch"]}})


def second_decoder(config: ModelConfig, base_seed: int) -> Any:
    """The other decoder of the checkpoint, which SV3D does not use, in the tree of the one that it does."""
    parameters = [
        Parameter(p.name.replace("first_stage_model.", _SECOND), p.shape, p.path)
        for p in model_parameters(config, ["vae_decoder"])
    ]
    return named_params(parameters, base_seed)["vae_decoder"]


def tolerance(name: str, path: str) -> Tolerance:
    return Tolerance(1e-6, absolute) if name == "x" else network_tolerance(name, path)


FAMILIES = (
    Family(
        pattern=r"vae_\w+\.safetensors",
        inputs=r"image_u8|z_model",
        load=load_safetensors,
        compute=compute,
        tolerance=tolerance,
        paths=NETWORK_PATHS,
    ),
)
