"""Published tensors from those that other programs store: other names, 8-bit floats with scales, shapes, averages.

    module.model.diffusion_model._orig_mod.out.2.bias -> model.diffusion_model.out.2.bias
    model_ema.diffusion_modelout2bias -> the average of model.diffusion_model.out.2.bias
    first_stage_model.quant_conv.bias -> conditioner.embedders.1.encoder.quant_conv.bias

All is decided by names and shapes, except for a few bytes that describe a quantization.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from sv3d_jax.errors import WeightsError
from sv3d_jax.io.reading import reading
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.weights.key_map import PREFIXES, model_parameters
from sv3d_jax.weights.safetensors_file import WIDER_FILE, TensorInfo, is_float8

QUANTIZATION_METADATA = "_quantization_metadata"  # ComfyUI's, {"layers": {name: {"format": ...}}} as JSON

# Segments that wrappers of modules put into names: data parallel, compiled, sharded, checkpointed.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
_OUTER = {"state_dict", "model"}  # in front of a whole published name
_ROOTS = ("model.diffusion_model.", "conditioner.embedders.", "first_stage_model.")
_AVERAGES = {"ema", "model_ema", "ema_model", "ema_unet", "unet_ema", "ema_params"}
_COUNTERS = {"decay", "num_updates", "step", "initted", "optimization_step"}  # stored among averages
_COMFY_MARKERS = {"edm_vpred.sigma_max", "edm_vpred.sigma_min", "v_pred", "ztsnr"}

_WEIGHT_SCALES = (".scale_weight", ".weight_scale")
# Scales of a layer's inputs, for arithmetic in 8 bits; a description of its format.
_QUANTIZATION = (".scale_input", ".input_scale", ".comfy_quant")
_FORMATS = {"float8_e4m3fn", "float8_e5m2"}
_MAX_DESCRIPTION = 4096

_UNET, _IMAGE_ENCODER, _ENCODER = PREFIXES["unet"], PREFIXES["image_tower"], PREFIXES["vae_encoder"]
_UNET_PARTS = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out.")
_FIRST_STAGE = "first_stage_model."
_ENCODER_PARTS = ("encoder.", "quant_conv.")
_DECODER_PARTS = ("decoder.", "post_quant_conv.")
_AUTOENCODERS = (_FIRST_STAGE, _ENCODER)
_TRANSFORMERS_IMAGE_ENCODER = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.pre_layrnorm.": "ln_pre.",  # the library's own spelling
    "vision_model.post_layernorm.": "ln_post.",
    "visual_projection.weight": "proj",
}
_TRANSFORMERS_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


@dataclass(frozen=True)
class View:
    """A published tensor made of stored ones: each times its scale, joined along the first axis, then transposed."""

    info: TensorInfo
    parts: tuple[str, ...]
    scales: tuple[str | None, ...]
    is_transposed: bool = False

    def read(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """The values; `read` returns those of a stored tensor."""
        tensors = [
            self._scaled(read(part), scale and read(scale))
            for part, scale in zip(self.parts, self.scales, strict=True)
        ]
        tensor = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        return (tensor.T if self.is_transposed else tensor).reshape(self.info.shape)

    def _scaled(self, tensor: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
        if scale is None:
            return tensor if tensor.dtype == self.info.dtype else tensor.astype(self.info.dtype)
        if scale.size == 1:
            scale = scale.reshape(())
        return tensor.astype(np.float32) * scale.astype(np.float32)


@dataclass
class Layout:
    """How a file's tensors become published ones."""

    views: dict[str, View] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # stored names that are not used
    remarks: list[str] = field(default_factory=list)


