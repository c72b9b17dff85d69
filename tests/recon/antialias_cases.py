"""Readers of the reference data on silhouettes: gradients of the rasterizer, and triangles of known area.

The stored gradients are finite differences of pictures that count samples. The pictures are counted here once
more, in float64 at the same samples, which meets the stored numbers to a few samples in millions. The antialiased
renderer is coarser: it is held against the result within the tolerances of the data's README, and where it misses
them its own numbers take the place of the result and fail the comparison.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import map_coordinates

from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.render.antialias import antialias, box_filter, mesh_edges
from sv3d_jax.render.interpolate import interpolate
from sv3d_jax.render.rasterize import project, rasterize
from tests.parity.cases import Case, Family, load_arrays, load_numbers
from tests.parity.compare import Tolerance, relative
from tests.recon.sampling import sample_bilinear

LOSSES = ("mask_mse", "rgb_mse", "mean_mask")
STEPS = (0.008, 0.004)
FACTORS = (1, 4)  # supersampling under the antialiasing
TRIANGLE_FACTOR = 8  # of the few triangles: where edges meet, the derivative misses up to a row of points

# Largest error of a component over the largest component for each factor, and least cosine.
_GRADIENT_LIMITS = {
    "mask_mse": ((0.12, 0.08), 0.995),
    "rgb_mse": ((0.17, 0.17), 0.985),
    "mean_mask": ((0.12, 0.08), 0.995),
}
# Mean difference of mask, colours and textured colours for each factor: twice what the README allows at 128
# pixels, for at 64 the silhouettes take up twice the share of the picture.
_TARGET_LIMITS = {1: (2.4e-3, 2e-3, 8e-3), 4: (8e-4, 6e-4, 2e-3)}


# Gradients and their targets


def load_gradients(path: Path) -> dict[str, np.ndarray]:
    return _counted(load_numbers(path))


def compute_gradients(case: Case, path: str) -> dict[str, np.ndarray]:
    given = json.loads(case.path.read_text())
    outputs = {name: given[name] for name in ("resolution", "samples_per_pixel")}
    for index, entry in enumerate(given["cases"]):
        scene = Scene.of(case.folder, given, entry)
        target = scene.sampled(entry["target_transform"])
        values = _losses(scene.sampled(np.zeros(5)), target, np)
        coarse, fine = (scene.central_differences(step, target) for step in STEPS)
        antialiased = [scene.antialiased_gradients(target, factor) for factor in FACTORS]
        for place, loss in enumerate(LOSSES):
            exact = (4 * fine[place] - coarse[place]) / 3
            errors_allowed, least_cosine = _GRADIENT_LIMITS[loss]
            missed = [
                gradients[place]
                for gradients, allowed in zip(antialiased, errors_allowed, strict=True)
                if not (
                    relative(gradients[place], exact) <= allowed
                    and _cosine(gradients[place], exact) >= least_cosine
                )
            ]
            stem = f"cases.{index}.{loss}"
            outputs[f"{stem}.value"] = values[place]
            outputs[f"{stem}.grad"] = missed[0] if missed else exact
            outputs[f"{stem}.step_spread"] = np.abs(fine[place] - coarse[place])
    return _counted(outputs)


def gradient_tolerance(name: str, path: str) -> Tolerance:
    # A sample that falls on the other side of an edge changes a value by up to 5e-5, and a gradient by 1e-4. Of
    # the rgb loss, whose numbers count nothing, a thousandth more in the step spread alone lies within that.
    if name.endswith(".value"):
        return Tolerance(2e-4, relative)
    return Tolerance(5e-4, relative) if ".rgb_mse." in name else Tolerance(1e-4, _unless_whole)


def compute_targets(case: Case, path: str) -> dict[str, np.ndarray]:
    given, outputs = json.loads(case.path.with_name("gradients.json").read_text()), {}
    for entry in given["cases"]:
        scene, transform = Scene.of(case.folder, given, entry), entry["target_transform"]
        exact = scene.sampled(transform)
        missed = []
        for factor, (mask_limit, *color_limits) in _TARGET_LIMITS.items():
            image = scene.antialiased(transform, factor)
            difference = np.abs(image - exact).mean((0, 1))
            color_limit = color_limits[scene.surface.texture is not None]
            if not (difference[3] <= mask_limit and difference[:3].mean() <= color_limit):
                missed.append(image)
        outputs[f"{entry['mesh']}_{entry['camera']}_target_rgba"] = missed[0] if missed else exact
    return outputs


def _counted(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors with each gradient and its step spread in one array, those of masks as numbers of samples.

    Masks count samples, so their differences are whole numbers, of which the extrapolation makes thirds.
    """
    samples = tensors["samples_per_pixel"]
    pixels = tensors["resolution"] ** 2
    units = {"mask_mse": pixels * samples**2, "rgb_mse": 1.0, "mean_mask": pixels * samples}
    tensors = dict(tensors)
    for name in [name for name in tensors if name.endswith(".grad")]:
        stem = name.removesuffix(".grad")
        both = np.concatenate([tensors.pop(name), tensors.pop(f"{stem}.step_spread")])
        tensors[f"{stem}.derivatives"] = both * 6 * STEPS[0] * units[stem.rsplit(".", 1)[1]]
    return tensors


