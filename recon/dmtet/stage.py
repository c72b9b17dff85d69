"""Fine stage: distances on a grid of tetrahedra, texture field and light, fitted together to whole pictures."""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sv3d_jax.arrays import Array, Bool, Float, Int, Params, PRNGKeyArray, Scalar
from sv3d_jax.geometry.marching_cubes import keep_large_components
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.metrics.perceptual import lpips
from sv3d_jax.recon import losses
from sv3d_jax.recon.config import MeshConfig, NerfConfig
from sv3d_jax.recon.dmtet.surface import Capacity, Surface, deform, extract, marching_tets, signed_distance
from sv3d_jax.recon.dmtet.tets import TetGrid, band, kuhn_grid
from sv3d_jax.recon.fit import STEPS_PER_CALL, FitInfo, Look, fit
from sv3d_jax.recon.guide import Guidance, Guide
from sv3d_jax.recon.nerf.field import albedo
from sv3d_jax.recon.sds import sds_loss, visibility_mask
from sv3d_jax.recon.views import BOX_HALF_SIZE, Cameras, Views
from sv3d_jax.render.antialias import Edges, antialias, closed_mesh_edges
from sv3d_jax.render.interpolate import face_normals, interpolate, seen_shading_normals, vertex_normals
from sv3d_jax.render.lighting import SGLight, init_sg_light
from sv3d_jax.render.rasterize import project, rasterize

TRUNCATION_CELLS = 2.0  # of the distances at the start, so that the zero-crossing's interpolation is linear
SPARE = 1.25  # rows of the mesh's arrays over those in use when they are sized
SPARE_PIXELS = 1.1  # the same of the object's pixels, whose number the masks tell
WORLD_TO_BOX = BOX_HALF_SIZE / 0.6  # SV3D's world, in which lengths of the paper are, to box units
NEARBY_STD = 0.01 * WORLD_TO_BOX
NEARBY_POINTS = 4096  # of each step
MANY_PAINTS = (
    4  # places that must all be of other paints than a first one for the prior on the light to count
)


class Lattice(NamedTuple):
    """What the surface is cut out of: tetrahedra in a band around the coarse surface, and their distances to it."""

    grid: TetGrid
    sdf: Float[Array, "v"]
    at_rim: Bool[Array, "v"]  # where the distance stays, so that the surface is closed


class Room(NamedTuple):
    """Sizes of a step's arrays, which must be known before it runs."""

    vertices: int
    faces: int
    pixels: int  # of the object, in all views of a step together
    orbit_pixels: int  # likewise in all frames of a random orbit

    @property
    def mesh(self) -> Capacity:
        return Capacity(self.vertices, self.faces)


class MeshState(NamedTuple):
    """What the fit changes."""

    params: Params  # sdf, offsets, field, light
    optimizer: optax.OptState
    step: Int[Array, ""]
    room: Room  # part of the state, so that a resumed fit takes the same steps
    crowded: Room  # whether a step of this call had too little of each


class Data(NamedTuple):
    """What the fit is given."""

    lattice: Lattice
    views: Views
    vgg: Params | None
    guidance: Guidance | None


class Rendered(NamedTuple):
    """What views show of a mesh; buffers without antialiasing are 0 on the background."""

    image: Float[Array, "f h w 3"]  # lit, over white
    opacity: Float[Array, "f h w"]
    shading: Float[Array, "f h w"]  # without gradient in the surface; not antialiased, as are the next ones
    points: Float[Array, "f h w 3"]
    normals: Float[Array, "f h w 3"]
    albedo: Float[Array, "f h w 3"]
    depth: Float[Array, "f h w"]
    covered: Float[Array, "f h w"]
    crowded: Bool[Array, ""]  # more pixels than room, some of which have no colour then


