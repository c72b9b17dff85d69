"""Weights on disk, whatever their form: which model they are, and their tensors under published names.

A source is a safetensors file, a folder with `model.toml` and such files (as the package ships), or a folder with
`model.toml` and an Orbax checkpoint. All are judged by names and shapes before any value is read.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from sv3d_jax.errors import InputError, WeightsError
from sv3d_jax.models.config import METADATA_KEY, ModelConfig
from sv3d_jax.weights.checkpoint import SavedTree
from sv3d_jax.weights.key_map import PREFIXES, Shape, infer_config, is_extra, model_parameters
from sv3d_jax.weights.safetensors_file import SafetensorsFile, TensorInfo, refuse_pickle

MODEL_FILE = "model.toml"
PARAMS_FOLDER = "params"
EXTRA_FILE = "extra.safetensors"
FLOAT_DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_GET_SV3D = "the published weights: hf download stabilityai/sv3d sv3d_p.safetensors"


class WeightsSource(Protocol):
    """Weights that have passed the check of names and shapes."""

    path: Path
    config: ModelConfig
    tensors: Mapping[str, TensorInfo]  # by published name, unused ones included
    metadata: Mapping[str, str]  # of a file from elsewhere, kept for the way back

    def stream(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        """The named tensors in their order and published layout, few at a time in memory."""
        ...

    def sha256(self) -> str:
        """A fingerprint of the values; that of a single file is the file's own SHA-256."""
        ...


def open_weights(path: Path | str, stored: Mapping[str, Any] | None = None) -> WeightsSource:
    """The weights at `path`, a file or a folder.

    `stored` fills in fields of the configuration that a file without metadata of ours cannot tell, nested as in
    `ModelConfig.to_dict`.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there are no weights at {path}")
    if path.is_file():
        return _FileSource(path, [SafetensorsFile(path)], stored)
    if (path / PARAMS_FOLDER).is_dir():
        return _FolderSource(path)
    if (path / MODEL_FILE).is_file() and (files := sorted(path.glob("*.safetensors"))):
        return _FileSource(path, [SafetensorsFile(file) for file in files], read_model_file(path).to_dict())
    for file in sorted(path.iterdir()):
        refuse_pickle(file)
    raise WeightsError(
        f"{path} holds no weights: neither {PARAMS_FOLDER}/ nor {MODEL_FILE} with .safetensors files",
        hint="name a .safetensors file, or a folder made by sv3d convert",
    )


def read_model_file(directory: Path) -> ModelConfig:
    """The configuration in a folder's `model.toml`."""
    path = directory / MODEL_FILE
    try:
        return ModelConfig.from_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error.message}", error.hint) from None


def inferred_config(shapes: Mapping[str, Shape], stored: Mapping[str, Any] | None = None) -> ModelConfig:
    """The configuration that shapes tell, published values for what they do not; `stored` fields win over both."""
    return ModelConfig.from_dict(_overlaid(_with_name(infer_config(shapes)), stored or {}))


def cast(tensor: np.ndarray, name: str, dtype: np.dtype | None) -> np.ndarray:
    """A tensor in another floating dtype (None: its own); values that are not finite are refused."""
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


class _FileSource:
    """One or several safetensors files."""

    def __init__(self, path: Path, files: Sequence[SafetensorsFile], stored: Mapping[str, Any] | None):
        self.path = path
        self._file = {name: file for file in files for name in file.tensors}
        self.tensors = {name: file.tensors[name] for name, file in self._file.items()}
        metadata = {key: value for file in files for key, value in file.metadata.items()}
        own = ModelConfig.from_metadata(metadata)
        self.metadata = {key: value for key, value in metadata.items() if key != METADATA_KEY}
        shapes = {name: info.shape for name, info in self.tensors.items()}
        if problem := _other_model(shapes):
            raise WeightsError(f"{path} is not an SV3D model: it is {problem}", hint=_GET_SV3D)
        try:
            self.config = own or inferred_config(shapes, stored)
        except (KeyError, ValueError, ZeroDivisionError, IndexError):
            raise _not_a_model(path, shapes) from None
        _check_names(path, self.tensors, self.config)

    def stream(self, names: Iterable[str]) -> Iterator[np.ndarray]:
        return (self._file[name].read(name) for name in names)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for path in sorted({file.path for file in self._file.values()}):
            _feed(digest, path)
        return digest.hexdigest()


class _FolderSource:
    """A folder made by `sv3d convert`: an Orbax checkpoint, and what the model does not use beside it."""

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
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)


def _check_names(path: Path, tensors: Mapping[str, TensorInfo], config: ModelConfig) -> None:
    expected = {parameter.name: parameter.shape for parameter in model_parameters(config)}
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected and not is_extra(name)]
    if missing:
        raise WeightsError(
            f"{len(missing)} tensors of {config.name} are missing in {path}, first {_few(missing)}",
            hint="the file is of another model, or not whole",
        )
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors of {path} have no place in {config.name}, first {_few(unknown)}",
            hint="the file is of another model",
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise WeightsError(f"{path}: {name} should have the shape {shape}, it has {tensors[name].shape}")
        if tensors[name].dtype not in (*FLOAT_DTYPES.values(), np.float64):
            raise WeightsError(f"{path}: {name} is {tensors[name].dtype}, weights are floating-point numbers")


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def _overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        key: _overlaid(base[key], value) for key, value in over.items() if isinstance(base.get(key), dict)
    }
    return {**base, **over, **nested}


def _with_name(values: dict[str, Any]) -> dict[str, Any]:
    return {"name": f"sv3d_{values['variant']}", **values}


def _other_model(shapes: Mapping[str, Shape]) -> str | None:
    """What a file with some of SV3D's names is, where it is something else."""
    label = shapes.get(f"{PREFIXES['unet']}label_emb.0.0.weight", ())
    over_time = f"{PREFIXES['vae_decoder']}conv_out.time_mix_conv.weight" in shapes
    if over_time or label[1:] == (768,):
        decoder = " and whose decoder mixes frames" if over_time else ""
        return (
            "Stable Video Diffusion (SVD), whose condition vector holds frame rate and motion instead of cameras"
            f"{decoder}; only sv3d train --initial takes it, for its UNet"
        )
    if label and label[1:] not in ((256,), (1280,)):
        return f"a model with the condition vector {label[1:]}, sv3d_u has 256 values there and sv3d_p 1280"
    return None


def _not_a_model(path: Path, shapes: Mapping[str, Shape]) -> WeightsError:
    """Say what a file is that lacks the tensors every SV3D model has."""
    names = list(shapes)
    starts = {name.split(".")[0] for name in names}
    unet = PREFIXES["unet"]
    if any(mark in name for name in names for mark in ("lora_", ".lora.", ".lora_")):
        found = "a LoRA, a set of changes to another model"
    elif not any(name.startswith(unet) for name in names) and starts & {"input_blocks", "down_blocks"}:
        found = "a bare UNet, without the autoencoder and the image tower"
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
    return WeightsError(
        f"{path} is not an SV3D model: it is {found}", hint="SV3D: hf download stabilityai/sv3d"
    )
