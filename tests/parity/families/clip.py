"""`clip*`: pictures of any size to the image encoder's input, its activations and the embedding."""

import re

import numpy as np

from sv3d_jax.models.clip_vision import ImageEncoder, gaussian_kernel, prepare
from sv3d_jax.models.config import ModelConfig
from tests.parity.cases import Case, Family, load_safetensors
from tests.parity.compare import EXACT, Tolerance, absolute
from tests.parity.families.networks import (
    COMPUTE,
    NETWORK_PATHS,
    Layers,
    channels_first,
    image_encoder_fields,
    network_tolerance,
    params_of,
    recipe_weights,
    run,
)

_PICTURE = r"(?P<which>\w*?)image_u8(_\d+x\d+)?"


def compute(case: Case, path: str) -> dict[str, np.ndarray]:
    given, tensors = case.description, case.tensors()
    fields = image_encoder_fields({**given, **given["clip_config"]})
    config = ModelConfig.from_dict({"tower": fields})
    encoder = ImageEncoder(config.image_encoder, COMPUTE[path])
    params = params_of(config, given["base_seed"], "image_tower")
    wanted = [name for name in tensors if name.startswith("act.")]

    def forward(params, pixels):
        layers = Layers()
        prepared = prepare(pixels, config.image_encoder.image_size)
        with layers.recorded():
            embedding = encoder.apply({"params": params}, prepared)
        return prepared, embedding, {name: layers.named(_layer(name)) for name in wanted}

    outputs = recipe_weights(tensors, given["base_seed"])
    for name, picture in tensors.items():
        if match := re.fullmatch(_PICTURE, name):
            pixels = (picture[None] / 255.0 * 2.0 - 1.0).astype(np.float32)
            prepared, embedding, activations = run(forward, params, pixels)
            outputs[f"{match['which']}preprocessed"] = channels_first(prepared)
            outputs[f"{match['which']}embedding"] = embedding[:, None]
            if not match["which"]:
                outputs |= {
                    act: _stored(act, value, tensors[act].shape) for act, value in activations.items()
                }
        elif match := re.fullmatch(r"blur_kernel_(\d+)", name):
            outputs[name] = gaussian_kernel(int(match[1]) / config.image_encoder.image_size)
    return outputs


def _layer(name: str) -> str:
    name = name.removeprefix("act.").removesuffix("_LND")
    return f"transformer.{name}" if name.startswith("resblocks.") else name


def _stored(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An activation of ours, tokens `n l c`, in the layout of the published module."""
    if name.endswith("_LND"):
        return value.transpose(1, 0, 2)
    if len(shape) == 4:
        return channels_first(value.reshape(shape[0], *shape[2:], shape[1]))
    return value


def tolerance(name: str, path: str) -> Tolerance:
    if name.startswith("weight."):
        return EXACT
    return Tolerance(1e-6, absolute) if name.startswith("blur_kernel") else network_tolerance(name, path)


FAMILIES = (
    Family(
        pattern=r"clip\w*\.safetensors",
        inputs=_PICTURE,
        load=load_safetensors,
        compute=compute,
        tolerance=tolerance,
        paths=NETWORK_PATHS,
    ),
)