def fit_surface(
    config: MeshConfig,
    nerf: NerfConfig,
    coarse: Mesh,
    field: Params,
    views: Views,
    seed: int,
    callback: Callable[[FitInfo], None] | None = None,
    save: Path | None = None,
    look: Look | None = None,
    vgg: Params | None = None,
    guide: Guide | None = None,
) -> tuple[Surface, Params, list[FitInfo]]:
    """Surface in box coordinates, texture field and light that explain the views, from a coarse mesh and its field.

    `look` is shown pairs of surface and parameters. With `vgg`, the weights of LPIPS, pictures are compared by it. A
    guide has a say in the last steps, about what no view shows.
    """
    lattice = start_lattice(config, coarse)
    views = jax.tree.map(jnp.asarray, views)
    optimizer = optax.adam(
        optax.cosine_decay_schedule(config.learning_rate, config.num_steps, alpha=0.1), b2=0.99, eps=1e-15
    )
    state = _start_state(config, lattice, field, views, optimizer, guide)

    @cache
    def step_with(room, guide):
        return partial(_step, partial(_loss, config, nerf, guide, room), optimizer)

    def surface_of(state):
        capacity = Room(*map(int, state.room)).mesh
        return extract(lattice.grid, *_displaced(config, lattice, state.params), capacity)[0]

    def look_at(step, state):
        look.at(step, (surface_of(state), state.params))

    def choose(state):
        is_guided = int(state.step) in sds_steps(config)
        return step_with(Room(*map(int, state.room)), guide if is_guided else None)

    state, log = fit(
        choose(state),
        state,
        Data(lattice, views, vgg, None if guide is None else guide.guidance),
        config.num_steps,
        jax.random.key(seed),
        callback,
        choose=choose,
        retry=_with_more_room,
        save=save,
        look=None if look is None else look._replace(at=look_at),
    )
    return surface_of(state), state.params, log


def sds_steps(config: MeshConfig) -> range:
    """The steps with score distillation: the last ones, in whole calls of the fit."""
    calls = math.ceil(config.num_steps / STEPS_PER_CALL)
    first = calls - math.ceil(config.sds.share * calls)
    return range(first * STEPS_PER_CALL, calls * STEPS_PER_CALL)


def surface_mesh(surface: Surface, min_component: float) -> Mesh:
    """A surface in box coordinates, without colours and without parts of a smaller share of the faces."""
    count = int(surface.num_vertices), int(surface.num_faces)
    vertices = np.asarray(surface.vertices[: count[0]], np.float64)
    return Mesh(*keep_large_components(vertices, np.asarray(surface.faces[: count[1]]), min_component))


def start_light(config: MeshConfig) -> SGLight | None:
    """Even light from all around, or None where colours are to stay as they are seen."""
    return init_sg_light(config.num_lobes) if config.num_lobes else None


def start_lattice(config: MeshConfig, coarse: Mesh) -> Lattice:
    """The part of the grid that is near the coarse surface; farther away the fit could change nothing."""
    grid = kuhn_grid(config.cells)
    truncation = TRUNCATION_CELLS * 2 * BOX_HALF_SIZE / config.cells
    sdf = signed_distance(coarse, BOX_HALF_SIZE * grid.vertices, truncation)
    part, rows, at_rim = band(grid, np.abs(sdf) < truncation)
    return jax.tree.map(jnp.asarray, Lattice(part, sdf[rows], at_rim))


