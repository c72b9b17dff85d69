"""The training loop: batches in, state along, metrics out; saved and resumed exactly."""

import functools
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sv3d_jax.errors import OutputError, Preempted, SV3DError
from sv3d_jax.io.outputs import OutputFolder, check_output_parent, write_json
from sv3d_jax.progress import Progress
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.export import export_run
from sv3d_jax.train.initial import first_trainable, fresh_params
from sv3d_jax.train.objectives import Objective, make_objective, read_model
from sv3d_jax.train.optimizer import learning_rate, make_optimizer
from sv3d_jax.train.state import (
    checkpoint_steps,
    load_checkpoint,
    load_latest,
    new_state,
    save_checkpoint,
)
from sv3d_jax.train.step import train_step
from sv3d_jax.train.trainable import Trainable, fingerprint
from sv3d_jax.train.watch import Meter, MetricsLog
from sv3d_jax.weights.hub import find_weights

MAX_SKIPPED_IN_ROW = 5
MAX_FAILED_SAVES = 3  # in a row
FIRST_STEPS = 10  # logged one by one, so that a run from the same seed can be compared at once
NOT_RESULTS = ("export", "resume", "data_dir", "log_every", "validate_every", "save_every")


def run_train(config: TrainConfig, progress: Progress) -> dict[str, Any]:
    """Train until max_steps, or until asked to end; a run that was cut short goes on from its last checkpoint."""
    if config.export:
        return export_run(config, progress)
    if config.dry_run:
        return plan(config)
    objective = make_objective(config, progress)
    optimizer = make_optimizer(config.optimizer, config.max_steps)
    trainable = first_trainable(config, objective.model)
    settings = run_settings(config, objective, trainable)
    directory = config.output / "checkpoints"
    key = jax.random.key(config.seed)

    with OutputFolder(config.output, settings, config.overwrite) as folder:
        if config.overwrite or config.resume == "never":
            shutil.rmtree(directory, ignore_errors=True)
        state = new_state(trainable.initial, optimizer)
        if config.resume == "auto":
            state = load_latest(directory, state, settings) or state
        elif config.resume != "never":
            state = load_checkpoint(directory, state, int(config.resume), settings)
        mesh = Mesh(np.array(jax.devices()), ("data",))
        everywhere = NamedSharding(mesh, PartitionSpec())
        state, frozen = jax.device_put((state, trainable.frozen), everywhere)

        def take_step(state, frozen, batch, key):
            return train_step(
                state,
                batch,
                key,
                loss=lambda params, *given: objective.loss(trainable.join(params, frozen), *given),
                optimizer=optimizer,
                ema_decay=config.optimizer.ema_decay,
            )

        step = jax.jit(take_step, donate_argnums=0, out_shardings=everywhere)
        rate = learning_rate(config.optimizer, config.max_steps)
        with _SignalFlag(signal.SIGTERM) as stop, MetricsLog(config.output, int(state.step)) as log:
            progress.stage("train", total=config.max_steps)
            progress.advance(int(state.step))
            meter, failed_saves = Meter(), 0
            first = int(state.step)
            batches = objective.batches(first, slice(0, config.batch_size))
            for index in range(first, config.max_steps):
                began = time.perf_counter()
                batch = next(batches)
                images = objective.batch_images(batch)
                batch = _shared_out(batch, mesh)
                loaded = time.perf_counter()
                state, metrics = step(state, frozen, batch, jax.random.fold_in(key, index))
                metrics = jax.device_get(metrics)
                meter.add(images, loaded - began, time.perf_counter() - began)
                progress.advance()
                done = index + 1
                if int(state.skipped_in_row) >= MAX_SKIPPED_IN_ROW:
                    _give_up(config.output, done, metrics)
                if done <= FIRST_STEPS or done % config.log_every == 0 or done == config.max_steps:
                    numbers = {name: float(value) for name, value in metrics.items()}
                    speed = meter.take()
                    log.write(
                        step=done,
                        **numbers,
                        learning_rate=float(rate(index)),
                        **speed,
                        skipped=int(state.skipped),
                    )
                if done % config.validate_every == 0 or done == config.max_steps:
                    log.write(step=done, **objective.validate(trainable.join(state.ema, frozen)))
                if done % config.save_every == 0 or done == config.max_steps or stop.raised:
                    try:
                        save_checkpoint(directory, state, settings)
                        failed_saves = 0
                    except OutputError as error:  # the disk may have room again at the next interval
                        failed_saves += 1
                        progress.note(f"step {done}: not saved: {error}")
                        if failed_saves == MAX_FAILED_SAVES or done == config.max_steps or stop.raised:
                            raise
                if stop.raised and done < config.max_steps:
                    raise Preempted(f"stopped after step {done}; its state is saved in {directory}")
        folder.write_run_json(objective=config.objective, model=objective.model.to_dict())
    return {"step": int(state.step), "skipped": int(state.skipped), "checkpoints": str(directory)}


def plan(config: TrainConfig) -> dict[str, Any]:
    """What a run would do and take, from its settings alone."""
    check_output_parent(config.output)
    model = read_model(config.model)
    if config.objective == "unet":
        find_weights(config.weights)
    shapes = jax.eval_shape(functools.partial(fresh_params, config, model))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    data = config.data
    return {
        "objective": config.objective,
        "parameters": parameters,
        "state_mib": parameters * 4 * 4 >> 20,  # parameters, average and two moments, float32
        "pictures_mib": data.objects * data.num_frames * data.size**2 * 3 >> 20,
        "steps": config.max_steps,
        "checkpoints": checkpoint_steps(config.output / "checkpoints"),
    }


def run_settings(config: TrainConfig, objective: Objective, trainable: Trainable) -> dict[str, Any]:
    """What decides the result of a run: settings, widths of the model, fingerprints of data and frozen weights."""
    own = {
        name: value
        for name, value in config.settings().items()
        if name not in NOT_RESULTS and value is not None
    }
    if trainable.frozen:
        own["frozen_fingerprint"] = fingerprint(trainable.frozen)
    return own | {"model": objective.model.to_dict(), "data_fingerprint": objective.fingerprint}


def _shared_out(batch: Any, mesh: Mesh) -> Any:
    """The batch split over the devices; whole on each of them where it does not divide."""
    videos = len(jax.tree.leaves(batch)[0])
    parts = PartitionSpec("data") if videos % mesh.size == 0 else PartitionSpec()
    return jax.device_put(batch, NamedSharding(mesh, parts))


class _SignalFlag:
    """Notes a signal instead of dying by it; the second one has its usual effect."""

    def __init__(self, number: int):
        self._number = number
        self.raised = False

    def __enter__(self) -> "_SignalFlag":
        self._previous = signal.signal(self._number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(self._number, self._previous)

    def _note(self, number: int, frame: object) -> None:
        self.raised = True
        signal.signal(number, self._previous)


def _give_up(directory: Path, step: int, metrics: dict[str, Any]) -> None:
    """Leave what is needed to look into it, and stop; the last good checkpoint stays."""
    values = {name: repr(float(value)) for name, value in metrics.items()}
    write_json(directory / "not_finite.json", {"step": step, "batch": step - 1, **values})
    raise SV3DError(
        f"loss or gradient was not finite {MAX_SKIPPED_IN_ROW} steps in a row, up to step {step}",
        hint=f"see {directory / 'not_finite.json'}; a lower learning rate may help",
    )
