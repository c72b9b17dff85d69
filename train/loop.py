"""The training loop over one or several processes; a resumed run gives the same bits as an uninterrupted one."""

import functools
import shutil
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sv3d_jax import signals
from sv3d_jax.arrays import Array, Params
from sv3d_jax.cost import step_flop_counter
from sv3d_jax.devices import check_devices, keep_freed_memory
from sv3d_jax.errors import CheckpointError, InputError, Preempted, SV3DError
from sv3d_jax.io.outputs import OutputFolder
from sv3d_jax.parallel.devices import (
    device_mesh,
    global_batch,
    is_lead,
    local_rows,
    place_tree,
    wait_for_all,
)
from sv3d_jax.parallel.rules import tree_shardings
from sv3d_jax.programs import Programs
from sv3d_jax.progress import Progress
from sv3d_jax.train.checkpoints import CHECKPOINTS, Checkpoints
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.debug import REPORT, debug_report, write_debug_bundle
from sv3d_jax.train.export import export_run
from sv3d_jax.train.initial import first_trainable
from sv3d_jax.train.losses import Loss
from sv3d_jax.train.objectives import Objective, make_objective
from sv3d_jax.train.optimizer import learning_rate, make_optimizer
from sv3d_jax.train.plan import dry_run, plan_run, require_training_accelerator
from sv3d_jax.train.state import TrainState, new_state
from sv3d_jax.train.step import train_step
from sv3d_jax.train.trainable import Trainable, fingerprint
from sv3d_jax.train.watch import Watch, check_recorders

MAX_SKIPPED_IN_ROW = 5
MAX_FAILED_SAVES = 3  # in a row
FIRST_STEPS = 10  # logged one by one, so that a run from the same seed can be compared at once
NOT_RESULTS = (
    "export",
    "plan",
    "resume",
    "cast",
    "mesh",
    "remat",
    "data_dir",
    "data_workers",
    "log_every",
    "validate_every",
    "save_every",
    "watch",
)


def run_train(config: TrainConfig, progress: Progress) -> dict[str, Any]:
    """Train until max_steps or SIGTERM; an interrupted run resumes from its last checkpoint.

    Every process of a run calls this; only the first writes and prints. Raises Preempted after SIGTERM, once the state
    is saved, CheckpointError if it could not be saved, SV3DError after five steps in a row that were not finite.
    """
    if config.export:
        return export_run(config, progress)
    if config.plan:
        return plan_run(config)
    if config.dry_run:
        return dry_run(config)
    require_training_accelerator(config)
    check_recorders(config.watch)
    check_devices(jax.local_devices())
    mesh = device_mesh(config.mesh)
    _check_batch(config, mesh)
    objective = _lead_first(functools.partial(make_objective, config, progress))
    trainable = first_trainable(config, objective.model)
    settings = run_settings(config, objective, trainable)

    with (
        _output_folder(config, settings) as folder,
        Checkpoints(_checkpoint_folder(config)) as checkpoints,
        _StopSignal(checkpoints) as stop,
    ):
        optimizer = make_optimizer(config.optimizer, config.max_steps)
        state = _first_state(config, trainable.initial, optimizer, mesh, checkpoints, settings)
        frozen = place_tree(trainable.frozen, tree_shardings(trainable.frozen, mesh))
        # The trained parameters are now in the state.
        trainable = trainable._replace(initial={}, frozen=frozen)
        with Watch(config, int(state.step), is_lead()) as watch:
            saver = _Saver(checkpoints, settings, progress)
            state = _train(config, objective, trainable, optimizer, state, mesh, saver, watch, stop, progress)
        if folder is not None:
            folder.write_run_json(
                objective=config.objective, model=objective.model.to_dict(), **objective.data_report()
            )
    return {
        "step": int(state.step),
        "skipped": int(state.skipped),
        "checkpoints": str(config.output / CHECKPOINTS),
    }


