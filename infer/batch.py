"""Pictures to orbits, several at once: over the devices there are, and within the memory there is."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh

from sv3d_jax.devices import memory_in_use
from sv3d_jax.errors import OutOfMemory
from sv3d_jax.infer.config import GenerateConfig, OrbitConfig
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.orbit import Orbit
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.plan import Plan, memory_advice, plan_orbit, require_accelerator
from sv3d_jax.preprocess import PreparedImage
from sv3d_jax.progress import Progress

if TYPE_CHECKING:
    from sv3d_jax.cameras.orbit import CameraPath


class OrbitSampler:
    """A model and the settings of its orbits; `pictures_at_once` of them are sampled together.

    With --auto-fit it goes down the list of what saves memory when that runs out, and stays there.
    """

    def __init__(self, config: OrbitConfig, model: ModelConfig, cameras: "CameraPath", progress: Progress):
        self._asked, self._model, self._cameras, self._progress = config, model, cameras, progress
        self._attempts = _attempts(config)
        self._devices = _devices(config)
        self.pictures_at_once = config.batch or len(self._devices)
        self.plan = self._plan()

    @cached_property
    def pipeline(self) -> Pipeline:
        """Loaded when it is first asked for."""
        self._progress.stage("load")
        now, mesh = self._attempts[0], None
        if len(self._devices) > 1:
            mesh = Mesh(np.array(self._devices), ("data",))
        with memory_advice(self._plan(), memory_in_use()):
            return Pipeline.from_pretrained(now.weights, now.variant, now.compute, mesh=mesh)

    @property
    def notes(self) -> list[str]:
        """What is not as it was asked for."""
        changes = _changes(self._asked, self._attempts[0])
        return [f"memory ran out: {changes}"] * bool(changes)

    def __call__(self, pictures: list[PreparedImage]) -> list[Orbit]:
        """An orbit for each picture; on several devices their number is filled up with the last one."""
        missing = -len(pictures) % len(self._devices)
        while True:
            try:
                return self._sample(pictures + pictures[-1:] * missing)[: len(pictures)]
            except OutOfMemory as error:
                if len(self._attempts) == 1:
                    raise
                self._progress.note(error.message)
            before = self._attempts.pop(0)
            loaded = self.__dict__.pop("pipeline", None)  # absent if loading was too much
            if loaded is not None:
                now = self._attempts[0].compute
                self.pipeline = loaded if now == before.compute else loaded.computing(now)
            del loaded  # its parameters, before memory is asked for again
            self._progress.note(f"trying again with {_changes(self._asked, self._attempts[0])}")

    def _sample(self, pictures: list[PreparedImage]) -> list[Orbit]:
        now = self._attempts[0]
        return self.pipeline(
            pictures,
            now.sampling,
            cameras=self._cameras,
            seed=now.seed,
            size=now.size,
            decode_chunk=now.decode_chunk,
            progress=self._progress,
        )

    def _plan(self) -> Plan:
        """Memory and time of what one device does; a full-size model on a CPU must have been asked for."""
        now, model = self._attempts[0], self._model
        plan = plan_orbit(
            model,
            len(self._cameras),
            now.size or model.native_size,
            -(-self.pictures_at_once // len(self._devices)),
            now.compute.itemsize,
            now.decode_chunk,
            now.low_memory,
            quantized=now.quantize is not None,
            sampling=now.sampling,
        )
        require_accelerator(plan, jax.default_backend(), now.device)
        return plan


def _devices(config: OrbitConfig) -> list[jax.Device]:
    """Those that pictures are divided over: as many as there are pictures for, or the one that was named.

    Score distillation takes one orbit at a time, and so one device.
    """
    if (config.device and ":" in config.device) or (isinstance(config, GenerateConfig) and config.sds):
        return jax.local_devices()[:1]
    at_once = min(len(config.images), config.batch or len(config.images))
    return jax.local_devices()[:at_once]


def _attempts(config: OrbitConfig) -> list[OrbitConfig]:
    """The settings and, with --auto-fit, what to try after them when memory runs out; the size stays."""
    attempts = [config]
    if config.auto_fit:
        in_halves = {"low_memory": True} if config.cache_interval == 1 else {}  # they do not go together
        for change in ({"decode_chunk": 1}, in_halves, {"dtype": "bfloat16"}):
            attempts.append(replace(attempts[-1], **change))
    return [new for new, old in zip(attempts, [None, *attempts], strict=False) if new != old]


def _changes(asked: OrbitConfig, taken: OrbitConfig) -> str:
    """What is not as it was asked for, as flags."""
    flags = {
        "--decode-chunk 1": taken.decode_chunk != asked.decode_chunk,
        "--low-memory": taken.low_memory != asked.low_memory,
        "--dtype bfloat16": taken.dtype != asked.dtype,
    }
    return " ".join(flag for flag, is_new in flags.items() if is_new)