def _unless_whole(got: np.ndarray, stored: np.ndarray) -> float:
    """Largest difference from a whole number of samples, of which some may fall on the other side of an edge."""
    difference = np.abs(got - stored)
    few = difference <= 2e-3 * np.abs(stored).max()
    return float(np.where(few, np.abs(difference - np.rint(difference)), difference).max())


def _largest_but_four(got: np.ndarray, stored: np.ndarray) -> float:
    """Largest difference of a pixel but for four: a sample may fall on the other side of an edge."""
    return float(np.sort(np.abs(got - stored).max(-1).ravel())[-5])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _losses(image: Any, target: Any, xp: Any) -> Any:
    squared = (image - target) ** 2
    return xp.stack([squared[..., 3].mean(), squared[..., :3].mean(), image[..., 3].mean()])


def _moved(vertices: Any, parameters: Any, xp: Any) -> Any:
    """Vertices turned around z, scaled and shifted; the parameters are the shift, the log of the scale, the angle."""
    x, y, z = vertices.T
    cosine, sine = xp.cos(parameters[4]), xp.sin(parameters[4])
    turned = xp.stack([cosine * x - sine * y, sine * x + cosine * y, z], -1)
    return xp.exp(parameters[3]) * turned + xp.asarray(parameters)[:3]


class Surface(NamedTuple):
    """A mesh with colours at its vertices, or a texture and places in it; vertices at one position share an id."""

    vertices: Any
    faces: Any
    point_ids: Any
    attributes: Any
    texture: Any | None


@dataclass(frozen=True)
class Scene:
    """One case: a mesh before a camera, over white."""

    surface: Surface
    pose: np.ndarray
    fov_deg: float
    size: int
    samples: int

    @classmethod
    def of(cls, folder: Path, given: dict[str, Any], entry: dict[str, Any]) -> "Scene":
        with np.load(folder / f"{entry['mesh']}_mesh.npz") as mesh:
            textured = "uv" in mesh
            attributes = mesh["uv"] if textured else mesh["vertex_colors_u8"] / 255
            texture = mesh["texture_u8"] / 255 if textured else None
            vertices, faces = mesh["vertices"], mesh["faces"]
        _, point_ids = np.unique(vertices.astype(np.float32), axis=0, return_inverse=True)
        cameras = json.loads((folder / "cameras.json").read_text())["cameras"]
        return cls(
            Surface(vertices, faces, point_ids.reshape(-1).astype(np.int32), attributes, texture),
            np.asarray(cameras[entry["mesh"]][entry["camera"]]["c2w_opengl"]),
            given["fov_deg"],
            given["resolution"],
            given["samples_per_pixel"],
        )

    def sampled(self, parameters: Any) -> np.ndarray:
        """Colours over white and mask (h, w, 4): means over Hammersley samples of float64 rays."""
        focal, center = intrinsics(self.fov_deg, self.size)
        from_world = np.linalg.inv(self.pose)
        points = _moved(self.surface.vertices, parameters, np) @ from_world[:3, :3].T + from_world[:3, 3]
        depth = -points[:, 2]
        column = focal[0] * points[:, 0] / depth + center[0]
        row = center[1] - focal[1] * points[:, 1] / depth
        screen = np.stack([column, row, depth], -1)
        return _sampled(self.surface, screen, self.size, _hammersley(self.samples))

    def central_differences(self, step: float, target: np.ndarray) -> np.ndarray:
        """Slopes (losses, parameters) of the sampled picture's losses at the identity."""
        ends = [
            [_losses(self.sampled(sign * step * axis), target, np) for axis in np.eye(5)] for sign in (1, -1)
        ]
        return (np.array(ends[0]) - np.array(ends[1])).T / (2 * step)

    def antialiased(self, parameters: Any, factor: int) -> np.ndarray:
        image = _antialiased(jnp.asarray(parameters, jnp.float32), *self._arguments, self.size, factor)
        return np.asarray(image, np.float64)

    def antialiased_gradients(self, target: np.ndarray, factor: int) -> np.ndarray:
        """Derivatives (losses, parameters) of the antialiased picture's losses at the identity."""
        gradients = _gradients(jnp.zeros(5), jnp.asarray(target), *self._arguments, self.size, factor)
        return np.asarray(gradients, np.float64)

    @property
    def _arguments(self) -> tuple[Any, ...]:
        surface = jax.tree.map(jnp.asarray, self.surface)
        return surface, jnp.asarray(self.pose, jnp.float32), self.fov_deg


