"""Runs the stages of a method one after the other: keeping, resuming, timing, progress."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sv3d_jax.errors import SV3DError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.scratch import read_arrays, write_arrays
from sv3d_jax.programs import in_background
from sv3d_jax.recon.config import Recipe
from sv3d_jax.recon.context import Context
from sv3d_jax.recon.fit import half_fit
from sv3d_jax.recon.representations import ColorsAt, Representation, lit
from sv3d_jax.recon.stages import Stage, State
from sv3d_jax.recon.uv import smooth_normals
from sv3d_jax.recon.views import Views

ABSENT = object()  # in place of a kept result, which may be None


def run_stages(context: Context, stages: Sequence[Stage]) -> State:
    """The state after the last stage; its mesh is coloured if a representation or texture is available.

    With `context.scratch` what a stage packs is kept there, and a run that finds it goes on from it. What the next
    stage is given is always read back from the file, so that a resumed run computes with the same numbers.
    """
    state = State()
    for stage in stages:
        state = _run_stage(context, stage, state)
    if state.mesh is None:
        raise SV3DError(f"stage {stages[-1].name} left no mesh")
    if state.representation is not None and state.mesh.texture is None and state.mesh.vertex_colors is None:
        context.progress.stage("bake")
        state = _with_vertex_colors(state, state.mesh, state.representation)
        context.clock.mark("bake")
    return state


def compile_ahead(stages: Sequence[Stage], recipe: Recipe, frames: int, height: int, width: int) -> None:
    """Compile in the background what stages need for so many views of this size."""
    floats = partial(jax.ShapeDtypeStruct, dtype=np.float32)
    pictures, of_frames = floats((frames, height, width, 3)), floats((frames, 2))
    masks = floats(pictures.shape[:3])
    views = Views(pictures, masks, masks, floats((frames, 4, 4)), of_frames, of_frames)

    calls = [stage.compile_ahead(recipe, views) for stage in stages if stage.compile_ahead is not None]

    def compile_all() -> None:
        for call in calls:
            call()

    in_background(compile_all)


def _run_stage(context: Context, stage: Stage, state: State) -> State:
    file = None if context.scratch is None or stage.pack is None else context.scratch / f"{stage.name}.npz"
    kept = ABSENT if file is None else load_tree(file, ABSENT)
    if kept is not ABSENT:
        _remove_fit(context, stage)
        return stage.unpack(context, state, kept)
    if not stage.is_fit:
        context.progress.stage(stage.name)
    after = stage.run(context, state)
    context.clock.mark(stage.name)
    if file is None:
        _remove_fit(context, stage)
        return after
    save_tree(file, stage.pack(after))
    _remove_fit(context, stage)
    return stage.unpack(context, state, load_tree(file))


def _remove_fit(context: Context, stage: Stage) -> None:
    """Remove the saved fit of a stage: not before its result is kept, or a run that is killed in between repeats it."""
    if (fit := context.unfinished_fit(stage.name)) is not None:
        for file in (fit, half_fit(fit)):
            file.unlink(missing_ok=True)


def _with_vertex_colors(state: State, mesh: Mesh, shape: Representation) -> State:
    """The state with the colours of the representation at the vertices of its mesh, and also in light if it has one."""
    places = mesh.vertices.astype(np.float32), smooth_normals(mesh).astype(np.float32)

    def colored(colors_at: ColorsAt) -> Mesh:
        return replace(mesh, vertex_colors=np.clip(np.asarray(colors_at(*places)), 0.0, 1.0))

    in_light = None if shape.light is None else colored(lit(shape.colors_at, shape.light))
    return replace(state, mesh=colored(shape.colors_at), lit=in_light)


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of arrays, numbers, texts and None as one .npz file, whole or not at all."""
    arrays: list[np.ndarray] = []

    def described(node: Any) -> Any:
        if isinstance(node, dict):
            return {"dict": {name: described(value) for name, value in node.items()}}
        if isinstance(node, (list, tuple)):
            return {"list" if isinstance(node, list) else "tuple": [described(value) for value in node]}
        if node is None or isinstance(node, (bool, int, float, str)):
            return {"value": node}
        arrays.append(np.asarray(node))
        return {"array": len(arrays) - 1}

    structure = json.dumps(described(tree))
    named = {f"arr_{index}": array for index, array in enumerate(arrays)}
    write_arrays(path, named | {"structure": np.asarray(structure)})


def load_tree(path: Path, absent: Any = None) -> Any:
    """What `save_tree` wrote; NamedTuples come back as plain tuples. `absent` without such a file, or a damaged one."""
    arrays = read_arrays(path)
    if arrays is None or "structure" not in arrays:  # of a version that kept other things
        return absent

    def built(node: dict[str, Any]) -> Any:
        ((kind, content),) = node.items()
        if kind == "dict":
            return {name: built(value) for name, value in content.items()}
        if kind in ("list", "tuple"):
            return {"list": list, "tuple": tuple}[kind](built(value) for value in content)
        return content if kind == "value" else arrays[f"arr_{content}"]

    return built(json.loads(str(arrays["structure"])))
