"""Weights on disk in any form: which model they are of, and their tensors under published names.

A source is a safetensors file, a folder of such files with an index or with `model.toml` (as the package ships), or a
folder with `model.toml` and an Orbax checkpoint. Names and shapes are checked before any value is read.
"""

import difflib
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from sv3d_jax.errors import WeightsError
from sv3d_jax.io.names import refuse_address
from sv3d_jax.io.reading import open_file
from sv3d_jax.models.config import METADATA_KEY, ModelConfig
from sv3d_jax.models.families import FAMILIES, family_of_width
from sv3d_jax.weights.checkpoint import SavedTree
from sv3d_jax.weights.key_map import PREFIXES, Shape, infer_config, is_extra, model_parameters
from sv3d_jax.weights.layouts import QUANTIZATION_METADATA, read_layout
from sv3d_jax.weights.safetensors_file import GET_SV3D, WIDER_FILE, SafetensorsFile, TensorInfo, refuse_pickle
from sv3d_jax.weights.shards import TensorFiles, open_files

MODEL_FILE = "model.toml"
PARAMS_FOLDER = "params"
MAX_SEARCHED = 1000  # files beside absent weights, for a hint
EXTRA_FILE = "extra.safetensors"
FLOAT_DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
MINI = Path(__file__).parent / "mini"
_MERGE_LORA = (
    "a LoRA is a change to a model: merge it into the whole SV3D file with the program that trained it (kohya:"
    " merge_lora, PEFT: merge_and_unload, diffusers: fuse_lora), save that as .safetensors and name it here"
)
_LORA_NAMES = re.compile(r"lora|\.?(hada|lokr)_w\d|dora_scale", re.IGNORECASE)
_PART_NAMES = {
    "unet": f"UNet ({PREFIXES['unet']}*)",
    "image_tower": f"image encoder ({PREFIXES['image_tower']}*)",
    "vae_encoder": f"autoencoder's encoder ({PREFIXES['vae_encoder']}*)",
    "vae_decoder": f"autoencoder's decoder ({PREFIXES['vae_decoder']}*)",
}


