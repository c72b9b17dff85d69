"""Monitoring of a run: metrics, sampled pictures and profiler traces; speed, utilisation and memory."""

import importlib.util
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.io.outputs import peak_memory, write_atomic
from sv3d_jax.train.config import TrainConfig, WatchConfig
from sv3d_jax.train.plan import find_accelerator

METRICS_FILE = "metrics.jsonl"


def check_recorders(config: WatchConfig) -> None:
    """Raise an InputError if the package of a requested recorder is not installed."""
    asked = {"tensorboardX": config.tensorboard, "wandb": config.wandb}
    for package, flag in (("tensorboardX", "--watch.tensorboard"), ("wandb", "--watch.wandb")):
        if asked[package] and importlib.util.find_spec(package) is None:
            raise InputError(
                f"{flag} needs {package}, which is not installed", hint='pip install "sv3d_jax[log]"'
            )


class Watch:
    """The metrics, pictures and traces of one run, from the step at which it starts or resumes.

        with Watch(config, first, lead=True) as watch:
            for index in range(first, config.max_steps):
                watch.begin(index)
                batch = next(batches)
                watch.loaded()
                state, metrics = step(state, batch, key)
                watch.end(images=56, samples=8, flop=step_flop(batch))
                watch.log(index + 1, loss=0.5)

    Every process of a run makes the same calls, with numbers of the whole run; only `lead` writes.
    """

    def __init__(self, config: TrainConfig, step: int, lead: bool = True):
        self._config, self._step, self._lead = config, step, lead
        self._meter = Meter()
        self._recorders: list[Recorder] = []
        self._tracing = False

    def __enter__(self) -> "Watch":
        if self._lead:
            self._recorders = _recorders(self._config, self._step)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_trace()
        for recorder in self._recorders:
            recorder.close()

    def begin(self, index: int) -> None:
        """Call before step `index`, counted from 0, loads its data."""
        recorded = index in self._config.watch.profile_steps
        if self._tracing and not recorded:
            self._stop_trace()
        if self._lead and recorded and not self._tracing:
            jax.profiler.start_trace(str(self._config.output / "profile"))
            self._tracing = True
        self._began = time.perf_counter()

    def loaded(self) -> None:
        """Call when the data of the step are loaded."""
        self._loaded = time.perf_counter()

    def end(self, images: int, samples: int, flop: float) -> None:
        """Call when the step is done, with its numbers of pictures and samples and the FLOP of the model for them."""
        spent = time.perf_counter() - self._began
        self._meter.add(images, samples, flop, self._loaded - self._began, spent)

    def log(self, step: int, **numbers: Any) -> None:
        """Write the metrics of a step, with peak memory and the mean speed since the previous call."""
        self.write(step, **numbers, **self._meter.take(), peak_memory_bytes=peak_bytes())

    def write(self, step: int, **numbers: Any) -> None:
        """Write metrics of a step."""
        for recorder in self._recorders:
            recorder.write(step, numbers)

    def sheet(self, step: int, pixels: np.ndarray) -> None:
        """Write a picture of samples from the model after a step, uint8 `h w 3`."""
        for recorder in self._recorders:
            recorder.sheet(step, pixels)

    def samples_due(self, step: int) -> bool:
        """Whether the settings ask for a sheet after this step."""
        every = self._config.watch.samples_every
        return every > 0 and (step % every == 0 or step == self._config.max_steps)

    def _stop_trace(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


class Meter:
    """Speed since the last reading, over all devices of a run."""

    def __init__(self):
        accelerator = find_accelerator(jax.devices()[0].device_kind)
        self._peak_flops = accelerator.peak_flops * jax.device_count() if accelerator else None
        self._reset()

    def add(self, images: int, samples: int, flop: float, waited_s: float, spent_s: float) -> None:
        """Count a step that took spent_s seconds, of which it waited waited_s for its data."""
        self._steps += 1
        self._totals += (images, samples, flop, waited_s, spent_s)

    def take(self) -> dict[str, float | None]:
        """Rates and mean seconds per step since the previous call.

        Utilisation is the model's FLOP over the devices' bfloat16 peak, None if the peak is unknown.
        """
        images, samples, flop, waited_s, spent_s = map(float, self._totals)
        rate = flop / spent_s
        report = {
            "images_per_s": round(images / spent_s, 2),
            "samples_per_s": round(samples / spent_s, 3),
            "step_s": round(spent_s / self._steps, 4),
            "data_s": round(waited_s / self._steps, 4),
            "tflop_per_s": float(f"{rate / 1e12:.4g}"),
            "utilisation": round(rate / self._peak_flops, 4) if self._peak_flops else None,
        }
        self._reset()
        return report

    def _reset(self) -> None:
        self._steps, self._totals = 0, np.zeros(5)


def peak_bytes() -> int | None:
    """Peak bytes on a device of this process, or of the process itself if its devices do not report memory."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    return max(peaks, default=None) or peak_memory()


class Recorder(Protocol):
    """A destination of metrics and sheets."""

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Record numbers of a step by name."""
        ...

    def sheet(self, step: int, pixels: np.ndarray) -> None:
        """Record a picture, uint8 (h, w, 3), of a step."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


def _recorders(config: TrainConfig, step: int) -> list[Recorder]:
    recorders: list[Recorder] = [FileRecorder(config.output, step)]
    if config.watch.tensorboard:
        recorders.append(TensorBoardRecorder(config.output, step))
    if config.watch.wandb:
        recorders.append(WandbRecorder(config, step))
    return recorders


class FileRecorder(Recorder):
    """`metrics.jsonl` and `samples/step-N.png`; lines after the step that a run resumes from are dropped."""

    def __init__(self, folder: Path, step: int):
        self._folder = folder
        path = folder / METRICS_FILE
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_atomic(path, "".join(f"{line}\n" for line in kept))
        self._file = open(path, "a", buffering=1)

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Add one line; a number that is not finite becomes null, because JSON has neither nan nor inf."""
        self._file.write(
            json.dumps({"step": step} | {name: _finite(v) for name, v in numbers.items()}) + "\n"
        )

    def sheet(self, step: int, pixels: np.ndarray) -> None:
        from sv3d_jax.io.images import write_png

        write_png(self._folder / "samples" / f"step-{step}.png", pixels)

    def close(self) -> None:
        self._file.close()


class TensorBoardRecorder(Recorder):
    """Events in the folder `tensorboard`; those after the step that a run resumes from are hidden."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        for name, value in numbers.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def sheet(self, step: int, pixels: np.ndarray) -> None:
        self._writer.add_image("sample", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbRecorder(Recorder):
    """A run of Weights & Biases; a resumed run keeps its id."""

    def __init__(self, config: TrainConfig, step: int):
        import wandb  # pyright: ignore[reportMissingImports]

        number = config.output / "wandb_id"
        earlier = number.read_text().strip() if step and number.exists() else None
        self._wandb = wandb
        self._run = wandb.init(
            project=config.watch.wandb,
            dir=str(config.output),
            name=config.output.name,
            id=earlier,
            resume="allow" if earlier else None,
            config=config.settings(),
        )
        write_atomic(number, self._run.id + "\n")

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        self._run.log({name: value for name, value in numbers.items() if value is not None}, step=step)

    def sheet(self, step: int, pixels: np.ndarray) -> None:
        self._run.log({"sample": self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _step_of(line: str) -> float:
    """The step of a line; infinity for a line that is damaged, or incomplete because its run was killed."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
