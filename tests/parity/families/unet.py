"""`unet_*`: the UNet's output for every indicator of still frames, and its activations."""

import jax
import numpy as np

from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.video_unet import VideoUNet
from tests.parity.cases import Case, Family, load_safetensors
from tests.parity.compare import EXACT, Tolerance
from tests.parity.families.networks import (
    COMPUTE,
    NETWORK_PATHS,
    Layers,
    channels_first,
    channels_last,
    network_tolerance,
    params_of,
    recipe_weights,
    rows,
    unet_fields,
    videos,
)

_INDICATOR = "image_only_indicator."


def compute(case: Case, path: str) -> dict[str, np.ndarray]:
    given, tensors = case.description, case.tensors()
    frames, base_seed = given["num_frames"], given["base_seed"]
    config = ModelConfig.from_dict({"unet": unet_fields(given["unet_config"])})
    network = VideoUNet(config.unet, COMPUTE[path])
    wanted = [name for name in tensors if name.startswith("act.")]
    indicators = {name: tensor for name, tensor in tensors.items() if name.startswith(_INDICATOR)}

    @jax.jit
    def forward(params, inputs, image_only):
        layers = Layers()
        with layers.recorded():
            out = network.apply({"params": params}, *inputs, image_only)
        return out, {name: layers.named(name.removeprefix("act.")) for name in wanted}

    inputs = [channels_last(tensors["x"]), tensors["c_noise"], tensors["context"], tensors["y"]]
    inputs = [videos(tensor, frames) for tensor in inputs]
    outputs = recipe_weights(tensors, base_seed)
    for name, image_only in indicators.items():
        out, layers = jax.device_get(forward(params_of(config, base_seed, "unet"), inputs, image_only))
        outputs[name.replace(_INDICATOR, "out.")] = channels_first(rows(out))
        if name == f"{_INDICATOR}zeros":
            outputs |= {
                act: activation(act, value, tensors[act].shape, frames) for act, value in layers.items()
            }
    return outputs


def activation(name: str, value: np.ndarray, shape: tuple[int, ...], frames: int) -> np.ndarray:
    """An activation of ours in the layout of the published module; a value shared by many tokens is repeated."""
    if len(shape) == 5:  # b c f h w
        return channels_first(value)
    if ".time_stack.0." in name:  # (b s) f c
        b, (n, _, c) = value.shape[0], shape
        if value.ndim == 3:
            value = np.broadcast_to(value, (b, n // b * frames, c))
        return value.reshape(b, frames, n // b, c).transpose(0, 2, 1, 3).reshape(shape)
    if len(shape) == 4:  # (b f) c h w
        return channels_first(value.reshape(shape[0], *shape[2:], shape[1]))
    if len(shape) == 3:  # (b f) s c
        return np.broadcast_to(value.reshape(shape[0], -1, shape[2]), shape)
    return value.reshape(shape)


def tolerance(name: str, path: str) -> Tolerance:
    return EXACT if name.startswith("weight.") else network_tolerance(name, path)


FAMILIES = (
    Family(
        pattern=r"unet_\w+\.safetensors",
        inputs=r"x|c_noise|context|y|image_only_indicator\.\w+",
        load=load_safetensors,
        compute=compute,
        tolerance=tolerance,
        paths=NETWORK_PATHS,
        slow=True,
    ),
)
