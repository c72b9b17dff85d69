"""Finding weights by name, path or hub id, and loading them as a parameter tree."""

import errno
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.devices import cache_directory
from sv3d_jax.errors import InputError, SV3DError, WeightsError
from sv3d_jax.io.documents import read_json
from sv3d_jax.io.outputs import write_json
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.families import FAMILIES
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.weights.convert import check_variant, convert, staged
from sv3d_jax.weights.key_map import PREFIXES, leaf_at, model_parameters, tree_from_leaves
from sv3d_jax.weights.safetensors_file import TensorInfo, write_safetensors
from sv3d_jax.weights.source import (
    EXTRA_FILE,
    FLOAT_DTYPES,
    MODEL_FILE,
    PARAMS_FOLDER,
    WeightsSource,
    absent_weights,
    cast,
    open_weights,
    shipped,
)

MINI_NOTE = (
    "mini is a small model for trying things out: it knows one kind of object, upright figures on a white ground,"
    " at {size} px; other objects come out as such figures. For those: SV3D's own weights, by --weights FILE or, in"
    " Python, from_pretrained(FILE)"
)
MAX_SHIPPED_FILE = 15 << 20  # a single file of the package stays under 16 MiB
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_SOURCE_FILE = "source.json"  # in a cached conversion: path and sha256 of the file it was made from


def load_weights(
    source: str | Path = "mini",
    variant: str = "auto",
    dtype: str | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], ModelConfig, dict[str, str]]:
    """Parameter tree of numpy arrays, configuration, and where they came from (`source`, `path`, `sha256`, `remarks`).

    `source` is "mini", a folder, a .safetensors file or a hub id with an optional @revision. A single file is
    converted once, and the conversion is kept in the user's cache. `remarks` says what was not in published form, and
    is absent if all was.
    """
    path = find_weights(str(source), variant)
    weights = open_weights(path)
    check_variant(weights, variant)
    origin = {"source": str(source), "path": str(path)}
    if weights.remarks:
        origin["remarks"] = "; ".join(weights.remarks)
    if path.is_file() and path.suffix == ".safetensors":
        weights, sha256 = _converted(weights, progress or NullProgress())
    else:
        sha256 = weights.sha256()
    parameters = model_parameters(weights.config)
    tensors = weights.stream([parameter.name for parameter in parameters])
    target = FLOAT_DTYPES[dtype] if dtype else None
    params = tree_from_leaves(
        (parameter.path, parameter.to_tree(cast(tensor, f"{path}: {parameter.name}", target)))
        for parameter, tensor in zip(parameters, tensors, strict=True)
    )
    return params, weights.config, origin | {"sha256": sha256}


def read_model_config(source: str | Path = "mini", variant: str = "auto") -> ModelConfig:
    """The configuration of the model that weights are of, from their names and shapes alone."""
    weights = open_weights(find_weights(str(source), variant))
    check_variant(weights, variant)
    return weights.config


def find_weights(source: str, variant: str = "auto") -> Path:
    """The file or folder that `source` names; a hub id is downloaded.

    Raises WeightsError if there is none, and InputError for a variant that is neither "auto" nor in `FAMILIES`.
    """
    if variant not in ("auto", *FAMILIES):
        raise InputError(
            f"variant must be one of auto, {', '.join(FAMILIES)}, got {variant!r}",
            hint='the model, not its precision: that is dtype="bfloat16"' if "16" in variant else None,
        )
    if source == "mini":
        return shipped()
    path = Path(source).expanduser()
    if path.exists():
        return path
    if _HUB_ID.fullmatch(source) and path.suffix != ".safetensors":
        return _from_hub(source, variant)
    raise absent_weights(path, "the same command with --weights sv3d_p.safetensors")


