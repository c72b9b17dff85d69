"""Weights in memory, as a source of what is written to files."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.models.config import ModelConfig
from sv3d_jax.weights.key_map import Parameter, leaf_at, model_parameters
from sv3d_jax.weights.safetensors_file import TensorInfo


class TreeSource:
    """A `WeightsSource` of the parameters of a model, by part."""

    def __init__(self, params: Mapping[str, Any], config: ModelConfig):
        self.path, self.config = Path(config.name), config
        self.metadata: Mapping[str, str] = {}
        self.left_out: Sequence[str] = ()
        self.remarks: Sequence[str] = ()
        self._params = params
        self._parameters = {parameter.name: parameter for parameter in model_parameters(config)}
        self.tensors = {name: self._info(parameter) for name, parameter in self._parameters.items()}

    def stream(self, names: Sequence[str]) -> Iterator[np.ndarray]:
        """The named tensors in that order and in published layout."""
        for name in names:
            yield self._parameters[name].to_published(np.asarray(self._leaf(self._parameters[name])))

    def sha256(self) -> str:
        """A fingerprint of the values."""
        digest = hashlib.sha256()
        for name, tensor in zip(self.tensors, self.stream(list(self.tensors)), strict=True):
            digest.update(name.encode() + np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()

    def _leaf(self, parameter: Parameter) -> Any:
        return leaf_at(self._params, parameter.path)

    def _info(self, parameter: Parameter) -> TensorInfo:
        return TensorInfo(np.dtype(self._leaf(parameter).dtype), parameter.shape)