def render_surface(
    nerf: NerfConfig,
    params: Params,
    surface: Surface,
    edges: Edges,
    cameras: Cameras,
    size: tuple[int, int],
    max_pixels: int,
) -> Rendered:
    """The surface with its edges as the cameras see it, in the colours of the field and the light; size is (h, w).

    Colours and light are computed for the object's pixels only, of which all views together may have `max_pixels`.
    """
    vertices, faces = surface.vertices, surface.faces
    screen = project(vertices, *cameras)
    fragments = rasterize(screen, faces, *size)
    is_covered = fragments.face_id >= 0
    points = interpolate(vertices, faces, fragments)
    normals = seen_shading_normals(vertex_normals(vertices, faces), faces, fragments)

    (pixel,) = jnp.nonzero(is_covered.ravel(), size=max_pixels, fill_value=is_covered.size)
    point, normal = (x.reshape(-1, 3).at[pixel].get(mode="fill", fill_value=0.0) for x in (points, normals))

    def picture(values):
        flat = jnp.zeros((is_covered.size, *values.shape[1:])).at[pixel].set(values, mode="drop")
        return flat.reshape(*is_covered.shape, *values.shape[1:])

    color = picture(albedo(nerf, params["field"], point))
    shading, bent = (picture(values) for values in _shadings(params["light"], normal))
    covered = is_covered.astype(jnp.float32)
    buffers = jnp.concatenate([color * (shading + bent)[..., None], covered[..., None]], axis=-1)
    buffers = antialias(buffers, fragments, screen, faces, edges)
    lit, opacity = buffers[..., :3], buffers[..., 3]
    image = lit + 1.0 - opacity[..., None]
    crowded = is_covered.sum() > max_pixels
    return Rendered(image, opacity, shading, points, normals, color, fragments.depth, covered, crowded)


def _shadings(light: SGLight | None, normals: Float[Array, "n 3"]) -> tuple[Array, Array]:
    """Shading without gradient in the normals, and a 0 whose gradient in the normals is that of the shading.

    The prior on the light is not to bend the surface, for what varies may be the albedo; pictures may. Gradients in
    the light and in the normals so are computed once each.
    """
    if light is None:
        return jnp.ones(len(normals)), jnp.zeros(len(normals))
    bent = jax.checkpoint(jax.lax.stop_gradient(light).shade)(normals)  # faster than what would be kept
    return light.shade(jax.lax.stop_gradient(normals)), bent - jax.lax.stop_gradient(bent)


def image_losses(seen: Rendered, views: Views, vgg: Params | None = None) -> dict[str, Array]:
    """The losses of SV3D's appendix that compare or smooth pictures, by name; `vgg` are the weights of LPIPS."""
    valid = losses.eroded(views.masks) * losses.eroded(seen.covered)
    if vgg is None:
        perceptual = losses.perceptual_loss(seen.image, views.images)
    else:
        perceptual = jnp.mean(lpips(seen.image, views.images, vgg))
    parts = {
        "photometric": losses.photometric_loss(seen.image, views.images),
        "mask": losses.mask_loss(seen.opacity, views.masks, views.mask_weights),
        "perceptual": perceptual,
        "illumination": losses.illumination_loss(seen.shading, views.images, valid),
        "depth": losses.depth_smoothness_loss(seen.depth, seen.covered, valid),
        "bilateral": losses.bilateral_loss(seen.normals, views.images, valid),
    }
    if views.normals is not None:
        normals = losses.normals_in_camera(seen.normals, views.camera_to_box)
        parts["normal"] = losses.normal_loss(normals, views.normals, valid)
    return parts


def _start_state(
    config: MeshConfig,
    lattice: Lattice,
    field: Params,
    views: Views,
    optimizer: optax.GradientTransformation,
    guide: Guide | None,
) -> MeshState:
    params = {
        "sdf": lattice.sdf,
        "offsets": jnp.zeros_like(lattice.grid.vertices),
        "field": field,
        "light": start_light(config),
    }
    surface, _ = extract(lattice.grid, *_displaced(config, lattice, params), Capacity(2**12, 2**13))
    room = Room(
        _room(SPARE * surface.num_vertices),
        _room(SPARE * surface.num_faces),
        _object_pixels(views, config.views_per_step),
        0 if guide is None else _orbit_pixels(views, guide),
    )
    return MeshState(
        params=params,
        optimizer=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        room=jax.tree.map(jnp.int32, room),
        crowded=jax.tree.map(lambda _: jnp.zeros((), bool), room),
    )


