"""Conversion of weights between published safetensors and Orbax folders, tensor by tensor in bounded memory."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from sv3d_jax import signals
from sv3d_jax.errors import InputError, OutputError, WeightsError, is_disk_full
from sv3d_jax.io.outputs import require_space
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.weights.checkpoint import save_leaves
from sv3d_jax.weights.config import ConvertConfig
from sv3d_jax.weights.key_map import model_parameters
from sv3d_jax.weights.safetensors_file import TensorInfo, refuse_pickle, write_safetensors
from sv3d_jax.weights.source import (
    EXTRA_FILE,
    FLOAT_DTYPES,
    MODEL_FILE,
    PARAMS_FOLDER,
    WeightsSource,
    cast,
    inferred_config,
    open_weights,
)


def run_convert(
    config: ConvertConfig,
    progress: Progress,
    open_source: Callable[..., WeightsSource] = open_weights,
) -> dict[str, Any]:
    """Convert `config.input` to `config.output`; returns counts of the tensors, under `--json` their names."""
    start = time.monotonic()
    source = open_source(config.input, ema=config.ema)
    check_variant(source, config.variant)
    refuse_pickle(config.output)
    if config.output.exists() and not config.overwrite:
        raise InputError(f"{config.output} exists", hint="--overwrite replaces it")
    used = {parameter.name for parameter in model_parameters(source.config)}
    tensors = {
        "used": [name for name in source.tensors if name in used],
        "unused": [name for name in source.tensors if name not in used],
        "left_out": list(source.left_out),  # stored by a trainer or another program, with no place here
        "missing": [],  # an input that lacks a tensor has been refused
    }
    account = {
        "input": str(config.input),
        "output": str(config.output),
        "model": source.config.name,
        "variant": source.config.variant,
        "bytes": sum(info.nbytes for info in _infos(source, config.dtype).values()),
        **(tensors if config.json else {key: len(names) for key, names in tensors.items()}),
    }
    if config.dry_run:
        return account
    convert(source, config.output, config.dtype, progress)
    if config.verify:
        verify(source, open_weights(config.output), config.dtype, progress)
    return account | {"verified": config.verify, "seconds": round(time.monotonic() - start, 2)}


def convert(
    source: WeightsSource | str | Path,
    output: str | Path,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write weights as a file if `output` ends in .safetensors, else as a folder; completely or not at all.

    source: weights that were opened, or a path of some, as `sv3d_p.safetensors`. dtype: type of the written
    floating-point tensors, as "bfloat16"; None keeps that of each. Raises WeightsError for a source that is not a
    model, OutputError where it cannot be written.
    """
    progress, output = progress or NullProgress(), Path(output)
    if isinstance(source, (str, Path)):
        source = open_weights(source)
    _check_space(output, sum(info.nbytes for info in _infos(source, dtype).values()))
    progress.stage("convert", total=len(source.tensors))
    with staged(output) as path:
        (_write_file if output.suffix == ".safetensors" else _write_folder)(source, path, dtype, progress)


def verify(source: WeightsSource, written: WeightsSource, dtype: str | None, progress: Progress) -> None:
    """Compare every value of `written` with that of `source`, bit for bit; WeightsError at the first difference."""
    progress.stage("verify", total=len(source.tensors))
    names = list(source.tensors)
    if set(names) != set(written.tensors):
        raise WeightsError(f"{written.path} does not hold the tensors of {source.path}")
    both = zip(names, _stream(source, names, dtype, progress), written.stream(names), strict=True)
    for name, original, read in both:
        if original.dtype != read.dtype or original.tobytes() != read.tobytes():
            raise WeightsError(
                f"{written.path}: {name} differs from {source.path}", hint="is the disk in order?"
            )


def check_variant(source: WeightsSource, variant: str) -> None:
    """Raise a WeightsError if the weights are not of the variant asked for."""
    if variant not in ("auto", source.config.variant):
        raise WeightsError(
            f"{source.path} holds {source.config.name}, of variant {source.config.variant}, not {variant}",
            hint=f"leave out --variant {variant}, or name weights of that variant",
        )


