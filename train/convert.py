"""The verb `convert`, which also accepts training runs: the EMA of their last checkpoint under published names."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.arrays import Params
from sv3d_jax.config import load_config
from sv3d_jax.errors import CheckpointError, InputError
from sv3d_jax.io.reading import reading
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.progress import Progress
from sv3d_jax.train.checkpoints import CHECKPOINTS, checkpoint_steps, read_settings
from sv3d_jax.train.config import OBJECTIVE_NAMES, TrainConfig
from sv3d_jax.train.export import trained_params
from sv3d_jax.weights import convert
from sv3d_jax.weights.config import ConvertConfig
from sv3d_jax.weights.hub import find_weights, load_weights
from sv3d_jax.weights.key_map import model_parameters
from sv3d_jax.weights.safetensors_file import TensorInfo
from sv3d_jax.weights.source import WeightsSource, open_weights

WHOLE_MODEL = "unet"  # the objective whose runs give a complete model
# The settings that determine where the other parts come from.
SETTINGS = ("objective", "weights", "initial", "seed", "trainable")


def run_convert(config: ConvertConfig, progress: Progress) -> dict[str, Any]:
    """The verb `convert`; the input is weights or the folder of a training run."""
    return convert.run_convert(config, progress, open_run_or_weights)


def open_run_or_weights(path: Path | str, ema: bool = False) -> WeightsSource:
    """The weights of a training run, the shipped model for "mini" if no such file exists, else as `open_weights`."""
    path = Path(path)
    if checkpoint_steps(path / CHECKPOINTS):
        return RunSource(path)
    return open_weights(find_weights("mini") if path == Path("mini") and not path.exists() else path, ema=ema)


class RunSource:
    """The model of a run that trained the UNet: the EMA of the UNet, and the VAE and image encoder that it used."""

    metadata: Mapping[str, str] = {}
    left_out: Sequence[str] = ()
    remarks: Sequence[str] = ()

    def __init__(self, run: Path):
        self.path = run
        settings = read_settings(run / CHECKPOINTS)
        with reading(run / CHECKPOINTS, "are of a run without a model's description", error=CheckpointError):
            objective, described = OBJECTIVE_NAMES[settings["objective"]], settings["model"]
        if settings["objective"] != WHOLE_MODEL:
            raise InputError(
                f"{run} has trained only the {objective}, which is not a complete model",
                hint="sv3d train --export puts it into a model folder",
            )
        given = {name: settings[name] for name in SETTINGS if name in settings}
        config = load_config(TrainConfig, None, {"output": run, **given})
        model = ModelConfig.from_dict(described)
        step, trained, settings = trained_params(config, model)
        parts, _, _ = load_weights(config.weights, dtype="float32")
        record = {"step": step, "objective": config.objective, "weights": config.weights}
        self.config = dataclasses.replace(model, training={**model.training, WHOLE_MODEL: record})
        self._params: Params = parts | trained
        self._parameters = {parameter.name: parameter for parameter in model_parameters(self.config)}
        self.tensors = {
            name: TensorInfo(np.dtype(np.float32), tuple(tensor.shape))
            for name, tensor in zip(self._parameters, self.stream(list(self._parameters)), strict=True)
        }

    def stream(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        """The named tensors in published layout."""
        for name in names:
            leaf: Any = self._params
            for key in self._parameters[name].path:
                leaf = leaf[key]
            yield self._parameters[name].to_published(np.asarray(leaf))

    def sha256(self) -> str:
        """SHA-256 of names and values."""
        digest = hashlib.sha256()
        for name, tensor in zip(self._parameters, self.stream(list(self._parameters)), strict=True):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor))
        return digest.hexdigest()