def _room(count: float) -> int:
    """The count rounded up to one of four sizes between powers of two, so that objects share compiled programs."""
    block = max(2**12, 1 << (math.ceil(count) - 1).bit_length()) // 8
    return block * math.ceil(count / block)


def _object_pixels(views: Views, count: int) -> int:
    """Room for the object's pixels in any `count` views, and for some more."""
    areas = np.sort((np.asarray(views.masks) > 0).sum(axis=(1, 2)))[-count:]
    return _whole_blocks(SPARE_PIXELS * areas.sum())


def _orbit_pixels(views: Views, guide: Guide) -> int:
    """Room for the object's pixels in all frames of a random orbit, each as full as the fullest view, and some more."""
    share = (np.asarray(views.masks) > 0).mean(axis=(1, 2)).max()
    return _whole_blocks(SPARE * share * guide.num_frames * guide.size**2)


def _whole_blocks(count: float, block: int = 2**12) -> int:
    return block * math.ceil(count / block)


def _with_more_room(before: MeshState, after: MeshState) -> MeshState | None:
    """The state before a call with double of what was too little in it, None where all sufficed."""
    if not any(after.crowded):
        return None
    room = jax.tree.map(lambda size, short: size * (1 + short), before.room, after.crowded)
    return before._replace(room=room)


def _step(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    state: MeshState,
    data: Data,
    key: PRNGKeyArray,
) -> tuple[MeshState, dict[str, Array]]:
    gradient, (parts, crowded) = jax.grad(loss, has_aux=True)(state.params, state.step, data, key)
    updates, moments = optimizer.update(gradient, state.optimizer)
    params = optax.apply_updates(state.params, updates)
    crowded = jax.tree.map(jnp.logical_or, state.crowded, crowded)
    return MeshState(params, moments, state.step + 1, state.room, crowded), parts


def _loss(
    config: MeshConfig,
    nerf: NerfConfig,
    guide: Guide | None,
    room: Room,
    params: Params,
    step: Int[Array, ""],
    data: Data,
    key: PRNGKeyArray,
) -> tuple[Scalar, tuple[dict[str, Array], Room]]:
    """The weighted sum of the losses for some of the views; also each of them, and what had too little room."""
    lattice, views, vgg, _ = data
    view_key, point_key, pair_key, guide_key = jax.random.split(key, 4)
    frames = jax.random.permutation(view_key, len(views.images))[: config.views_per_step]
    some = jax.tree.map(lambda leaf: leaf[frames], views)
    surface = marching_tets(lattice.grid, *_displaced(config, lattice, params), room.mesh)
    edges = closed_mesh_edges(surface.faces, room.vertices)
    render = partial(render_surface, nerf, params, surface, edges)
    seen = render(some.cameras, views.masks.shape[1:], room.pixels)
    parts = image_losses(seen, some, vgg) | _surface_losses(nerf, params, surface, edges, seen, point_key)
    if params["light"] is None:
        del parts["illumination"]
    else:
        parts |= light_losses(seen, some, parts["illumination"], pair_key)
    if config.weights.laplacian:
        parts["laplacian"] = losses.laplacian_loss(surface.vertices, edges.vertices, edges.faces)
    ramp = jnp.maximum(1.0 - 4.0 * step / config.num_steps, 0.05)  # the sign term, over the first quarter
    weights = asdict(config.weights) | {"sdf_sign": config.weights.sdf_sign * ramp}
    total = sum(weights[name] * value for name, value in parts.items())
    parts["loss"] = total
    orbit_crowded = jnp.zeros((), bool)
    if guide is not None:
        distilled, parts["sds"], orbit_crowded = distillation(
            config, guide, render, room.orbit_pixels, step, data, guide_key
        )
        total += config.sds.weight * distilled
    mesh_crowded = surface.num_vertices > room.vertices, surface.num_faces > room.faces
    return total, (parts, Room(*mesh_crowded, seen.crowded, orbit_crowded))


