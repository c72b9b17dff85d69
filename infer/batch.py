"""Sample orbits of several pictures at once, over all devices, with less memory if it runs out (--auto-fit)."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh

from sv3d_jax.devices import check_devices, memory_in_use
from sv3d_jax.errors import OutOfMemory, is_out_of_memory
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
    """Samples orbits with one model and one set of settings, `pictures_at_once` of them together.

    With --auto-fit, when memory runs out it tries the next of the settings that save memory, and keeps them afterwards.
    """

    def __init__(
        self,
        config: OrbitConfig,
        model: ModelConfig,
        cameras: "CameraPath",
        progress: Progress,
        num_pictures: int,
    ):
        self._asked, self._model, self._cameras, self._progress = config, model, cameras, progress
        self._attempts = _attempts(config)
        self._devices = _devices(config, num_pictures)
        check_devices(self._devices)
        self.pictures_at_once = config.batch or len(self._devices)
        self.plan = self._plan()

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline, loaded at its first use."""
        self._progress.stage("load")
        now, mesh = self._attempts[0], None
        if len(self._devices) > 1:
            mesh = Mesh(np.array(self._devices), ("data",))
        with memory_advice(self._plan(), memory_in_use()):
            return Pipeline.from_pretrained(now.weights, now.variant, now.compute, mesh=mesh)

    @property
    def notes(self) -> list[str]:
        """A note on the settings that --auto-fit has changed, if any."""
        changes = _changes(self._asked, self._attempts[0])
        return [f"memory ran out: {changes}"] * bool(changes)

    def __call__(self, pictures: list[PreparedImage]) -> list[Orbit]:
        """An orbit for each picture. The last picture is repeated to fill up the devices.

        Raises OutOfMemory if memory runs out and there is nothing left to try.
        """
        missing = -len(pictures) % len(self._devices)
        while True:
            try:
                return self._sample(pictures + pictures[-1:] * missing)[: len(pictures)]
            except OutOfMemory as error:
                if len(self._attempts) == 1:
                    raise
                self._progress.note(error.message)
            before = self._attempts.pop(0)
            loaded = self.__dict__.pop("pipeline", None)  # none if memory ran out while loading
            if loaded is not None:
                self._convert(loaded, before)
            del loaded  # free its parameters before memory is allocated again
            self._progress.note(f"trying again with {_changes(self._asked, self._attempts[0])}")

    def _convert(self, loaded: Pipeline, before: OrbitConfig) -> None:
        """Go on with the loaded weights; if there is no memory for a second copy, they are loaded again."""
        now = self._attempts[0].compute
        try:
            self.pipeline = loaded if now == before.compute else loaded.computing(now)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise

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
        """Estimate for one device. Raises InputError for a full-size model on a CPU that was not chosen."""
        now, model = self._attempts[0], self._model
        compute = now.compute.resolve(model)
        plan = plan_orbit(
            model,
            num_frames=len(self._cameras),
            size=now.size or model.native_size,
            batch=-(-self.pictures_at_once // len(self._devices)),
            dtype_bytes=compute.itemsize,
            param_bytes=compute.param_itemsize,
            decode_chunk=now.decode_chunk,
            low_memory=now.low_memory,
            quantized=now.quantize is not None,
            sampling=now.sampling,
        )
        require_accelerator(plan, jax.default_backend(), now.device)
        return plan


def _devices(config: OrbitConfig, num_pictures: int) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """The devices that pictures are divided over: at most one for each picture, or the one named by --device.

    Score distillation samples one orbit at a time, so it uses one device.
    """
    if (config.device and ":" in config.device) or (isinstance(config, GenerateConfig) and config.sds):
        return jax.local_devices()[:1]
    return jax.local_devices()[: min(num_pictures, config.batch or num_pictures)]


def _attempts(config: OrbitConfig) -> list[OrbitConfig]:
    """The settings and, with --auto-fit, those to try next when memory runs out; the size is never changed."""
    attempts = [config]
    if config.auto_fit:
        # --low-memory cannot be combined with cached features.
        low_memory = {"low_memory": True} if config.cache_interval == 1 else {}
        for change in ({"decode_chunk": 1}, low_memory, {"dtype": "bfloat16"}):
            attempts.append(replace(attempts[-1], **change))
    return [new for new, old in zip(attempts, [None, *attempts], strict=False) if new != old]


def _changes(asked: OrbitConfig, taken: OrbitConfig) -> str:
    """The settings that --auto-fit has changed, as flags."""
    flags = {
        "--decode-chunk 1": taken.decode_chunk != asked.decode_chunk,
        "--low-memory": taken.low_memory != asked.low_memory,
        "--dtype bfloat16": taken.dtype != asked.dtype,
    }
    return " ".join(flag for flag, is_new in flags.items() if is_new)
