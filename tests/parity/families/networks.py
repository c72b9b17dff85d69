"""What the families of network files share: configurations, weights, and every layer's input and output by name."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Params
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.weights.key_map import Parameter, model_parameters, tree_from_leaves
from tests.parity.compare import Tolerance
from tests.reference_weights import reference_tensor

COMPUTE = {
    "reference": Compute(reference=True),
    "default": Compute(),
    "bfloat16": Compute(jnp.bfloat16),
    "bfloat16_factors": Compute(work_in_16_bit=0),
}
NETWORK_PATHS = tuple(COMPUTE)
# Sums in another order: twice what float32 itself costs the published modules, and as much again for the savings.
NETWORK_LIMIT = {"reference": 2e-5, "default": 5e-5, "bfloat16": 3e-2, "bfloat16_factors": 3e-2}

# A published Sequential without a last activation is known by its last layer with weights.
_SEQUENTIAL = {
    "in_layers": "in_layers.2",
    "emb_layers": "emb_layers.1",
    "out_layers": "out_layers.3",
    "time_embed": "time_embed.2",
    "label_emb": "label_emb.0.2",
    "time_pos_embed": "time_pos_embed.2",
}


def network_tolerance(name: str, path: str) -> Tolerance:
    return Tolerance(NETWORK_LIMIT[path])


def model_config(config: Mapping[str, Any], vector_width: int, **fields: Any) -> ModelConfig:
    """The model of a description that gives the widths of all networks, with other fields as they are."""
    clip = {"output_dim": config["context_dim"], **config["clip"]}
    return ModelConfig.from_dict(
        {
            "variant": "u" if vector_width == 256 else "p",
            "unet": unet_fields({**config, "adm_in_channels": vector_width}),
            "vae": {"channels": config["vae_ch"]},
            "tower": image_encoder_fields(clip),
            **fields,
        }
    )


def unet_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `UNetConfig` from the published constructor's arguments."""
    names = {
        "model_channels": "model_channels",
        "channel_mult": "channel_mult",
        "num_res_blocks": "num_res_blocks",
        "num_head_channels": "head_width",
        "context_dim": "context_width",
        "adm_in_channels": "vector_width",
        "in_channels": "in_channels",
        "out_channels": "out_channels",
    }
    fields = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    if "attention_resolutions" in config:
        fields["attention_levels"] = sorted(
            int(np.log2(factor)) for factor in config["attention_resolutions"]
        )
    return fields


def image_encoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an `ImageEncoderConfig` from a description of the published encoder."""
    names = {
        "layers": "layers",
        "width": "width",
        "head_width": "head_width",
        "output_dim": "output_width",
        "image_size": "image_size",
        "patch": "patch",
        "mlp_ratio": "mlp_ratio",
    }
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


@lru_cache(maxsize=4)
def params_of(config: ModelConfig, base_seed: int, part: str) -> Params:
    """One part's parameter tree by the weight recipe."""
    return named_params(model_parameters(config, [part]), base_seed)[part]


def named_params(parameters: list[Parameter], base_seed: int) -> Params:
    """Parameter tree by the weight recipe, a tensor following from its published name."""
    return tree_from_leaves(
        (p.path, p.to_tree(reference_tensor(p.name, p.shape, base_seed))) for p in parameters
    )


def recipe_weights(tensors: Mapping[str, np.ndarray], base_seed: int) -> dict[str, np.ndarray]:
    """The stored `weight.<published name>` tensors, made again by the recipe."""
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith("weight."):
            weights[name] = reference_tensor(name.removeprefix("weight."), tensor.shape, base_seed)
    return weights


class Layers:
    """First argument and result of every layer that runs while this records, by parameter path."""

    def __init__(self):
        self.inputs: dict[str, Array] = {}
        self.results: dict[str, Array] = {}

    def __call__(self, call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            path = "/".join(context.module.path)
            self.inputs[path], self.results[path] = args[0], result
        return result

    def recorded(self):
        return nn.intercept_methods(self)

    def named(self, name: str) -> Array:
        """The activation with a published name, in the layout of ours."""
        if name.endswith(".input"):
            return self.inputs[_path(name.removesuffix(".input"))]
        if name.endswith(".spatial_out_bcthw"):
            return self.inputs[_path(name.replace("spatial_out_bcthw", "time_stack"))]
        for published, last in _SEQUENTIAL.items():
            name = re.sub(rf"(^|\.){published}$", rf"\g<1>{last}", name)
        path = _path(name)
        if path in self.results:
            return self.results[path]
        if re.search(
            r"_\d+$", path
        ):  # an activation function has no layer: the next layer takes what it gives
            stem, index = path.rsplit("_", 1)
            for following in range(int(index) + 1, int(index) + 3):
                if (place := f"{stem}_{following}") in self.inputs:
                    return self.inputs[place]
        parts = [key for key in self.results if re.fullmatch(rf"{re.escape(path)}_\d+", key)]
        return self.results[
            max(parts, key=lambda key: int(key.rsplit("_", 1)[1]))
        ]  # a block is its last part


def _path(name: str) -> str:
    return re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")


def run(function: Callable[..., Any], *args: Any) -> Any:
    """Compile and run, results as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(function)(*args))


def videos(rows: np.ndarray, frames: int) -> np.ndarray:
    """Rows in frame-major video order to `b f ...`."""
    return rows.reshape(-1, frames, *rows.shape[1:])


def rows(videos: np.ndarray) -> np.ndarray:
    """`b f ...` to rows in frame-major video order."""
    return videos.reshape(-1, *videos.shape[2:])


def channels_last(tensor: np.ndarray) -> np.ndarray:
    return np.moveaxis(tensor, 1, -1)


def channels_first(tensor: np.ndarray) -> np.ndarray:
    return np.moveaxis(tensor, -1, 1)