def _write_file(source: WeightsSource, path: Path, dtype: str | None, progress: Progress) -> None:
    infos = _infos(source, dtype)
    names = sorted(infos, key=lambda name: -infos[name].dtype.itemsize)  # so that every tensor begins aligned
    metadata = dict(source.metadata)
    if not _is_told_by_shapes(source.config, infos):
        metadata |= source.config.to_metadata()
    write_safetensors(
        path, {name: infos[name] for name in names}, _stream(source, names, dtype, progress), metadata
    )


def _write_folder(source: WeightsSource, directory: Path, dtype: str | None, progress: Progress) -> None:
    directory.mkdir()
    parameters = model_parameters(source.config)
    names = [parameter.name for parameter in parameters]
    tensors = _stream(source, names, dtype, progress)
    save_leaves(
        directory / PARAMS_FOLDER,
        ((parameter.path, parameter.to_tree(next(tensors))) for parameter in parameters),
    )
    extra = sorted(set(source.tensors) - set(names))
    infos = _infos(source, dtype)
    write_safetensors(
        directory / EXTRA_FILE,
        {name: infos[name] for name in extra},
        _stream(source, extra, dtype, progress),
        source.metadata,
    )
    (directory / MODEL_FILE).write_text(source.config.to_toml(), encoding="utf-8")


def _stream(
    source: WeightsSource, names: list[str], dtype: str | None, progress: Any
) -> Iterator[np.ndarray]:
    for name, tensor in zip(names, source.stream(names), strict=True):
        yield cast(tensor, f"{source.path}: {name}", FLOAT_DTYPES[dtype] if dtype else None)
        progress.advance()


def _infos(source: WeightsSource, dtype: str | None) -> dict[str, TensorInfo]:
    """Types and shapes as they will be written."""
    return {
        name: TensorInfo(FLOAT_DTYPES[dtype], info.shape) if dtype and info.dtype.kind in "fV" else info
        for name, info in source.tensors.items()
    }


def _is_told_by_shapes(config: ModelConfig, infos: dict[str, TensorInfo]) -> bool:
    """Whether the configuration follows from the shapes, so that a file needs no description of it in its metadata."""
    if config.training or not config.family.known_by_width:
        return False
    return config == inferred_config({name: info.shape for name, info in infos.items()})


def _check_space(output: Path, needed: int) -> None:
    parent = output.absolute().parent
    if not parent.is_dir():
        raise OutputError(
            f"{parent} does not exist, so {output} cannot be written", hint=f"mkdir -p {parent}"
        )
    require_space(output, int(1.05 * needed), "the converted model")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A path to write to, renamed to `output` at the end; what a killed run left behind is removed.

    Raises an OutputError if another run is writing `output`, or if it cannot be written.
    """
    staging = output.absolute().parent / f".{output.name}.tmp"
    try:
        if staging.is_symlink():
            staging.unlink()  # a folder elsewhere must neither be emptied nor written to
        staging.mkdir(exist_ok=True)
        if (staging / "lock").is_symlink():
            (staging / "lock").unlink()
        with FileLock(staging / "lock", timeout=0), signals.temporary(staging):
            for left in staging.iterdir():
                if left.name != "lock":
                    _remove(left)
            yield staging / output.name
            if output.exists():
                output.rename(staging / "replaced")
            (staging / output.name).rename(output)
            shutil.rmtree(staging)
    except Timeout:
        raise OutputError(f"another run is writing {output}", hint="wait for it to end") from None
    except Exception as error:
        if not isinstance(error, OSError) and not is_disk_full(error):
            raise
        reason = getattr(error, "strerror", None) or "no space left on the disk"
        raise OutputError(
            f"cannot write {output}: {reason}", hint="is the disk full or read-only?"
        ) from error


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
