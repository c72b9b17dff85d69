"""Small weights files, good and bad, for the tests of this folder."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sv3d_jax.models.config import ModelConfig
from sv3d_jax.weights.key_map import PREFIXES, Shape, model_parameters
from sv3d_jax.weights.safetensors_file import TensorInfo, write_safetensors
from tests.reference_weights import reference_tensor

TEXT_SHAPES = {
    "conditioner.embedders.0.open_clip.model.positional_embedding": (4, 8),
    "conditioner.embedders.0.open_clip.model.logit_scale": (),
    "conditioner.embedders.0.open_clip.model.token_embedding.weight": (16, 8),
}


def unused_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Names and shapes of the published but unused tensors that follow from the configuration.

    Those of CLIP's text half are not among them: their shapes depend on a vocabulary, which the model does not have.
    """
    latent, prefix = config.vae.latent_channels, PREFIXES["vae_encoder"]
    decoder = replace(config, vae=replace(config.vae, post_quant_conv=False))
    shapes = {
        f"{prefix}decoder.{parameter.name.removeprefix(PREFIXES['vae_decoder'])}": parameter.shape
        for parameter in model_parameters(decoder, ["vae_decoder"])
    }
    layer = f"{prefix}post_quant_conv"
    return shapes | {f"{layer}.weight": (latent, latent, 1, 1), f"{layer}.bias": (latent,)}


def published_tensors(config: ModelConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    """All tensors of a checkpoint under published names, unused ones included."""
    shapes = {parameter.name: parameter.shape for parameter in model_parameters(config)}
    return {
        name: reference_tensor(name, shape).astype(dtype)
        for name, shape in {**TEXT_SHAPES, **shapes, **unused_shapes(config)}.items()
    }


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Path:
    infos = {name: TensorInfo(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(path, infos, tensors.values(), metadata or {})
    return path


def write_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A file of zeros."""
    return write_tensors(path, {name: np.zeros(shape, np.float16) for name, shape in shapes.items()})


def raw_file(header: object, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