def light_losses(seen: Rendered, views: Views, illumination: Scalar, key: PRNGKeyArray) -> dict[str, Array]:
    """The losses that tell the light from the albedo, by name, given what SV3D's prior says.

    That prior takes a dark part for one in the shade. Where paints are many, their darkness averages out; where they
    are few, one of them would set the light, as the darker side of a sheet does. There the light is even instead,
    unless the brightness of one paint tells it.
    """
    pairs = losses.paint_pairs(seen.shading, views.images, seen.covered * views.masks, key)
    many = (1.0 - losses.one_paint_share(pairs)) ** MANY_PAINTS
    return {
        "illumination": many * illumination,
        "evenness": (1.0 - many) * losses.evenness_loss(pairs),
        "chromaticity": losses.chromaticity_loss(pairs),
    }


def distillation(
    config: MeshConfig,
    guide: Guide,
    render: Callable[..., Rendered],
    max_pixels: int,
    step: Int[Array, ""],
    data: Data,
    key: PRNGKeyArray,
) -> tuple[Scalar, Scalar, Bool[Array, ""]]:
    """The loss of one of the guide's orbits, its gradient's root mean square, and whether pixels had too little room.

    The value of the loss means nothing. `render` takes cameras, size and room, as `render_surface` does.
    """
    orbit_key, gradient_key = jax.random.split(key)
    orbit = jax.random.randint(orbit_key, (), 0, len(data.guidance.condition.vector))
    cameras = jax.tree.map(lambda leaf: leaf[orbit], data.guidance.cameras)
    seen = render(cameras, (guide.size, guide.size), max_pixels)
    mask = seen.covered
    if config.sds.masked:
        mask, _, _ = visibility_mask(seen.points, seen.normals, data.views.camera_to_box[:, :3, 3])
    steps = sds_steps(config)
    gradient = guide.gradient(
        data.guidance, orbit, seen.image, mask, step - steps.start, len(steps), gradient_key
    )
    return sds_loss(seen.image, gradient), jnp.sqrt(jnp.mean(jnp.square(gradient))), seen.crowded


def _surface_losses(
    nerf: NerfConfig, params: Params, surface: Surface, edges: Edges, seen: Rendered, key: PRNGKeyArray
) -> dict[str, Array]:
    """The losses that look at the surface itself, by name."""
    here, nearby, on_object = _nearby(seen, key)
    there = albedo(nerf, params["field"], nearby)
    normals = face_normals(surface.vertices, surface.faces)
    return {
        "albedo": losses.albedo_smoothness_loss(here, there, on_object),
        "normal_consistency": losses.normal_consistency_loss(normals, edges.faces),
        "sdf_sign": losses.sdf_sign_loss(params["sdf"], surface.edges),
    }


def _displaced(
    config: MeshConfig, lattice: Lattice, params: Params
) -> tuple[Float[Array, "v 3"], Float[Array, "v"]]:
    """The grid's vertices in the box, each moved by less than half a cube, and the distances there."""
    positions = BOX_HALF_SIZE * deform(lattice.grid.vertices, params["offsets"], config.cells)
    return positions, jnp.where(lattice.at_rim, lattice.sdf, params["sdf"])


def _nearby(seen: Rendered, key: Array) -> tuple[Array, Array, Array]:
    """Albedo of some pixels, a point near each one's point of the surface, and which of them are on the object."""
    pixel_key, move_key = jax.random.split(key)
    pixel = jax.random.randint(pixel_key, (NEARBY_POINTS,), 0, seen.covered.size)
    points = jax.lax.stop_gradient(seen.points.reshape(-1, 3)[pixel])
    nearby = losses.nearby_points(points, NEARBY_STD, move_key)
    return seen.albedo.reshape(-1, 3)[pixel], nearby, seen.covered.reshape(-1)[pixel]