def _train(
    config: TrainConfig,
    objective: Objective,
    trainable: Trainable,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    saver: "_Saver",
    watch: Watch,
    stop: "_StopSignal",
    progress: Progress,
) -> TrainState:
    key = jax.random.key(config.seed)
    rate = learning_rate(config.optimizer, config.max_steps)
    frozen = trainable.frozen

    def whole(params: Params) -> Params:
        return trainable.join(params, frozen)

    step = compiled_step(config, objective.loss, trainable.join, optimizer, state)
    step_flop = step_flop_counter(objective.loss, jax.eval_shape(whole, state.params))
    progress.stage("train", total=config.max_steps)
    progress.advance(first := int(state.step))
    batches = objective.batches(first, local_rows(mesh))
    for index in range(first, config.max_steps):
        watch.begin(index)
        rows, local = next(batches)
        batch = global_batch(local, mesh, rows)
        watch.loaded()
        step_key = jax.random.fold_in(key, index)
        state, metrics = step(state, frozen, batch, step_key)
        metrics = jax.device_get(metrics)
        if index == first:
            keep_freed_memory()
            stop.defer()
        watch.end(images=objective.batch_images(batch), samples=rows, flop=step_flop(batch))
        progress.advance()
        done, last = index + 1, index + 1 == config.max_steps
        if metrics["skipped_in_row"] >= MAX_SKIPPED_IN_ROW:
            report = debug_report(
                objective.loss, whole(state.params), whole(state.ema), batch, step_key, metrics
            )
            _give_up(config, index, report, local)
        if done <= FIRST_STEPS or done % config.log_every == 0 or last:
            numbers = {name: float(value) for name, value in metrics.items()}
            watch.log(done, **numbers, learning_rate=float(rate(index)), **_counts(objective))
        if done % config.validate_every == 0 or last:
            watch.write(done, **objective.validate(whole(state.ema)))
        if objective.sheet is not None and watch.samples_due(done):
            sheet, score = objective.sheet(whole(state.ema))
            watch.write(done, sample_psnr=score)
            watch.sheet(done, sheet)
        stopping = stop.asked(done)
        if done % config.save_every == 0 or last or stopping:
            saver.save(done, state, must=last or stopping)
        if stopping and not last:
            raise Preempted(f"stopped after step {done}; its state is saved in {config.output / CHECKPOINTS}")
    return state


def _counts(objective: Objective) -> dict[str, int]:
    """The counts in the report of the data source."""
    return {name: value for name, value in objective.data_report().items() if isinstance(value, int)}


def compiled_step(
    config: TrainConfig,
    loss: Loss,
    join: Callable[[Params, Params], Params],
    optimizer: optax.GradientTransformation,
    state: TrainState,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """`train_step` compiled, a function of (state, frozen, batch, key) that donates the state and keeps its sharding.

    There is a program for each shape of the batch, which later starts find on disk.
    """
    ema_decay, accumulate = config.optimizer.ema_decay, config.accumulate

    def step(state, frozen, batch, key):
        return train_step(
            state,
            batch,
            key,
            loss=lambda params, *given: loss(join(params, frozen), *given),
            optimizer=optimizer,
            ema_decay=ema_decay,
            accumulate=accumulate,
        )

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    everywhere = NamedSharding(shardings.step.mesh, PartitionSpec())
    programs = Programs()
    by_shape: dict[Any, Callable[..., Any]] = {}

    def run(state, frozen, batch, key):
        inputs = state, frozen, batch, key
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch))
        if shapes not in by_shape:
            by_shape[shapes] = programs.compile(
                step, *inputs, donate_argnums=0, out_shardings=lambda: (shardings, everywhere)
            )
        return by_shape[shapes](*inputs)

    return run


def run_settings(config: TrainConfig, objective: Objective, trainable: Trainable) -> dict[str, Any]:
    """Everything that determines the result of a run: settings, model, fingerprints of data and frozen weights."""
    own = {
        name: value
        for name, value in config.settings().items()
        if name not in NOT_RESULTS and value is not None
    }
    own["data"].pop("shards", None)  # the folder may move; the fingerprint identifies the data
    if trainable.frozen:
        own["frozen_fingerprint"] = fingerprint(trainable.frozen)
    return own | {"model": objective.model.to_dict(), "data_fingerprint": objective.fingerprint}