def _hammersley(count: int) -> np.ndarray:
    """Points in the unit square: the Hammersley set, its second coordinates replaced by their ranks."""
    numbers = np.arange(count)
    reversed_bits = sum((numbers >> bit & 1) / 2 ** (bit + 1) for bit in range(count.bit_length()))
    return (np.stack([numbers, np.argsort(np.argsort(reversed_bits))], -1) + 0.5) / count


def _sampled(surface: Surface, screen: np.ndarray, size: int, offsets: np.ndarray) -> np.ndarray:
    """Colours over white and mask (h, w, 4) of a closed surface, by the nearest front face at every sample.

    Barycentrics, and attributes over depth, are planes on the screen.
    """
    corners = screen[surface.faces]
    homogeneous = np.concatenate([corners[..., :2], np.ones_like(corners[..., :1])], -1)
    front = np.linalg.det(homogeneous) < 0  # rows count downwards
    corners, faces = corners[front], surface.faces[front]
    inverse = np.linalg.inv(homogeneous[front])
    attributes = np.concatenate([np.ones((*faces.shape, 1)), surface.attributes[faces]], -1)
    planes = inverse @ (attributes / corners[..., 2:])  # t, (x y 1), (1 and attributes over depth)

    nearest = np.zeros((size, size, len(offsets)))  # inverse depth
    face_id = np.full(nearest.shape, -1)
    tests = np.concatenate([inverse, planes[..., :1]], -1)
    within_pixel = np.einsum("tac,sa->tcs", tests[:, :2], offsets)
    first = np.clip(np.floor(corners[..., :2].min(1)).astype(int), 0, size)
    stop = np.clip(np.ceil(corners[..., :2].max(1)).astype(int), 0, size)
    for face, ((left, top), (right, bottom)) in enumerate(zip(first, stop, strict=True)):
        x, y, one = tests[face, :, :, None, None]
        at_pixel = x * np.arange(left, right) + y * np.arange(top, bottom)[:, None] + one
        *weights, closeness = at_pixel[..., None] + within_pixel[face, :, None, None]
        window = np.s_[top:bottom, left:right]
        seen = np.logical_and.reduce([weight >= 0 for weight in weights]) & (closeness > nearest[window])
        np.copyto(nearest[window], closeness, where=seen)
        np.copyto(face_id[window], face, where=seen)

    row, column, sample = np.nonzero(face_id >= 0)
    place = np.stack([column + offsets[sample, 0], row + offsets[sample, 1], np.ones(len(row))], -1)
    values = np.einsum("na,nac->nc", place, planes[face_id[row, column, sample]])
    values = values[:, 1:] / values[:, :1]
    colors = values if surface.texture is None else _bilinear(surface.texture, values)
    pixel = row * size + column
    sums = [np.bincount(pixel, weights, size**2) for weights in (*colors.T, None)]
    image = np.stack(sums, -1).reshape(size, size, 4) / len(offsets)
    image[..., :3] += 1 - image[..., 3:]
    return image


def _bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    height, width = texture.shape[:2]
    place = [(1 - uv[:, 1]) * height - 0.5, uv[:, 0] * width - 0.5]
    channels = np.moveaxis(texture, -1, 0)
    return np.stack([map_coordinates(channel, place, order=1, mode="nearest") for channel in channels], -1)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _antialiased(parameters, surface, pose, fov_deg, size, factor):
    """Colours over white and mask (h, w, 4) at `factor` squared antialiased points a pixel."""
    side = size * factor
    focal, center = (jnp.asarray(value, jnp.float32)[None] for value in intrinsics(fov_deg, side))
    screen = project(_moved(surface.vertices, parameters, jnp), pose[None], focal, center)
    fragments = rasterize(screen, surface.faces, side, side)
    seen = fragments.face_id[..., None] >= 0
    colors = interpolate(surface.attributes, surface.faces, fragments)
    colors = colors if surface.texture is None else sample_bilinear(surface.texture, colors)
    image = jnp.concatenate([jnp.where(seen, colors, 1.0), seen.astype(colors.dtype)], -1)
    edges = mesh_edges(surface.faces, surface.point_ids)
    return box_filter(antialias(image, fragments, screen, surface.faces, edges), factor)[0]


@partial(jax.jit, static_argnums=(4, 5, 6))
def _gradients(parameters, target, surface, pose, fov_deg, size, factor):
    def losses(parameters):
        return _losses(_antialiased(parameters, surface, pose, fov_deg, size, factor), target, jnp)

    return jax.jacrev(losses)(parameters)