class WeightsSource(Protocol):
    """Weights whose names and shapes have been checked."""

    path: Path
    config: ModelConfig
    tensors: Mapping[str, TensorInfo]  # by published name, unused ones included
    metadata: Mapping[str, str]  # of a file that others wrote, kept for when it is written again
    # Stored tensors without a place in `tensors`: averages, scales, a program's marks.
    left_out: Sequence[str]
    remarks: Sequence[str]  # what was not in published form, and how it was read

    def stream(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        """The named tensors, in that order and in published layout, a few at a time in memory."""
        ...

    def sha256(self) -> str:
        """A fingerprint of the values; for a single file it is the file's own SHA-256."""
        ...


def open_weights(
    path: Path | str, stored: Mapping[str, Any] | None = None, ema: bool = False
) -> WeightsSource:
    """The weights at `path`, a file, its index or a folder, or the shipped "mini"; each remark on them is a warning.

    `stored` gives fields of the configuration that do not follow from shapes, for a file that does not describe them
    itself; nested as in `ModelConfig.to_dict`. `ema` takes the averages that a trainer stored beside the weights.
    Raises a WeightsError if `path` does not exist or is not an SV3D model.
    """
    path = shipped() if path == "mini" else Path(path)
    if not path.exists():
        raise absent_weights(path, "name sv3d_p.safetensors in place of it")
    if (path / PARAMS_FOLDER).is_dir():
        if ema:
            raise WeightsError(f"{path} holds no averages (EMA) of its weights", hint="leave out --ema")
        return _FolderSource(path)
    if not (tensors := open_tensors(path, ema)):
        raise _no_weights(path)
    if (path / MODEL_FILE).is_file():
        stored = read_model_file(path).to_dict()
    source = _FileSource(path, tensors, stored)
    for remark in source.remarks:
        warnings.warn(remark, stacklevel=1)  # one place, so that each is said once
    return source


def shipped() -> Path:
    """The folder of the shipped model. Raises WeightsError where it is missing."""
    if not (MINI / MODEL_FILE).is_file():
        raise WeightsError(f"the shipped weights are missing from {MINI}", hint="install sv3d_jax again")
    return MINI


def absent_weights(path: Path, after: str) -> WeightsError:
    """The error for weights that do not exist: where was looked, the likely name or how to get some.

    `after` says what to do with downloaded ones. Raises WeightsError for a web address.
    """
    refuse_address(path, WeightsError)
    folder = path.parent
    beside = islice(folder.iterdir(), MAX_SEARCHED) if folder.is_dir() else ()
    names = [item.name for item in beside if _may_be_weights(item)]
    close = difflib.get_close_matches(
        path.name, [*names, *(["mini"] if path == Path(path.name) else [])], n=1
    )
    hint = f"did you mean {folder / close[0]}?" if close else f"{GET_SV3D}; then {after}"
    return WeightsError(f"there are no weights {path}; searched: {path.absolute()}", hint=hint)


def _may_be_weights(path: Path) -> bool:
    """Whether a path has the name of a weights file, or is a folder with what this program writes."""
    of_ours = (MODEL_FILE, PARAMS_FOLDER, "checkpoints")
    return path.suffix == ".safetensors" or (
        path.is_dir() and any((path / name).exists() for name in of_ours)
    )


def open_tensors(path: Path, ema: bool = False) -> "PublishedTensors | None":
    """The tensors of a safetensors file, index or folder under published names, whatever model they are of.

    None for a folder without any.
    """
    files = open_files(path)
    if files is None and (path / MODEL_FILE).is_file():
        found = [SafetensorsFile(file) for file in sorted(path.glob("*.safetensors"))]
        files = TensorFiles(path, found) if found else None
    return PublishedTensors(files, ema) if files else None


def read_model_file(directory: Path) -> ModelConfig:
    """The configuration in a folder's `model.toml`."""
    return ModelConfig.from_file(directory / MODEL_FILE)


def inferred_config(shapes: Mapping[str, Shape], stored: Mapping[str, Any] | None = None) -> ModelConfig:
    """The configuration that follows from shapes, with published values for the rest; `stored` fields override both."""
    inferred = infer_config(shapes, (stored or {}).get("variant"))
    published = ModelConfig.published(inferred["variant"]).to_dict()
    return ModelConfig.from_dict(_overlaid(_overlaid(published, inferred), stored or {}))


def cast(tensor: np.ndarray, name: str, dtype: np.dtype | None) -> np.ndarray:
    """A tensor in another floating-point type (None: its own); WeightsError for values that are not finite in it."""
    if tensor.dtype.kind not in "fV":  # ml_dtypes are of kind V
        return tensor
    if not np.isfinite(tensor).all():
        raise WeightsError(f"{name} holds values that are not finite", hint="these weights cannot be used")
    if dtype is None or tensor.dtype == dtype:
        return tensor
    with np.errstate(over="ignore"):
        narrow = tensor.astype(dtype)
    if not np.isfinite(narrow).all():
        raise WeightsError(f"{name} holds values beyond the range of {dtype}", hint="use bfloat16 or float32")
    return narrow


class PublishedTensors:
    """Tensors of files under their published names, in published shapes and in types that numpy computes with."""

    def __init__(self, files: TensorFiles, ema: bool = False):
        self.path, self.files = files.path, files.files
        self.described = _described(files)
        models = [self.described] if self.described else []
        models += [ModelConfig.published(variant) for variant in ("p", "u")]
        layout = read_layout(files.path, files.tensors, files.metadata, files.read, models, ema)
        self.metadata = {
            key: value
            for key, value in files.metadata.items()
            if key not in (METADATA_KEY, QUANTIZATION_METADATA)
        }
        self.tensors = {name: view.info for name, view in layout.views.items()}
        self.left_out, self.remarks = layout.left_out, layout.remarks
        self._views, self._read = layout.views, files.read

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor."""
        return self._views[name].read(self._read)


class _FileSource:
    """One or several safetensors files."""

    def __init__(self, path: Path, tensors: PublishedTensors, stored: Mapping[str, Any] | None):
        self.path = path
        self._published = tensors
        self.tensors, self.metadata = tensors.tensors, tensors.metadata
        self.left_out, self.remarks = tensors.left_out, tensors.remarks
        shapes = {name: info.shape for name, info in self.tensors.items()}
        # A model that is described may be of any family; a file that is not must be of one that its width tells.
        if tensors.described is None and stored is None and (problem := _other_model(shapes)):
            raise WeightsError(f"{path} is not an SV3D model: it is {problem}", hint=GET_SV3D)
        try:
            self.config = tensors.described or inferred_config(shapes, stored)
        except (KeyError, ValueError, ZeroDivisionError, IndexError):
            raise _not_a_model(path, shapes) from None
        _check_names(path, self.tensors, self.config)

    def stream(self, names: Iterable[str]) -> Iterator[np.ndarray]:
        return (self._published.read(name) for name in names)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(self._published.files):
            _feed(digest, path)
        return digest.hexdigest()


class _FolderSource:
    """A folder made by `sv3d convert`: an Orbax checkpoint, and a file of the tensors that the model does not use."""

    left_out: Sequence[str] = ()
    remarks: Sequence[str] = ()

    def __init__(self, path: Path):
        self.path = path
        self.config = read_model_file(path)
        self._saved = SavedTree(path / PARAMS_FOLDER)
        self._parameters = {parameter.name: parameter for parameter in model_parameters(self.config)}
        names = {parameter.path: name for name, parameter in self._parameters.items()}
        self.tensors = {}
        for leaf, info in self._saved.leaves.items():
            parameter = self._parameters.get(names.get(leaf, ""))
            if parameter and info.shape == parameter.tree_shape:
                self.tensors[parameter.name] = TensorInfo(info.dtype, parameter.shape)
            else:
                self.tensors["/".join(leaf)] = info
        self._extra = SafetensorsFile(path / EXTRA_FILE) if (path / EXTRA_FILE).exists() else None
        self.metadata = self._extra.metadata if self._extra else {}
        self.tensors |= self._extra.tensors if self._extra else {}
        _check_names(path, self.tensors, self.config)

    def stream(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        saved = [self._parameters[name] for name in names if name in self._parameters]
        leaves = self._saved.read(parameter.path for parameter in saved)
        for name in names:
            if name in self._parameters:
                yield self._parameters[name].to_published(next(leaves))
            else:
                yield self._extra.read(name)

    def sha256(self) -> str:
        digest = hashlib.sha256(json.dumps(self._saved.checksums, sort_keys=True).encode())
        if self._extra:
            _feed(digest, self._extra.path)
        return digest.hexdigest()


def _feed(digest: Any, path: Path) -> None:
    with open_file(path) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)


def _described(files: TensorFiles) -> ModelConfig | None:
    try:
        return ModelConfig.from_metadata(files.metadata)
    except WeightsError as error:
        raise WeightsError(f"{files.path}: {error.message}", error.hint) from None


def _no_weights(path: Path) -> WeightsError:
    """The error that says what a folder holds in place of weights."""
    files = sorted(path.iterdir())
    found = [file.name for file in files if file.suffix == ".safetensors"]
    if found:
        return WeightsError(
            f"{path} holds {_few(found)} without {MODEL_FILE} or an index that says what they are",
            hint=f"name the file itself: {path / found[0]}",
        )
    if (path / "model_index.json").exists():
        return WeightsError(f"{path} is a diffusers folder, whose layout is not read", hint=GET_SV3D)
    for file in files:
        refuse_pickle(file)
    return WeightsError(
        f"{path} holds no weights: neither {PARAMS_FOLDER}/ nor {MODEL_FILE} with .safetensors files nor shards "
        "with an index",
        hint="name a .safetensors file, a folder of shards (model-00001-of-00003.safetensors, ... with "
        "model.safetensors.index.json), or a folder made by sv3d convert",
    )


def _check_names(path: Path, tensors: Mapping[str, TensorInfo], config: ModelConfig) -> None:
    expected = {parameter.name: parameter.shape for parameter in model_parameters(config)}
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected and not is_extra(name)]
    if missing and is_lora(tensors):
        raise _is_lora(path)
    if missing:
        absent = _absent_parts(tensors)
        raise WeightsError(
            f"{len(missing)} tensors of {config.name} are missing in {path}, the first are {_few(missing)}",
            hint=f"the file has no {', no '.join(absent)}: take what is missing from the published file"
            if absent
            else "the file is of another model, or incomplete",
        )
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors of {path} have no place in {config.name}, the first are {_few(unknown)}",
            hint=_MERGE_LORA if is_lora(unknown) else "the file is of another model",
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise WeightsError(f"{path}: {name} should have the shape {shape}, it has {tensors[name].shape}")
        if tensors[name].dtype not in (*FLOAT_DTYPES.values(), np.float64):
            raise WeightsError(
                f"{path}: {name} is {tensors[name].dtype}, weights are floating-point numbers of 8 (fp8) to 64 bits",
                hint=WIDER_FILE,
            )


def is_lora(names: Iterable[str]) -> bool:
    """Whether any tensor has a name that programs give to those of a LoRA."""
    return any(_LORA_NAMES.search(name) for name in names)


def _is_lora(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} is not an SV3D model: it is a LoRA, a set of changes to another model", hint=_MERGE_LORA
    )


def _absent_parts(names: Iterable[str]) -> list[str]:
    """The parts of a model of which a file has no tensor at all."""
    names = tuple(names)
    extra = (f"{PREFIXES['vae_encoder']}decoder.", f"{PREFIXES['vae_encoder']}post_quant_conv.")
    return [
        _PART_NAMES[part]
        for part, prefix in PREFIXES.items()
        if not any(name.startswith(prefix) and not name.startswith(extra) for name in names)
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def _overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        key: _overlaid(base[key], value) for key, value in over.items() if isinstance(base.get(key), dict)
    }
    return {**base, **over, **nested}


def _other_model(shapes: Mapping[str, Shape]) -> str | None:
    """What a file is that has some of SV3D's names but is another model; None if it may be SV3D."""
    label = shapes.get(f"{PREFIXES['unet']}label_emb.0.0.weight", ())
    over_time = f"{PREFIXES['vae_decoder']}conv_out.time_mix_conv.weight" in shapes
    if over_time or label[1:] == (FAMILIES["v3d"].vector_width,):  # SVD's width as well
        decoder = " and whose decoder mixes frames" if over_time else ""
        return (
            "Stable Video Diffusion (SVD), whose condition vector holds frame rate and motion instead of cameras"
            f"{decoder}; only sv3d train --initial takes it, for its UNet"
        )
    if label and (len(label) != 2 or family_of_width(label[1]) is None):
        return f"a model with the condition vector {label[1:]}, sv3d_u has 256 values there and sv3d_p 1280"
    return None


def _not_a_model(path: Path, shapes: Mapping[str, Shape]) -> WeightsError:
    """The error that says what a file is that lacks the tensors every SV3D model has."""
    names = list(shapes)
    starts = {name.split(".")[0] for name in names}
    unet = PREFIXES["unet"]
    absent = _absent_parts(names)
    if is_lora(names):
        return _is_lora(path)
    has_frames = any(name.startswith(unet) and ".time_stack." in name for name in names)
    if has_frames and absent:
        return WeightsError(
            f"{path} is not a whole SV3D model: it has no {', no '.join(absent)}",
            hint=f"they are in {GET_SV3D}",
        )
    if has_frames:
        return WeightsError(
            f"{path} is not a whole SV3D model: tensors are missing from which its widths follow",
            hint=GET_SV3D,
        )
    if not any(name.startswith(unet) for name in names) and starts & {"input_blocks", "down_blocks"}:
        kind = "a bare UNet in diffusers' names" if "down_blocks" in starts else "a bare UNet"
        found = f"{kind}, without the autoencoder and the image encoder"
    elif starts <= {"encoder", "decoder", "quant_conv", "post_quant_conv", "first_stage_model"} and names:
        found = "a bare VAE, an autoencoder without the rest of the model"
    elif (
        starts <= {"visual", "vision_model", "text_model", "transformer", "logit_scale", "text_projection"}
        and names
    ):
        found = "a CLIP model"
    elif any(name.startswith(unet) for name in names) and not any(".time_stack." in name for name in names):
        found = "an image diffusion model without a time axis, such as Stable Diffusion"
    else:
        found = f"something else, its {len(names)} tensors begin with {_few(names)}" if names else "empty"
    return WeightsError(f"{path} is not an SV3D model: it is {found}", hint=GET_SV3D)
