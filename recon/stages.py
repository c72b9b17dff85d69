"""What a method of reconstruction consists of: a named list of stages, each from a state to the next.

`recon/runner.py` runs such a list, `recon/methods.py` knows the methods by name. Nothing here imports jax.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sv3d_jax.config import nearest
from sv3d_jax.errors import InputError

if TYPE_CHECKING:
    from sv3d_jax.geometry.mesh import Mesh
    from sv3d_jax.recon.config import Recipe
    from sv3d_jax.recon.context import Context
    from sv3d_jax.recon.fit import FitInfo
    from sv3d_jax.recon.representations import Representation
    from sv3d_jax.recon.views import Views

Extra = Literal["sds", "lpips", "normals"]
"""What a user may give besides views and settings: an orbit model, the weights of LPIPS, an estimator of normals."""


@dataclass(frozen=True, eq=False)
class State:
    """What the stages have made so far, in box coordinates (`recon/views.py`).

    A method must leave a mesh. Where that has neither a texture nor colours at its vertices, it gets the colours of the
    representation, if there is one.
    """

    representation: "Representation | None" = None
    mesh: "Mesh | None" = None
    lit: "Mesh | None" = None
    """the same surface in the colours that the views show, light included; None without a model of light"""
    log: "tuple[FitInfo, ...]" = ()
    """of all fits so far"""
    facts: dict[str, Any] = field(default_factory=dict)
    """what a user is told of the result; JSON values"""


@dataclass(frozen=True)
class Stage:
    """One step of a method. Its result is kept in the run's scratch folder if it says how."""

    name: str
    run: "Callable[[Context, State], State]"
    """takes what every stage is given and the state before; returns the state after"""
    pack: Callable[[State], Any] | None = None
    """the part of the state after the stage that is kept: arrays, numbers and texts in dicts, lists and tuples"""
    unpack: "Callable[[Context, State, Any], State] | None" = None
    """rebuilds the state after the stage from the state before it and what `pack` returned, in which NamedTuples have
    become plain tuples"""
    stop: str | None = ""
    """value of `--stage` that stops after this stage. '' (default): the stage's name; None: cannot stop here, there is
    no mesh yet"""
    is_fit: bool = False
    """it fits by steps: the runner's progress shows them, after a stage `compile`"""
    is_used: "Callable[[Recipe], bool]" = lambda recipe: True
    """whether a recipe has this stage at all"""
    compile_ahead: "Callable[[Recipe, Views], Callable[[], None]] | None" = None
    """returns a function that compiles what the stage needs for views of these shapes, which may be ShapeDtypeStructs;
    that one is called in the background, before the views are there, and may not import anything"""
    uses: tuple[Extra, ...] = ()
    """what it takes from the context (`guide`, `vgg`, `views.normals`) where it is given; others are refused.
    With "sds", the recipe has `mesh.sds`"""

    def __post_init__(self):
        if (self.pack is None) != (self.unpack is None):
            raise ValueError(f"stage {self.name} needs both pack and unpack, or neither")

    @property
    def stop_name(self) -> str | None:
        """The value of `--stage` that ends a run after this stage, None if none does."""
        return self.name if self.stop == "" else self.stop


@dataclass(frozen=True)
class Method:
    """A named list of stages, and its presets: TOML files with differences from the defaults of its recipe."""

    name: str
    stages: tuple[Stage, ...]
    presets: Mapping[str, Path] = field(default_factory=dict)
    """by name; one of them is "fast", which is the default"""
    recipe: type | None = None
    """a frozen dataclass of tables, each a frozen dataclass of settings, which stages find in `context.recipe`.
    None: `recon.config.Recipe`. Flags such as `--steps` set fields of its tables `nerf`, `mesh` and `bake`, where there
    are any"""

    def __post_init__(self):
        if not self.stages:
            raise ValueError(f"method {self.name} needs at least one stage")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"the stages of method {self.name} need different names, got {', '.join(names)}")

    @property
    def stops(self) -> list[str]:
        """The values of `--stage`: stages after which a run may end, and `all`."""
        return [name for stage in self.stages if (name := stage.stop_name) is not None] + ["all"]

    def progress_stages(self, recipe: "Recipe") -> list[str]:
        """The names that a whole run shows as its progress, without stages that the recipe leaves out."""
        used = self.stages_until("all", recipe)
        names = [["compile", stage.name] if stage.is_fit else [stage.name] for stage in used]
        return ["load", *sum(names, []), "write"]

    def preset_file(self, name: str) -> Path | None:
        """The file of a preset; None for a method without presets, which runs with the defaults."""
        if self.presets and name not in self.presets:
            raise InputError(
                f"--preset {name}: method {self.name} has no such preset",
                hint=nearest(name, list(self.presets)),
            )
        return self.presets.get(name)

    def stages_until(self, stop: str, recipe: "Recipe") -> list[Stage]:
        """The stages of a run that ends at `stop`, without those that the recipe leaves out."""
        self.check_stop(stop)
        ends = [place for place, stage in enumerate(self.stages) if stage.stop_name == stop]
        until = self.stages[: ends[0] + 1] if ends else self.stages
        return [stage for stage in until if stage.is_used(recipe)]

    def check_stop(self, stop: str) -> None:
        """Raise an InputError for a `--stage` that this method does not have."""
        if stop not in self.stops:
            raise InputError(
                f"--stage {stop}: method {self.name} has no such stage", hint=nearest(stop, self.stops)
            )
