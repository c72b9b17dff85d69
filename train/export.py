"""Export of a run's checkpoint to a model folder with published key names; the shipped weights are made this way."""

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sv3d_jax.arrays import Params
from sv3d_jax.errors import CheckpointError
from sv3d_jax.io.outputs import write_atomic
from sv3d_jax.io.reading import reading
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.progress import Progress
from sv3d_jax.train.checkpoints import CHECKPOINTS, checkpoint_steps, read_checkpoint
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.data.latents import measure_latent_factor
from sv3d_jax.train.data.orbits import render_pool
from sv3d_jax.train.initial import PARTS, first_trainable
from sv3d_jax.train.objectives import init_params, read_model
from sv3d_jax.train.trainable import fingerprint
from sv3d_jax.weights.hub import load_weights, write_shipped

LOG_LINES = 400


def export_run(config: TrainConfig, progress: Progress) -> dict[str, Any]:
    """Write the EMA weights of the run's last checkpoint into the model folder `config.export`.

    Low-rank adapters are merged into their kernels. Parts that the run did not train stay as they are in the folder; in
    a new folder they are the ones that the UNet was trained with, and randomly initialised for the other objectives.
    `model.toml` records how each part was trained, and `<objective>[_continued]_log.jsonl` holds the metrics.
    """
    objective, target, run = config.objective, Path(config.export), config.output
    model = read_model(config.model)
    step, trained, settings = trained_params(config, model)

    # A run that started from given weights does not replace the record of the run that made them.
    stage = f"{objective}_continued" if "initial" in settings else objective
    logs = {path.name: path.read_bytes() for path in target.glob("*_log.jsonl")}
    if (target / "model.toml").exists():
        params, earlier, _ = load_weights(str(target), dtype="float32")
    elif objective == "unet":
        params, earlier, _ = load_weights(config.weights, dtype="float32")
    else:
        params, earlier = _fresh(model), model
    # The scale of the latents belongs to the autoencoder.
    factor = earlier.latent_factor
    if objective == "autoencoder":
        pool = render_pool(config.data_dir or run / "data", config.data, progress)
        factor = measure_latent_factor(trained["vae_encoder"], model, pool)
    with reading(run / "metrics.jsonl", "is no log of a run", error=CheckpointError):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        logged = [
            (int(line["step"]), float(line["step_s"])) for line in map(json.loads, lines) if "step_s" in line
        ]
    record = {"step": step, "seconds": _seconds(logged), **_device(), "settings": _without_none(settings)}
    model = dataclasses.replace(model, latent_factor=factor, training={**earlier.training, stage: record})
    write_shipped(params | {part: trained[part] for part in PARTS[objective]}, model, target)
    logs[f"{stage}_log.jsonl"] = "".join(f"{line}\n" for line in _thinned(lines)).encode()
    for name, text in logs.items():
        write_atomic(target / name, text)
    return {"weights": str(target), "step": step}


def trained_params(config: TrainConfig, model: ModelConfig) -> tuple[int, Params, dict[str, Any]]:
    """Step and EMA weights of the run's last checkpoint, its frozen weights included, and its settings."""
    run = config.output
    if not (steps := checkpoint_steps(run / CHECKPOINTS)):
        raise CheckpointError(f"{run} has no checkpoint to export")
    arrays, settings = read_checkpoint(run / CHECKPOINTS, steps[-1], "ema/")
    trained = _tree({name.removeprefix("ema/"): array for name, array in arrays.items()})
    if config.trainable.layers != "all":
        trainable = first_trainable(config, model)
        if fingerprint(trainable.frozen) != settings["frozen_fingerprint"]:
            raise CheckpointError(
                f"{config.initial} is not what {run} started from, so its frozen layers cannot be restored",
                hint="give the same --initial and settings as in the run",
            )
        trained = trainable.join(trained, trainable.frozen)
    return steps[-1], trained, settings


def _fresh(model: ModelConfig) -> Params:
    params: Params = {}
    for objective in PARTS:
        params |= init_params(objective, model, jax.random.key(0))
    return params


def _tree(arrays: dict[str, np.ndarray]) -> Params:
    tree: Params = {}
    for name, array in arrays.items():
        *branches, leaf = name.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[leaf] = array
    return tree


def _thinned(lines: list[str]) -> list[str]:
    """All validation lines and the first twenty lines, and every n-th of the others."""
    stride = -(-len(lines) // LOG_LINES)
    return [line for i, line in enumerate(lines) if i < 20 or i % stride == 0 or "val_" in line]


def _seconds(logged: list[tuple[int, float]]) -> float:
    """Time spent in training, from steps that were logged: those since the one logged before, times their mean time."""
    before = [0, *(step for step, _ in logged)]
    return round(
        sum((step - start) * seconds for start, (step, seconds) in zip(before, logged, strict=False)), 1
    )


def _device() -> dict[str, str]:
    device = jax.devices()[0]
    return {"device": device.device_kind, "machine": platform.machine(), "jax": jax.__version__}


def _without_none(value: Any) -> Any:
    """The values without None, which TOML cannot represent."""
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return value