def _first_state(
    config: TrainConfig,
    params: Params,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
    settings: dict[str, Any],
) -> TrainState:
    """The initial state, sharded over the mesh: from a checkpoint if `resume` allows it and there is one."""
    begin = functools.partial(new_state, optimizer=optimizer)
    like = jax.eval_shape(begin, params)
    shardings = tree_shardings(like, mesh)
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        like,
        shardings,
    )
    if config.resume.isdigit():
        return checkpoints.restore(int(config.resume), like, settings, config.cast)
    restored = checkpoints.restore_latest(like, settings, config.cast) if config.resume == "auto" else None
    if restored is not None:
        return restored
    return jax.jit(begin, out_shardings=shardings)(place_tree(params, shardings.params))


def _check_batch(config: TrainConfig, mesh: Mesh) -> None:
    parts = config.accumulate * mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % parts:
        raise InputError(
            f"--batch-size {config.batch_size}: must be a multiple of accumulate x data x fsdp = {parts}",
            hint="a --mesh with a larger tensor= splits the batch into fewer parts",
        )


def _lead_first(make: Callable[[], Objective]) -> Objective:
    """The result of `make` in every process; the first process runs it before the others and writes shared files."""
    made = make() if is_lead() else None
    wait_for_all("objective")
    return made if made is not None else make()


def _checkpoint_folder(config: TrainConfig) -> Path:
    """Folder of the checkpoints, emptied if the run starts over."""
    directory = config.output / CHECKPOINTS
    if is_lead() and (config.overwrite or config.resume == "never"):
        shutil.rmtree(directory, ignore_errors=True)
    wait_for_all("folder")
    return directory


def _output_folder(config: TrainConfig, settings: dict[str, Any]) -> Any:
    """The output folder, locked by the first process; a null context in the others."""
    return OutputFolder(config.output, settings, config.overwrite) if is_lead() else nullcontext()


class _Saver:
    """Saves checkpoints and tolerates failures: the next interval tries again, until MAX_FAILED_SAVES in a row."""

    def __init__(self, checkpoints: Checkpoints, settings: dict[str, Any], progress: Progress):
        self._checkpoints, self._settings, self._progress = checkpoints, settings, progress
        self._failed = 0

    def save(self, step: int, state: TrainState, must: bool) -> None:
        """Start a save; with `must`, wait until it is on disk and raise CheckpointError if it is not."""
        try:
            self._checkpoints.save(step, state, self._settings)
            if must:
                self._checkpoints.wait()
            self._failed = 0
        except CheckpointError as error:
            self._failed += 1
            self._progress.note(f"step {step}: {error.message}")
            if must or self._failed == MAX_FAILED_SAVES:
                raise


class _StopSignal:
    """Whether SIGTERM asks a run to end.

    Several processes must stop at the same step: jax's runtime then handles the signal and agrees on a step.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._deferred = ExitStack()

    def __enter__(self) -> "_StopSignal":
        return self

    def __exit__(self, *error: object) -> None:
        self._deferred.close()

    def defer(self) -> None:
        """From now on the signal waits for the end of a step; before the first one there is nothing to save."""
        if not jax.distributed.is_initialized():
            self._deferred.enter_context(signals.finishing())

    def asked(self, step: int) -> bool:
        """Whether to stop after this step, the same one in all processes."""
        if jax.distributed.is_initialized():
            return self._checkpoints.reached_preemption(step)
        return signals.asked()


def _give_up(config: TrainConfig, index: int, report: dict[str, Any], rows: Any) -> None:
    """Write diagnostics and raise SV3DError; the last good checkpoint stays."""
    facts = {"step": index + 1, "batch_index": index, "seed": config.seed}
    if is_lead():
        write_debug_bundle(config.output, facts | report, rows)
    raise SV3DError(
        f"loss or gradient was not finite {MAX_SKIPPED_IN_ROW} steps in a row, up to step {index + 1}",
        hint=f"see {config.output / REPORT}; a lower learning rate may help",
    )
