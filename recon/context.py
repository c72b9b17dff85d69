"""What every stage of a reconstruction is given, besides the state that the stage before it left."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sv3d_jax.arrays import Params
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.recon.config import Recipe
from sv3d_jax.recon.fit import FitHooks, FitInfo, FitState, half_fit
from sv3d_jax.recon.guide import Guide
from sv3d_jax.recon.pictures import Pictures
from sv3d_jax.recon.representations import Representation
from sv3d_jax.recon.views import Views

Callback = Callable[[FitInfo], None]


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)

    def mark(self, name: str) -> None:
        """Add the time since the last mark to a stage."""
        now = time.monotonic()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self.start, 3)
        self.start = now


@dataclass(frozen=True)
class Context:
    """The views and settings of a run, and what its stages report to."""

    recipe: Recipe
    views: Views
    input_frame: int
    seed: int = 0
    vgg: Params | None = None
    """weights of LPIPS"""
    guide: Guide | None = None
    """the prior of score distillation"""
    scratch: Path | None = None
    """folder in which results of stages and unfinished fits are kept, None to keep nothing"""
    callback: Callback | None = None
    """is told how fits go; may raise `Cancelled`"""
    pictures: Pictures | None = None
    """of fits as they go"""
    progress: Progress | NullProgress = field(default_factory=NullProgress)
    clock: Clock = field(default_factory=Clock)

    def fit_hooks(self, stage: str, representation: Callable[[FitState], Representation]) -> FitHooks:
        """The hooks of a stage's fit, for progress, callback and previews.

        `representation` turns the state that the fit shows to a preview into one that can be rendered.
        """
        preview = None
        if self.pictures is not None:
            save = self.unfinished_fit(stage)
            resumes = save is not None and (save.exists() or half_fit(save).exists())
            preview = self.pictures.preview(stage, self.views, self.input_frame, resumes).of(representation)
        return FitHooks(callback=self._report(stage), preview=preview)

    def unfinished_fit(self, stage: str) -> Path | None:
        """The file that holds a stage's fit until the stage's result is kept."""
        return None if self.scratch is None else self.scratch / f"{stage}_fit.npz"

    def _report(self, stage: str) -> Callback:
        """Tells progress and callback how a fit goes.

        When the first call ends, everything since the last mark, including set-up, is booked as `compile`.
        """
        self.progress.stage("compile")
        done: list[int] = []

        def report(info: FitInfo) -> None:
            if not done:
                self.clock.mark("compile")
                self.progress.stage(stage, total=info.total)
            self.progress.advance(info.step - (done[-1] if done else 0))
            done.append(info.step)
            if self.callback is not None:
                self.callback(info)

        return report
