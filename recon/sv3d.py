"""The method of the SV3D paper (section 4 and appendix) as a list of stages.

A NeRF is fitted to the views, its surface starts a grid of tetrahedra, which is fitted together with albedo and light,
and the colours are baked into a texture. Modules that need jax are imported when a stage runs, because the settings
read this list.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sv3d_jax.errors import SV3DError
from sv3d_jax.recon.stages import Method, Stage, State

if TYPE_CHECKING:
    from sv3d_jax.recon.config import Recipe
    from sv3d_jax.recon.context import Context
    from sv3d_jax.recon.dmtet.representation import TetSurface
    from sv3d_jax.recon.nerf.representation import NerfField
    from sv3d_jax.recon.representations import ColorField
    from sv3d_jax.recon.views import Views

PRESETS = Path(__file__).parent.parent / "configs" / "recon"


def fit_coarse(context: "Context", state: State) -> State:
    """A field of density and albedo inside the visual hull of the masks."""
    from sv3d_jax.recon.nerf.occupancy import visual_hull
    from sv3d_jax.recon.nerf.stage import fit_field

    nerf = context.recipe.nerf
    hull = visual_hull(context.views, nerf.occupancy_resolution, nerf.hull_tolerance)
    if not hull.any():
        raise SV3DError(
            "the surface is empty: no point lies in the foreground of all views",
            hint="do the cameras in cameras.json fit the frames?",
        )

    def representation(fitted) -> "NerfField":
        return _field(context, fitted.params, fitted.occupancy)

    hooks = context.fit_hooks("coarse", representation)
    fitted, log = fit_field(nerf, context.views, hull, context.seed, hooks, context.unfinished_fit("coarse"))
    return replace(state, representation=representation(fitted), log=(*state.log, *log))


def compile_coarse(recipe: "Recipe", views: "Views") -> Callable[[], None]:
    """Compiles what `fit_coarse` needs for views of these shapes."""
    from sv3d_jax.recon.nerf.stage import compile_fit

    return partial(compile_fit, recipe.nerf, views)


def pack_coarse(state: State) -> dict[str, Any]:
    """The field and its log."""
    field: NerfField = state.representation  # type: ignore[assignment]
    return {"params": field.params, "occupancy": field.occupancy._asdict(), "log": json.dumps(state.log)}


def unpack_coarse(context: "Context", state: State, kept: dict[str, Any]) -> State:
    """The state after the coarse stage."""
    from sv3d_jax.recon.fit import log_from_json
    from sv3d_jax.recon.nerf.occupancy import Occupancy

    field = _field(context, kept["params"], Occupancy(**kept["occupancy"]))
    return replace(state, representation=field, log=tuple(log_from_json(kept["log"])))


def extract_surface(context: "Context", state: State) -> State:
    """The surface of the field."""
    field: NerfField = state.representation  # type: ignore[assignment]
    return replace(state, mesh=field.mesh(), facts=state.facts | field.facts)


def pack_surface(state: State) -> dict[str, Any]:
    """The surface and what is known of it."""
    return {"vertices": state.mesh.vertices, "faces": state.mesh.faces, "facts": json.dumps(state.facts)}


def unpack_surface(context: "Context", state: State, kept: dict[str, Any]) -> State:
    """The state after the surface was extracted."""
    from sv3d_jax.geometry.mesh import Mesh

    return replace(state, mesh=Mesh(kept["vertices"], kept["faces"]), facts=json.loads(kept["facts"]))


def fit_fine(context: "Context", state: State) -> State:
    """Signed distances on tetrahedra, the field's albedo and a light, fitted together from the coarse surface."""
    from sv3d_jax.recon.dmtet.representation import TetSurface
    from sv3d_jax.recon.dmtet.stage import fit_surface, surface_mesh
    from sv3d_jax.recon.parts import without_white_parts

    recipe, field = context.recipe, state.representation
    color = _albedo(context)
    surface, params, log = fit_surface(
        recipe.mesh,
        color,
        state.mesh,
        field.params,
        context.views,
        context.seed,
        hooks=context.fit_hooks("fine", lambda fitted: TetSurface.of_fit(color, *fitted)),
        save=context.unfinished_fit("fine"),
        vgg=context.vgg,
        guide=context.guide,
    )
    if not surface.num_faces:
        distances = params["sdf"]
        raise SV3DError(
            "the surface is empty: the fine stage's distances all lie between"
            f" {distances.min():.4g} and {distances.max():.4g}",
            hint="a smaller learning_rate under [mesh] of a --config file, or --fine-steps 0",
        )
    mesh = without_white_parts(surface_mesh(surface, recipe.nerf.min_component), context.views)
    fitted = TetSurface(mesh.vertices, mesh.faces, color, params["field"], params["light"])
    return replace(state, mesh=mesh, representation=fitted.with_full_light(), log=(*state.log, *log))