# Triangles of known area


def compute_silhouettes(case: Case, path: str) -> dict[str, np.ndarray]:
    given = json.loads(case.path.read_text())
    focal = intrinsics(given["fov_deg"], given["resolution"])[0][0]
    outputs = {"focal_px": focal}
    for index, entry in enumerate(given["cases"]):
        corners, depth = np.asarray(entry["triangle_xy_camera"]), entry["depth"]
        exact = _triangle(corners, depth, focal)
        rendered = _rendered_triangle(corners, depth, given["fov_deg"], given["resolution"])
        area = exact["area_px"]
        scales = {"first_moment_px": area**1.5, "d_area_d_tx": exact["d_area_d_scale"]}
        for name, value in exact.items():
            error = np.abs(rendered[name] - value).max() / np.abs(scales.get(name, value))
            close = error <= (0.03 if name.startswith("d_") else 0.005)
            outputs[f"cases.{index}.{name}"] = np.asarray(value if close else rendered[name])
    return outputs


def _triangle(corners: np.ndarray, depth: float, focal: float) -> dict[str, Any]:
    """Area and first moments on the screen in closed form, and their derivatives."""
    corners = corners * focal / depth
    (ax, ay), (bx, by) = corners[1] - corners[0], corners[2] - corners[0]
    area = abs(ax * by - ay * bx) / 2
    return {
        "area_px": area,
        "d_area_d_scale": 2 * area,
        "d_area_d_depth": -2 * area / depth,
        "d_area_d_tx": 0.0,
        "first_moment_px": area * corners.mean(0),
        "d_first_moment_x_d_tx": area * focal / depth,
        "d_first_moment_y_d_ty": area * focal / depth,
    }


def _rendered_triangle(corners: np.ndarray, depth: float, fov_deg: float, size: int) -> dict[str, Any]:
    """The same from the supersampled antialiased mask."""
    parameters = jnp.array([0.0, 0.0, 1.0, depth])
    derivatives, sums = _moments(parameters, jnp.asarray(corners, jnp.float32), fov_deg, size)
    return {
        "area_px": sums[0],
        "d_area_d_scale": derivatives[0, 2],
        "d_area_d_depth": derivatives[0, 3],
        "d_area_d_tx": derivatives[0, 0],
        "first_moment_px": sums[1:],
        "d_first_moment_x_d_tx": derivatives[1, 0],
        "d_first_moment_y_d_ty": derivatives[2, 1],
    }


@partial(jax.jit, static_argnums=(2, 3))
@partial(jax.jacrev, has_aux=True)
def _moments(parameters, corners, fov_deg, size):
    """Area and first moments of a triangle under shift, scale and depth; x is to the right, y up, 0 the centre."""
    side = size * TRIANGLE_FACTOR
    focal, center = (jnp.asarray(value, jnp.float32)[None] for value in intrinsics(fov_deg, side))
    flat = parameters[2] * corners + parameters[:2]
    vertices = jnp.concatenate([flat, jnp.full((3, 1), -parameters[3])], axis=-1)
    screen = project(vertices, jnp.eye(4)[None], focal, center)
    faces = jnp.array([[0, 1, 2]])
    fragments = rasterize(screen, faces, side, side, tile=16)
    mask = (fragments.face_id >= 0).astype(jnp.float32)[..., None]
    cover = antialias(mask, fragments, screen, faces, mesh_edges(faces))
    cover = box_filter(cover, TRIANGLE_FACTOR)[0, ..., 0]
    place = jnp.arange(size) + 0.5 - size / 2
    sums = jnp.stack([cover.sum(), (cover * place).sum(), (cover * -place[:, None]).sum()])
    return sums, sums


FAMILIES = (
    Family(
        pattern=r"gradients\.json",
        inputs=r"resolution|samples_per_pixel|fov_deg|background_rgb|cases\.\d+\.(camera|target_transform)",
        load=load_gradients,
        compute=compute_gradients,
        tolerance=gradient_tolerance,
        slow=True,
    ),
    Family(
        pattern=r"gradients_targets\.npz",
        inputs=r"",
        load=load_arrays,
        compute=compute_targets,
        tolerance=lambda name, path: Tolerance(1e-6, _largest_but_four),
        slow=True,
    ),
    Family(
        pattern=r"analytic_silhouettes\.json",
        inputs=r"resolution|fov_deg|cases\.\d+\.(depth|triangle_xy_camera\.\d+)",
        load=load_numbers,
        compute=compute_silhouettes,
        tolerance=lambda name, path: Tolerance(1e-9, relative),
    ),
)