def read_layout(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    read: Callable[[str], np.ndarray],
    models: Sequence[ModelConfig],
    ema: bool = False,
) -> Layout:
    """How the tensors of `path` become published ones; names without a rule stay as they are.

    `models` are those in whose names averages that were stored without dots are looked up. With `ema`, the averages
    that a trainer stored beside the weights are read in their place; in a file of averages alone they always are.
    Raises a WeightsError for two tensors of one name, averages that fit no name, and quantizations other than 8-bit
    floats.
    """
    layout = Layout()
    plain, averages = _unwrapped(path, tensors)
    stored = _choose(path, plain, averages, models, ema, layout)
    _move_halves(path, stored, layout)
    stored = _without_markers(stored, layout)
    scales = _scales(path, stored, tensors, metadata, read, layout)
    for name, parts, is_transposed in _joined(stored):
        part_scales = tuple(scales.get(part) for part in parts)
        shape, dtype = _result(path, name, [tensors[part] for part in parts], part_scales, tensors)
        shape = shape[::-1] if is_transposed else shape
        layout.views[name] = View(
            TensorInfo(dtype, _published_shape(name, shape)), parts, part_scales, is_transposed
        )
    narrow = [part for view in layout.views.values() for part in view.parts if is_float8(tensors[part])]
    if narrow:
        layout.remarks.append(f"{path}: {len(narrow)} tensors are 8-bit floats (fp8), read as they are")
    return layout