def write_shipped(params: Mapping[str, Any], config: ModelConfig, directory: Path | str) -> None:
    """Write a model as the package ships it: `model.toml`, and for each part bfloat16 files with published names."""
    dtype = FLOAT_DTYPES["bfloat16"]
    with staged(Path(directory)) as folder:
        folder.mkdir()
        (folder / MODEL_FILE).write_text(config.to_toml(), encoding="utf-8")
        for part in PREFIXES:
            tensors = {
                parameter.name: cast(
                    parameter.to_published(np.asarray(leaf_at(params, parameter.path))), parameter.name, dtype
                )
                for parameter in model_parameters(config, [part])
            }
            shards = _shards(tensors)
            for index, names in enumerate(shards):
                name = part if len(shards) == 1 else f"{part}-{index + 1}"
                infos = {key: TensorInfo(dtype, tensors[key].shape) for key in names}
                write_safetensors(folder / f"{name}.safetensors", infos, (tensors[key] for key in names), {})


def _converted(weights: WeightsSource, progress: Progress) -> tuple[WeightsSource, str]:
    """A file's weights from their conversion in the cache, which is made now if there is none, and their sha256."""
    status = weights.path.stat()
    identity = f"{weights.path.resolve()} {status.st_size} {status.st_mtime_ns}"
    name = f"{weights.config.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    folder = cache_directory() / "weights" / name
    if (sha256 := _kept_sha256(folder)) is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            convert(weights, folder, progress=progress)
        except SV3DError as error:
            hint = f"to keep it elsewhere: sv3d convert {weights.path} FOLDER, then --weights FOLDER"
            raise type(error)(error.message, hint if error.exit_code == 5 else error.hint) from error
        sha256 = weights.sha256()
        write_json(folder / _SOURCE_FILE, {"path": str(weights.path), "sha256": sha256})
    return open_weights(folder), sha256


def _kept_sha256(folder: Path) -> str | None:
    """SHA-256 of the file that a folder of the cache was made from; None if the folder is unfinished or damaged."""
    try:
        source = read_json(folder / _SOURCE_FILE)
    except InputError:
        return None
    sha256 = source.get("sha256") if isinstance(source, dict) else None
    return sha256 if isinstance(sha256, str) else None


def _from_hub(source: str, variant: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    repository, _, revision = source.partition("@")
    file = f"{FAMILIES['p' if variant == 'auto' else variant].name}.safetensors"
    parts = [f"{part}*.safetensors" for part in PREFIXES]
    wanted = [file, MODEL_FILE, f"{PARAMS_FOLDER}/*", EXTRA_FILE, *parts]
    page = f"https://huggingface.co/{repository}"
    command = f"hf download {repository} {file}" + (f" --revision {revision}" if revision else "")
    cache = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    searched = [str(Path(source).absolute()), str(cache), page]
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except OSError as error:  # every error of the hub's client is one
        if error.errno == errno.ENOSPC:
            raise
        raise _hub_error(error, source, searched, command) from error
    for found in (folder / file, folder):
        if found.is_file() or (found / MODEL_FILE).is_file():
            return found
    raise _not_found(source, searched, command)


def _hub_error(error: OSError, source: str, searched: list[str], command: str) -> WeightsError:
    from huggingface_hub.errors import GatedRepoError

    page = searched[-1]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return _not_found(source, [*searched[:-1], f"{page} (no connection)"], command)
    if isinstance(error, GatedRepoError) or status == 403:
        return WeightsError(
            f"{page} gives its files only to those who have accepted the licence (HTTP {status})",
            hint=f"open {page}, log in and accept the licence; then run: hf auth login && {command}",
        )
    if status in (401, 404):
        return WeightsError(
            f"{source} does not exist at {page}, or is not open to you (HTTP {status})",
            hint=f"check the name; for a private model run: hf auth login && {command}",
        )
    return WeightsError(f"{page} answered HTTP {status}", hint=f"try again later: {command}")


def _not_found(source: str, searched: list[str], command: str) -> WeightsError:
    places = "; ".join(searched)
    return WeightsError(
        f"no weights {source}; searched: {places}",
        hint=f"with a network: {command}; then the same command again",
    )


def _shards(tensors: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Names in groups, each small enough for one shipped file."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > MAX_SHIPPED_FILE:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards
