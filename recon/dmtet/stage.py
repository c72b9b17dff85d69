"""Fine stage: distances on a grid of tetrahedra, texture field and light, fitted together to whole pictures."""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sv3d_jax.arrays import Array, Bool, Float, Int, Params
from sv3d_jax.geometry.marching_cubes import keep_large_components
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.metrics.perceptual import lpips
from sv3d_jax.recon import losses
from sv3d_jax.recon.config import MeshConfig, NerfConfig
from sv3d_jax.recon.dmtet.surface import Capacity, Surface, deform, extract, marching_tets, signed_distance
from sv3d_jax.recon.dmtet.tets import TetGrid, band, kuhn_grid
from sv3d_jax.recon.fit import FitInfo, Look, fit
from sv3d_jax.recon.nerf.field import albedo
from sv3d_jax.recon.views import BOX_HALF_SIZE, Views
from sv3d_jax.render.antialias import antialias, mesh_edges
from sv3d_jax.render.interpolate import face_normals, interpolate, seen_shading_normals, vertex_normals
from sv3d_jax.render.lighting import SGLight, init_sg_light
from sv3d_jax.render.rasterize import project, rasterize

TRUNCATION_CELLS = 2.0  # of the distances at the start, so that the zero-crossing's interpolation is linear
SPARE = 1.25  # rows of the mesh's arrays over those in use when they are sized
WORLD_TO_BOX = BOX_HALF_SIZE / 0.6  # SV3D's world, in which lengths of the paper are, to box units
NEARBY_STD = 0.01 * WORLD_TO_BOX
NEARBY_POINTS = 4096  # of each step


class Lattice(NamedTuple):
    """What the surface is cut out of: tetrahedra in a band around the coarse surface, and their distances to it."""

    grid: TetGrid
    sdf: Float[Array, "v"]
    at_rim: Bool[Array, "v"]  # where the distance stays, so that the surface is closed


class MeshState(NamedTuple):
    """What the fit changes."""

    params: Params  # sdf, offsets, field, light
    optimizer: optax.OptState
    step: Int[Array, ""]
    crowded: Bool[Array, ""]  # whether a step of this call had no room for all pixels of the object


class Room(NamedTuple):
    """Static sizes of a step."""

    mesh: Capacity
    pixels: int  # of the object, in all views together


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
) -> tuple[Surface, Params, list[FitInfo]]:
    """Surface in box coordinates, texture field and light that explain the views, from a coarse mesh and its field.

    `look` is shown pairs of surface and parameters. With `vgg`, the weights of LPIPS, pictures are compared by it.
    """
    lattice = start_lattice(config, coarse)
    optimizer = optax.adam(
        optax.cosine_decay_schedule(config.learning_rate, config.num_steps, alpha=0.1), b2=0.99, eps=1e-15
    )
    params = _initial_params(config, lattice, field)
    state = MeshState(params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    views = jax.tree.map(jnp.asarray, views)
    count = min(config.views_per_step, len(views.images))

    def loss(room, params, step, data, key):
        lattice, views, vgg = data
        view_key, point_key = jax.random.split(key)
        frames = jax.random.permutation(view_key, len(views.images))[:count]
        some = jax.tree.map(lambda leaf: leaf[frames], views)
        surface = marching_tets(lattice.grid, *_displaced(config, lattice, params), room.mesh)
        seen = render_surface(nerf, params, surface, some, room.pixels)
        parts = image_losses(seen, some, vgg)
        if params["light"] is None:
            del parts["illumination"]
        here, nearby, on_object = _nearby(seen, point_key)
        there = albedo(nerf, params["field"], nearby)
        parts["albedo"] = losses.albedo_smoothness_loss(here, there, on_object)
        normals = face_normals(surface.vertices, surface.faces)
        parts["normal_consistency"] = losses.normal_consistency_loss(normals, mesh_edges(surface.faces).faces)
        parts["sdf_sign"] = losses.sdf_sign_loss(params["sdf"], surface.edges)
        ramp = jnp.maximum(1.0 - 4.0 * step / config.num_steps, 0.05)  # the sign term, over the first quarter
        weights = asdict(config.weights) | {"sdf_sign": config.weights.sdf_sign * ramp}
        total = sum(weights[name] * value for name, value in parts.items())
        return total, (parts | {"loss": total}, surface.overflow, seen.crowded)

    def step(room, state, data, key):
        gradient, (parts, overflow, crowded) = jax.grad(partial(loss, room), has_aux=True)(
            state.params, state.step, data, key
        )
        updates, moments = optimizer.update(gradient, state.optimizer)
        new = MeshState(optax.apply_updates(state.params, updates), moments, state.step + 1, state.crowded)
        # What outgrew its arrays is not stepped on; the next call has larger ones.
        state = jax.tree.map(lambda old, new: jnp.where(overflow | crowded, old, new), state, new)
        return state._replace(crowded=state.crowded | crowded), parts

    def begin(state, key):
        return state._replace(crowded=jnp.zeros((), bool))

    @cache
    def step_with(room):
        return partial(step, room)

    capacity, pixels = Capacity(2**12, 2**13), _object_pixels(views, count)

    def choose(state):
        nonlocal capacity, pixels
        if state.crowded:
            pixels *= 2
        surface, _ = extract(lattice.grid, *_displaced(config, lattice, state.params), capacity)
        while min(capacity.vertices / surface.num_vertices, capacity.faces / surface.num_faces) < SPARE:
            capacity = Capacity(2 * capacity.vertices, 2 * capacity.faces)
        return step_with(Room(capacity, pixels))

    def look_at(step, state):
        surface, _ = extract(lattice.grid, *_displaced(config, lattice, state.params), capacity)
        look.at(step, (surface, state.params))

    state, log = fit(
        step_with(Room(capacity, pixels)),
        state,
        (lattice, views, vgg),
        config.num_steps,
        jax.random.key(seed),
        callback,
        begin=begin,
        choose=choose,
        save=save,
        look=None if look is None else look._replace(at=look_at),
    )
    surface, _ = extract(lattice.grid, *_displaced(config, lattice, state.params), capacity)
    return surface, state.params, log


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
    nerf: NerfConfig, params: Params, surface: Surface, views: Views, max_pixels: int
) -> Rendered:
    """The surface as the views' cameras see it, in the colours of the field and the light.

    Colours and light are computed for the object's pixels only, of which all views together may have `max_pixels`.
    """
    height, width = views.masks.shape[1:]
    vertices, faces = surface.vertices, surface.faces
    screen = project(vertices, views.camera_to_box, views.focal_px, views.center_px)
    fragments = rasterize(screen, faces, height, width)
    is_covered = fragments.face_id >= 0
    points = interpolate(vertices, faces, fragments)
    normals = seen_shading_normals(vertex_normals(vertices, faces), faces, fragments)

    (pixel,) = jnp.nonzero(is_covered.ravel(), size=max_pixels, fill_value=is_covered.size)
    point, normal = (x.reshape(-1, 3).at[pixel].get(mode="fill", fill_value=0.0) for x in (points, normals))

    def picture(values):
        flat = jnp.zeros((is_covered.size, *values.shape[1:])).at[pixel].set(values, mode="drop")
        return flat.reshape(*is_covered.shape, *values.shape[1:])

    def light(normal):
        return jnp.ones(max_pixels) if params["light"] is None else params["light"].shade(normal)

    color = picture(albedo(nerf, params["field"], point))
    # The prior on the light is not to bend the surface: what varies may be the albedo.
    shading = picture(light(jax.lax.stop_gradient(normal)))
    covered = is_covered.astype(jnp.float32)
    buffers = jnp.concatenate([color * picture(light(normal))[..., None], covered[..., None]], axis=-1)
    buffers = antialias(buffers, fragments, screen, faces, mesh_edges(faces))
    lit, opacity = buffers[..., :3], buffers[..., 3]
    image = lit + 1.0 - opacity[..., None]
    crowded = is_covered.sum() > max_pixels
    return Rendered(image, opacity, shading, points, normals, color, fragments.depth, covered, crowded)


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


def _object_pixels(views: Views, count: int) -> int:
    """Room for the object's pixels in any `count` views, and for some more."""
    areas = np.sort((np.asarray(views.masks) > 0).sum(axis=(1, 2)))[-count:]
    step = 2**12
    return step * -(-int(SPARE * areas.sum()) // step)


def _displaced(
    config: MeshConfig, lattice: Lattice, params: Params
) -> tuple[Float[Array, "v 3"], Float[Array, "v"]]:
    """The grid's vertices in the box, each moved by less than half a cube, and the distances there."""
    positions = BOX_HALF_SIZE * deform(lattice.grid.vertices, params["offsets"], config.cells)
    return positions, jnp.where(lattice.at_rim, lattice.sdf, params["sdf"])


def _initial_params(config: MeshConfig, lattice: Lattice, field: Params) -> Params:
    return {
        "sdf": jnp.array(lattice.sdf),  # a copy, for the fit gives its state away
        "offsets": jnp.zeros_like(lattice.grid.vertices),
        "field": field,
        "light": start_light(config),
    }


def _nearby(seen: Rendered, key: Array) -> tuple[Array, Array, Array]:
    """Albedo of some pixels, a point near each one's point of the surface, and which of them are on the object."""
    pixel_key, move_key = jax.random.split(key)
    pixel = jax.random.randint(pixel_key, (NEARBY_POINTS,), 0, seen.covered.size)
    points = jax.lax.stop_gradient(seen.points.reshape(-1, 3)[pixel])
    nearby = losses.nearby_points(points, NEARBY_STD, move_key)
    return seen.albedo.reshape(-1, 3)[pixel], nearby, seen.covered.reshape(-1)[pixel]