def pack_fine(state: State) -> dict[str, Any]:
    """Surface, colours and light, and the log."""
    fitted: TetSurface = state.representation  # type: ignore[assignment]
    return {
        "vertices": fitted.vertices,
        "faces": fitted.faces,
        "field": fitted.field,
        "light": fitted.light,
        "albedo_scale": fitted.albedo_scale,
        "log": json.dumps(state.log),
    }


def unpack_fine(context: "Context", state: State, kept: dict[str, Any]) -> State:
    """The state after the fine stage."""
    from sv3d_jax.geometry.mesh import Mesh
    from sv3d_jax.recon.dmtet.representation import TetSurface
    from sv3d_jax.recon.fit import log_from_json
    from sv3d_jax.render.lighting import SGLight

    vertices, faces, log = kept["vertices"], kept["faces"], log_from_json(kept["log"])
    light = None if kept["light"] is None else SGLight(*kept["light"])
    fitted = TetSurface(vertices, faces, _albedo(context), kept["field"], light, kept["albedo_scale"])
    return replace(state, mesh=Mesh(vertices, faces), representation=fitted, log=tuple(log))


def bake(context: "Context", state: State) -> State:
    """Fewer faces, texture coordinates, and the colours as a texture; one more with light, where there is one."""
    from sv3d_jax.recon.bake import bake_texture, textured
    from sv3d_jax.recon.representations import lit

    shape, size = state.representation, context.recipe.bake.texture_size
    mesh = textured(state.mesh, shape.colors_at, size, context.recipe.bake.max_faces)
    if shape.light is None:
        return replace(state, mesh=mesh)
    texture = bake_texture(mesh, lit(shape.colors_at, shape.light), size)
    return replace(state, mesh=mesh, lit=replace(mesh, texture=texture))


def pack_baked(state: State) -> dict[str, Any]:
    """The textured meshes."""
    mesh, lit = state.mesh, None if state.lit is None else state.lit.texture
    return {"vertices": mesh.vertices, "faces": mesh.faces, "uv": mesh.uv, "albedo": mesh.texture, "lit": lit}


def unpack_baked(context: "Context", state: State, kept: dict[str, Any]) -> State:
    """The state after baking."""
    from sv3d_jax.geometry.mesh import Mesh

    mesh = Mesh(kept["vertices"], kept["faces"], uv=kept["uv"], texture=kept["albedo"])
    return replace(state, mesh=mesh, lit=None if kept["lit"] is None else replace(mesh, texture=kept["lit"]))


def _field(context: "Context", params, occupancy) -> "NerfField":
    from sv3d_jax.recon.nerf.representation import NerfField

    return NerfField(context.recipe.nerf, params, occupancy, context.views)


def _albedo(context: "Context") -> "ColorField":
    from sv3d_jax.recon.nerf.field import albedo

    return partial(albedo, context.recipe.nerf)


SV3D = Method(
    "sv3d",
    (
        Stage(
            "coarse",
            fit_coarse,
            pack_coarse,
            unpack_coarse,
            stop=None,
            is_fit=True,
            compile_ahead=compile_coarse,
        ),
        # The mesh of the coarse fit, so `--stage coarse` stops here: the fit alone leaves a field, which is no mesh.
        Stage("surface", extract_surface, pack_surface, unpack_surface, stop="coarse"),
        Stage(
            "fine",
            fit_fine,
            pack_fine,
            unpack_fine,
            is_fit=True,
            is_used=lambda recipe: recipe.mesh.num_steps > 0,
            uses=("sds", "lpips", "normals"),
        ),
        Stage("bake", bake, pack_baked, unpack_baked),
    ),
    presets={name: PRESETS / f"{name}.toml" for name in ("preview", "fast", "quality")},
)
