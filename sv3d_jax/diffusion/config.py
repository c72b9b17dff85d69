"""Options of sampling, for the verbs, `Pipeline` and training's sample sheets alike; nothing here imports jax."""

from __future__ import annotations

import math
import reprlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from sv3d_jax.config import Settings, is_number, within
from sv3d_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sv3d_jax.arrays import Float
    from sv3d_jax.diffusion.guidance import GuidanceCurve
    from sv3d_jax.diffusion.solvers import Solver
    from sv3d_jax.models.config import ModelConfig
else:
    GuidanceCurve = Solver = Any  # their modules import jax


GuidanceName = Literal["triangular", "linear", "constant"]
"""Guidance curves by name; the functions are in `guidance.CURVES`."""
SolverName = Literal["euler", "dpmpp_2m"]
"""Solvers by name; the objects are in `solvers.SOLVERS`."""

GuidanceScale = Annotated[float, within(0, 100)]
NoiseLevel = Annotated[float, within(0, 1e9)]
ChurnAmount = Annotated[float, within(0, 1000)]


@dataclass(frozen=True, kw_only=True)
class Churn(Settings):
    """Noise that is added back before a step (EDM, algorithm 2, with its names); SV3D uses none."""

    PREFIX: ClassVar[str] = ""

    s_churn: ChurnAmount = 0.0
    s_tmin: NoiseLevel = 0.0
    s_tmax: Annotated[float, within(0, math.inf)] = math.inf
    s_noise: Annotated[float, within(0, 10)] = 1.0


class StepKind(NamedTuple):
    """What a step of the sampler runs; the steps of one kind share a compiled program.

    cache: with "off" the step runs the full UNet; with "store" it also keeps the features of the lower-resolution
    levels of the UNet; with "reuse" it takes those of the last step that stored them and runs the first level alone.
    """

    is_guided: bool = True
    cache: Literal["off", "store", "reuse"] = "off"


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Settings):
    """How an orbit is sampled. None means the model's default, which `resolve` fills in.

    guidance: "triangular", "linear", "constant", or a function of (num_frames, cfg_min, cfg_max).
    guidance_interval: lowest and highest noise level with guidance; steps outside it evaluate only the conditional
    branch (Kynkaanniemi et al., arXiv 2404.07724).
    cache_interval: run the full UNet every so many steps and reuse its cached features in between (DeepCache, arXiv
    2312.00858).
    solver: "euler" (EDM, algorithm 1 without its second-order correction; SV3D's own), "dpmpp_2m" (DPM-Solver++(2M),
    arXiv 2211.01095, algorithm 2), or a `Solver`.
    churn: s_churn, or a `Churn`.

    Raises InputError for values that are out of range or do not go together.
    """

    RENAMED: ClassVar[dict[str, str]] = {"steps": "num_steps"}  # names of version 0.1, taken with a note

    num_steps: Annotated[int | None, within(1, 1000)] = None
    """sampling steps (default: the model's own; 50 for SV3D)"""
    guidance: str | GuidanceCurve | None = None
    """how the guidance scale runs over the frames (default: the model's own, for SV3D triangular)"""
    cfg_min: GuidanceScale | None = None
    """lowest guidance scale (default: the model's own; 1 for SV3D)"""
    cfg_max: GuidanceScale | None = None
    """highest guidance scale (default: the model's own; 2.5 for SV3D)"""
    guidance_interval: tuple[NoiseLevel, NoiseLevel] | None = None
    """lowest and highest noise level with guidance (default: all); steps outside cost half"""
    cache_interval: Annotated[int, within(1, 1000)] = 1
    """run the full UNet every so many steps and reuse its cached features in between"""
    solver: str | Solver = "euler"
    """euler is SV3D's own; dpmpp_2m is of second order, which is no gain for mini"""
    churn: ChurnAmount | Churn = 0.0
    """noise added back while sampling, as s_churn of EDM; SV3D uses none"""

    def __post_init__(self):
        super().__post_init__()
        if self.guidance is not None and not _is_one_of(self.guidance, GUIDANCE_NAMES):
            raise InputError(
                f"guidance must be one of {', '.join(GUIDANCE_NAMES)}, or a function, got {reprlib.repr(self.guidance)}"
            )
        if not hasattr(self.solver, "update") and not _is_one_of(self.solver, SOLVER_NAMES):
            raise InputError(f"solver must be {' or '.join(SOLVER_NAMES)}, or a Solver, got {self.solver!r}")
        is_euler = self.solver == "euler" or type(self.solver).__name__ == "Euler"
        if self.churn_options.s_churn and not is_euler:
            raise InputError(f"--churn goes with --solver euler, not with {self.solver}")
        if self.guidance_interval is not None:
            if not isinstance(self.guidance_interval, (tuple, list)) or len(self.guidance_interval) != 2:
                raise InputError(
                    f"guidance_interval must be the lowest and the highest noise level, got {self.guidance_interval!r}"
                )
            low, high = self.guidance_interval
            if not 0 <= low <= high:
                raise InputError(
                    f"--guidance-interval {low:g} {high:g}: expected LOW HIGH with 0 <= LOW <= HIGH"
                )

    @property
    def churn_options(self) -> Churn:
        """`churn` as a `Churn`; a plain number is its s_churn."""
        return self.churn if isinstance(self.churn, Churn) else Churn(s_churn=self.churn)

    def resolve(self, model: ModelConfig) -> SamplingConfig:
        """The options with the model's defaults in place of None."""
        own = {name: getattr(model, name) for name in ("num_steps", "cfg_min", "cfg_max")}
        own["guidance"] = model.family.guidance
        return replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

    def step_kinds(self, sigmas: Float[np.ndarray, "steps_plus_1"]) -> list[StepKind]:
        """What each step runs, for the noise levels of a sampler."""
        low, high = self.guidance_interval or (0.0, math.inf)
        kinds: list[StepKind] = []
        since = 0  # steps since the features were stored
        for sigma in sigmas[:-1]:
            is_guided = bool(low <= sigma <= high)
            # A step with guidance has features of both its branches, one without has those of one.
            is_due = not kinds or since == self.cache_interval or kinds[-1].is_guided != is_guided
            since = 1 if is_due else since + 1
            whole = "off" if self.cache_interval == 1 else "store"
            kinds.append(StepKind(is_guided, whole if is_due else "reuse"))
        return kinds


def _is_one_of(value: Any, names: tuple[str, ...]) -> bool:
    """Whether it is one of the names, or a function in place of one."""
    return callable(value) or (isinstance(value, str) and value in names)


GUIDANCE_NAMES, SOLVER_NAMES = get_args(GuidanceName), get_args(SolverName)


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the names of version 0.1 (`cfg`, a pair, and `steps`) under their own; a warning says so.

    Raises TypeError for an option that is given under both names.
    """
    options = dict(options)
    if "method" in options and "solver" not in options:  # as other programs name it
        options["solver"] = options.pop("method")
    if "cfg" in options:
        pair = options.pop("cfg") or (None, None)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(
                f"cfg must be the lowest and the highest scale of the frames, got {reprlib.repr(pair)}",
                hint=f"cfg_max={pair} is the highest scale, cfg_min the lowest" if is_number(pair) else None,
            )
        options |= {"cfg_min": pair[0], "cfg_max": pair[1]}
        warnings.warn("cfg=(a, b) is now cfg_min=a, cfg_max=b", DeprecationWarning, stacklevel=3)
    for old, new in SamplingConfig.RENAMED.items():
        if old in options:
            if new in options:
                raise TypeError(f"{old} is the former name of {new}: give one of them")
            options[new] = options.pop(old)
            warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)
    return options
