"""`*.keys.json` and `*.weights.json`: published names, shapes and random weights, through the key map."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from sv3d_jax.models.clip_vision import init_image_encoder
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.vae import init_vae
from sv3d_jax.models.video_unet import init_unet
from sv3d_jax.weights.key_map import Parameter, Shape, infer_config, is_extra, model_parameters
from tests.parity.cases import Case, Family, numbers
from tests.parity.compare import EXACT, Tolerance, relative_per_value
from tests.reference_weights import reference_tensor
from tests.weights.files import unused_shapes

_TEXT = "conditioner.embedders.0.open_clip.model."


def load_keys(path: Path) -> dict[str, np.ndarray]:
    values = json.loads(path.read_text())
    shapes = {name: np.asarray(shape, np.float64) for name, shape in values.pop("keys").items()}
    return shapes | numbers(values)


def compute_keys(case: Case, path: str) -> dict[str, np.ndarray]:
    given = json.loads(case.path.read_text())
    shapes = checkpoint_shapes(given["keys"])
    outputs = dict(shapes)
    outputs["total_keys"], outputs["total_parameters"] = len(shapes), _size(shapes, "")
    prefixes = [part["prefix"] for part in given["parts"]]
    for index, prefix in enumerate(prefixes):
        # A name belongs to the longest prefix that it begins with.
        inner = tuple(other for other in prefixes if len(other) > len(prefix))
        names = [name for name in shapes if name.startswith(prefix) and not name.startswith(inner)]
        outputs[f"parts.{index}.keys"] = len(names)
        outputs[f"parts.{index}.parameters"] = sum(math.prod(shapes[name]) for name in names)
    unet = _size(shapes, r"model\.diffusion_model\.")
    embedding = _size(shapes, r"model\.diffusion_model\.(time_embed|label_emb)\.")
    temporal = _size(shapes, r"model\.diffusion_model\..*\.(time_stack|time_mixer|time_pos_embed)\.")
    split = {"embedding": embedding, "temporal": temporal, "spatial": unet - embedding - temporal}
    outputs |= {f"unet_split.{name}": size for name, size in split.items()}
    return {name: np.asarray(value, np.float64) for name, value in outputs.items()}


def load_weights(path: Path) -> dict[str, np.ndarray]:
    values = json.loads(path.read_text())
    tensors = {
        name: np.asarray([*entry["shape"], entry["sum"], entry["abs_sum"], entry["first"], entry["last"]])
        for name, entry in values.pop("keys").items()
    }
    return tensors | numbers(values)


def compute_weights(case: Case, path: str) -> dict[str, np.ndarray]:
    given = json.loads(case.path.read_text())
    shapes = checkpoint_shapes({name: entry["shape"] for name, entry in given["keys"].items()})
    config = ModelConfig.from_dict(infer_config(shapes))
    place = {parameter.name: parameter for parameter in model_parameters(config)}
    outputs = {
        "n_params": _size(shapes, ""),
        "config.model_channels": config.unet.model_channels,
        "config.context_dim": config.unet.context_width,
        "config.vae_ch": config.vae.channels,
        "config.clip.layers": config.image_encoder.layers,
        "config.clip.width": config.image_encoder.width,
    }
    for name, shape in shapes.items():
        tensor = reference_tensor(name, shape, given["base_seed"])
        if name in place:
            tensor = place[name].to_published(place[name].to_tree(tensor))
        ends = tensor.ravel()[[0, -1]] if tensor.size else ()
        outputs[name] = [*shape, tensor.sum(dtype=np.float64), np.abs(tensor).sum(dtype=np.float64), *ends]
    return {name: np.asarray(value, np.float64) for name, value in outputs.items()}


def checkpoint_shapes(stored: dict[str, list[int]]) -> dict[str, Shape]:
    """Every tensor that a checkpoint of this kind holds, as our networks and the key map have them.

    The configuration is read off the stored shapes, as the converter does. What is left of the text half is not
    ours to know; its shapes must fit each other.
    """
    fields = infer_config({name: tuple(shape) for name, shape in stored.items()})
    # Shapes do not tell the number of heads, nor depend on it: one is possible at every width.
    fields["tower"]["head_width"] = fields["tower"]["width"]
    fields["unet"]["head_width"] = fields["unet"]["model_channels"]
    config = ModelConfig.from_dict(fields)
    shapes = dict(_network_shapes(config)) | unused_shapes(config)
    if text := [name for name in stored if is_extra(name) and name not in shapes]:
        (width,) = stored[f"{_TEXT}ln_final.weight"]
        vocabulary, positions = (
            stored[_TEXT + name][0] for name in ("token_embedding.weight", "positional_embedding")
        )
        expected = {
            "token_embedding.weight": (vocabulary, width),
            "positional_embedding": (positions, width),
            "ln_final.weight": (width,),
            "ln_final.bias": (width,),
            "text_projection": (width, config.image_encoder.output_width),
            "logit_scale": (),
        }
        shapes |= {name: expected[name.removeprefix(_TEXT)] for name in text}
    return shapes


def _network_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Published names and shapes of all leaves of the networks' own parameter trees."""
    key = jax.random.key(0)
    trees = {
        "unet": jax.eval_shape(lambda: init_unet(config.unet, key)),
        "image_tower": jax.eval_shape(lambda: init_image_encoder(config.image_encoder, key)),
        **jax.eval_shape(lambda: init_vae(config.vae, key)),
    }
    places: dict[tuple[str, ...], Parameter] = {p.path: p for p in model_parameters(config)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        parameter = places.pop(tuple(entry.key for entry in path))
        assert leaf.shape == parameter.tree_shape, f"{parameter.name}: {leaf.shape} in the network"
        yield parameter.name, parameter.shape
    assert not places, f"no network has a place for {next(iter(places.values())).name}"


def _size(shapes: dict[str, Shape], pattern: str) -> int:
    """Values in all tensors whose names begin as the pattern says."""
    return sum(math.prod(shape) for name, shape in shapes.items() if re.match(pattern, name))


def weight_tolerance(name: str, path: str) -> Tolerance:
    # float32 values are equal, but for a last bit where a platform's logarithm differs in float64.
    return Tolerance(1e-6, relative_per_value)


FAMILIES = (
    Family(
        pattern=r"\w+\.keys\.json",
        inputs=r"",
        load=load_keys,
        compute=compute_keys,
        tolerance=lambda name, path: EXACT,
    ),
    Family(
        pattern=r"tiny_\w+\.weights\.json",
        inputs=r"base_seed|config\.(num_head_channels|clip\.head_width)",
        load=load_weights,
        compute=compute_weights,
        tolerance=weight_tolerance,
    ),
)