def _unwrapped(path: Path, tensors: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Stored names by their names without wrappers: those of weights, and those of averages without their prefix."""
    plain: dict[str, str] = {}
    averages: dict[str, str] = {}
    for stored in tensors:
        segments = [segment for segment in stored.split(".") if segment not in _WRAPPERS]
        name = ".".join(segment for segment in segments if segment not in _AVERAGES)
        kind = averages if len(name) < len(".".join(segments)) else plain
        name = _without_outer(name)
        if name in kind:
            raise WeightsError(
                f"{path}: {kind[name]!r} and {stored!r} are both {name}",
                hint="save the weights once, without the wrapper of the trainer",
            )
        kind[name] = stored
    return plain, averages


def _without_outer(name: str) -> str:
    rest = name
    while not rest.startswith(_ROOTS):
        first, _, rest = rest.partition(".")
        if first not in _OUTER:
            return f"model.{name}" if name.startswith("diffusion_model.") else name
    return rest


def _choose(
    path: Path,
    plain: dict[str, str],
    averages: dict[str, str],
    models: Sequence[ModelConfig],
    ema: bool,
    layout: Layout,
) -> dict[str, str]:
    """Stored names by published name: of the weights, or of the averages beside them."""
    if not averages:
        if ema:
            raise WeightsError(f"{path} holds no averages (EMA) of its weights", hint="leave out --ema")
        return dict(plain)
    has_unet = any(name.startswith(_UNET) for name in plain)
    if has_unet and not ema:
        layout.left_out += averages.values()
        layout.remarks.append(
            f"{path}: {len(averages)} averages (EMA) are left out, the weights beside them are read; "
            f"sv3d convert --ema {path} OUT takes the averages"
        )
        return dict(plain)
    named, counters, unknown = _named_averages(plain, averages, models)
    if unknown:
        raise WeightsError(
            f"{path}: {len(unknown)} of {len(averages)} averages (EMA) fit no tensor of SV3D, first {unknown[0]!r}",
            hint="leave out --ema"
            if has_unet
            else "save the averages under the names of the weights that they are averages of",
        )
    layout.left_out += counters + [plain[name] for name in named if name in plain]
    layout.remarks.append(f"{path}: {len(named)} averages (EMA) are read as the weights")
    return {**plain, **named}


def _named_averages(
    plain: Mapping[str, str], averages: Mapping[str, str], models: Sequence[ModelConfig]
) -> tuple[dict[str, str], list[str], list[str]]:
    """Averages by published name, then the stored names of counters, then those of averages that fit no name.

    Lightning stores averages under names without dots. They are looked up among the names of the weights beside them
    and of the given models, whichever has most of them.
    """
    named, counters, dotless = {}, [], {}
    for name, stored in averages.items():
        if name.split(".")[-1] in _COUNTERS:
            counters.append(stored)
        elif name.startswith(_ROOTS):
            named[name] = stored
        elif name.startswith(_UNET_PARTS):
            named[_UNET + name] = stored
        else:
            dotless[name] = stored
    found: dict[str, str] = {}
    candidates = [list(plain), *([p.name for p in model_parameters(model)] for model in models)]
    for names in candidates if dotless else ():
        short = _dotless(names)
        matches = {short[name]: stored for name, stored in dotless.items() if name in short}
        found = max(found, matches, key=len)
    unknown = sorted(set(dotless.values()) - set(found.values()))
    return {**named, **found}, counters, unknown


def _dotless(names: Iterable[str]) -> dict[str, str]:
    """Names by their letters without dots, with and without the prefixes `model.` and that of the UNet."""
    short: dict[str, str] = {}
    ambiguous = set()
    for name in names:
        for form in {name, name.removeprefix("model."), name.removeprefix(_UNET)}:
            key = form.replace(".", "")
            if short.setdefault(key, name) != name:
                ambiguous.add(key)
    return {key: name for key, name in short.items() if key not in ambiguous}


def _move_halves(path: Path, stored: dict[str, str], layout: Layout) -> None:
    """Give an autoencoder's halves their published names: ComfyUI has one autoencoder, and saves it under either."""
    for half, parts, source, target in (
        ("encoder", _ENCODER_PARTS, _FIRST_STAGE, _ENCODER),
        ("decoder", _DECODER_PARTS, _ENCODER, _FIRST_STAGE),
    ):
        if any(name.startswith(f"{target}{half}.") for name in stored):
            continue
        moved = [name for name in stored if name.startswith(tuple(source + part for part in parts))]
        for name in moved:
            stored[target + name.removeprefix(source)] = stored.pop(name)
        if moved:
            layout.remarks.append(f"{path}: the {half} is the one of {source}{half} (ComfyUI's layout)")


def _without_markers(stored: Mapping[str, str], layout: Layout) -> dict[str, str]:
    """`stored` without the tensors that only tell ComfyUI how to use the others."""
    markers = {
        name
        for name in stored
        if name in _COMFY_MARKERS
        or name.split(".")[-1] == "scaled_fp8"
        or name == f"{_IMAGE_ENCODER}vision_model.embeddings.position_ids"
    }
    layout.left_out += [stored[name] for name in stored if name in markers]
    return {name: tensor for name, tensor in stored.items() if name not in markers}


def _scales(
    path: Path,
    stored: dict[str, str],
    tensors: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    read: Callable[[str], np.ndarray],
    layout: Layout,
) -> dict[str, str]:
    """Stored names of scales by those of their weights; tensors of quantization are taken out of `stored`."""
    _check_formats(path, stored, tensors, metadata, read)
    scales: dict[str, str] = {}
    for name in [name for name in stored if name.endswith((*_WEIGHT_SCALES, *_QUANTIZATION))]:
        layer = name.rpartition(".")[0]
        weight = stored.get(f"{layer}.weight")
        if weight is None:
            continue  # it belongs to no layer, and is reported as a tensor without a place
        scale = stored.pop(name)
        if not name.endswith(_WEIGHT_SCALES):
            layout.left_out.append(scale)
        elif weight in scales:
            raise WeightsError(
                f"{path}: {layer} has two scales, {scales[weight]!r} and {scale!r}", hint=WIDER_FILE
            )
        else:
            scales[weight] = scale
    return scales


def _check_formats(
    path: Path,
    stored: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    read: Callable[[str], np.ndarray],
) -> None:
    """Refuse layers whose values are anything else than 8-bit floats times scales."""
    descriptions = {
        name: read(tensor).tobytes()
        for name, tensor in stored.items()
        if name.endswith(".comfy_quant") and tensors[tensor].nbytes <= _MAX_DESCRIPTION
    }
    with reading(path, "has a damaged description of its quantization", WIDER_FILE, WeightsError):
        layers = {name: json.loads(text) for name, text in descriptions.items()}
        layers |= json.loads(metadata.get(QUANTIZATION_METADATA, "{}")).get("layers", {})
    for name, layer in layers.items():
        if isinstance(layer, str):
            layer = {"format": layer}
        rest = set(layer) - {"format", "full_precision_matrix_mult"} if isinstance(layer, dict) else {"?"}
        if rest or layer.get("format") not in _FORMATS:
            raise WeightsError(
                f"{path}: {name.removesuffix('.comfy_quant')} is quantized as {json.dumps(layer)[:200]}, of such "
                "formats only 8-bit floats (fp8: float8_e4m3fn, float8_e5m2) are read",
                hint=WIDER_FILE,
            )


def _joined(stored: Mapping[str, str]) -> Iterable[tuple[str, tuple[str, ...], bool]]:
    """Published name, the stored tensors that are joined for it, and whether they are transposed.

    ComfyUI saves the image encoder as the transformers library names it, with query, key and value apart.
    """
    for name, tensor in stored.items():
        published, is_transposed = name, False
        if name.startswith((f"{_IMAGE_ENCODER}vision_model.", f"{_IMAGE_ENCODER}visual_projection.")):
            published = _IMAGE_ENCODER + _image_encoder_name(name.removeprefix(_IMAGE_ENCODER))
            is_transposed = published == f"{_IMAGE_ENCODER}proj"
        if published == name or ".attn.in_proj_" not in published:
            yield published, (tensor,), is_transposed
        elif ".self_attn.q_proj." in name:
            thirds = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
            if all(third in stored for third in thirds):
                yield published, tuple(stored[third] for third in thirds), False


def _image_encoder_name(name: str) -> str:
    for start, published in _TRANSFORMERS_IMAGE_ENCODER.items():
        if name.startswith(start):
            return published + name.removeprefix(start)
    layer = name.removeprefix("vision_model.encoder.layers.")
    number, _, rest = layer.partition(".")
    block, _, kind = rest.rpartition(".")
    if block in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        return f"transformer.resblocks.{number}.attn.in_proj_{kind}"
    return f"transformer.resblocks.{number}.{_TRANSFORMERS_LAYER.get(block, block)}.{kind}"


def _result(
    path: Path,
    name: str,
    parts: Sequence[TensorInfo],
    scales: Sequence[str | None],
    tensors: Mapping[str, TensorInfo],
) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the parts times their scales, joined; bfloat16 for 8-bit floats, each of which it can hold."""
    for part, scale in zip(parts, scales, strict=True):
        rows = (part.shape[:1] or (1,)) + (1,) * (len(part.shape) - 1)
        if scale and (part.dtype.kind not in "fV" or tensors[scale].dtype.kind not in "fV"):
            raise WeightsError(
                f"{path}: {name} is quantized as {part.dtype} with scales; of such types only 8-bit floats (fp8) are "
                "read",
                hint=WIDER_FILE,
            )
        if scale and not (tensors[scale].shape == rows or math.prod(tensors[scale].shape) == 1):
            raise WeightsError(
                f"{path}: {scale} of shape {tensors[scale].shape} is neither one scale for {name} nor one for each "
                f"of its rows, {rows}; of quantized weights only 8-bit floats (fp8) with such scales are read",
                hint=WIDER_FILE,
            )
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise WeightsError(f"{path}: the parts of {name} do not fit together: {[p.shape for p in parts]}")
    shape = (sum(part.shape[0] for part in parts), *shapes.pop()) if len(parts) > 1 else parts[0].shape
    dtypes = {np.dtype(ml_dtypes.bfloat16) if is_float8(p) else p.dtype for p in parts}
    if any(scales) or len(dtypes) > 1:
        return shape, np.dtype(np.float32)
    return shape, dtypes.pop()


def _published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as published: an autoencoder's attention may be saved as linear layers, and is 1x1 convolutions."""
    is_linear = len(shape) == 2 and ".attn_1." in name and name.startswith(_AUTOENCODERS)
    return (*shape, 1, 1) if is_linear else shape
