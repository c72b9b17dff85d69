"""Several safetensors files read as one: folders of shards with an index, as the Hugging Face libraries write them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sv3d_jax.errors import WeightsError
from sv3d_jax.io.documents import read_json
from sv3d_jax.weights.safetensors_file import MAX_TENSORS, SafetensorsFile, TensorInfo

INDEX_SUFFIX = ".safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d+)-of-(?P<count>\d+)\.safetensors")
_AGAIN = "download the folder again"


class TensorFiles:
    """The tensors of one or several files by their stored names; WeightsError for a name that two files have."""

    def __init__(self, path: Path, files: Sequence[SafetensorsFile]):
        self.path = path
        self.files = [file.path for file in files]
        self._file: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.tensors:
                if name in self._file:
                    raise WeightsError(
                        f"{path}: {name!r} is in {self._file[name].path.name} and in {file.path.name}",
                        hint="the files belong to different models, or to the same model saved twice: keep one of them",
                    )
                self._file[name] = file
            if len(self._file) > MAX_TENSORS:
                raise WeightsError(f"{path} holds more than {MAX_TENSORS} tensors in its files", hint=_AGAIN)
        self.tensors: Mapping[str, TensorInfo] = {
            name: file.tensors[name] for name, file in self._file.items()
        }
        self.metadata = {key: value for file in files for key, value in file.metadata.items()}

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor."""
        return self._file[name].read(name)


def open_files(path: Path) -> TensorFiles | None:
    """The tensors of a safetensors file, an index or a folder of shards; None for a folder without shards.

    Raises a WeightsError if the index is damaged or names files that are not beside it, if a shard is missing or lacks
    a tensor that the index lists for it, and if `path` is a single shard of several.
    """
    if path.is_dir():
        indexes = sorted(path.glob(f"*{INDEX_SUFFIX}"))
        if len(indexes) > 1:
            raise WeightsError(
                f"{path} holds {len(indexes)} indexes: {', '.join(index.name for index in indexes)}",
                hint="name the index of the weights to read",
            )
        return _indexed(path, indexes[0]) if indexes else _numbered(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _indexed(path, path)
    if (shard := _SHARD.fullmatch(path.name)) and int(shard["count"]) > 1:
        raise WeightsError(
            f"{path} is one of {int(shard['count'])} shards", hint=f"name the folder of all: {path.parent}"
        )
    return TensorFiles(path, [SafetensorsFile(path)])


def _indexed(path: Path, index: Path) -> TensorFiles:
    """All tensors of the files that an index names."""
    shard_of = _weight_map(index)
    names = sorted(set(shard_of.values()))
    for name in names:
        if "/" in name or "\\" in name or name in ("", ".", "..") or not name.endswith(".safetensors"):
            raise WeightsError(
                f"{index} names {name!r}, which is no .safetensors file beside it", hint=_AGAIN
            )
    _check_present(index.parent, names, index)
    shards = {name: SafetensorsFile(index.parent / name) for name in names}
    for tensor, name in shard_of.items():
        if tensor not in shards[name].tensors:
            raise WeightsError(
                f"{index} says that {tensor!r} is in {name}, which does not hold it",
                hint=f"index and shards are of different weights: {_AGAIN}",
            )
    return TensorFiles(path, list(shards.values()))


def _numbered(folder: Path) -> TensorFiles | None:
    """The tensors of shards without an index; whether all are there is known from their names."""
    found = [match for file in sorted(folder.glob("*.safetensors")) if (match := _SHARD.fullmatch(file.name))]
    if not found:
        return None
    sets = sorted({(shard["stem"], shard["count"]) for shard in found})
    if len(sets) > 1:
        raise WeightsError(
            f"{folder} holds shards of several weights: {', '.join(f'{stem} of {n}' for stem, n in sets)}",
            hint="move each model's shards into a folder of their own",
        )
    (stem, count), digits = sets[0], len(found[0]["index"])
    if int(count) > 10_000:
        raise WeightsError(f"{folder / found[0].string} says that it is one of {count} shards")
    names = [f"{stem}-{number:0{digits}d}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
    _check_present(folder, names, folder)
    return TensorFiles(folder, [SafetensorsFile(folder / name) for name in names])


def _check_present(folder: Path, names: Sequence[str], index: Path) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"{index}: {len(missing)} of {len(names)} shards are missing, first {missing[0]}",
            hint=f"put the missing files into {folder}",
        )


def _weight_map(index: Path) -> dict[str, str]:
    """For each tensor, the file that an index says it is in."""

    document = read_json(index, hint=_AGAIN, error=WeightsError)
    shards = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(s, str) for s in shards.values()):
        raise WeightsError(
            f"{index} is not an index: it has no weight_map from tensors to files", hint=_AGAIN
        )
    return shards
