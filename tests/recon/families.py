"""Which files of the recon reference data are read, what in them is given, how the rest is computed, how close.

Tolerances are those of the data's README, tightened where a thousandth of a value would pass.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.cameras.orbit import sine_orbit, static_orbit
from sv3d_jax.cameras.pose import intrinsics, look_at
from sv3d_jax.colors import linear_from_srgb
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.recon.nerf.hash_grid import HashGrid, encode
from sv3d_jax.render.antialias import box_filter
from sv3d_jax.render.interpolate import (
    interpolate,
    seen_shading_normals,
    vertex_normals,
)
from sv3d_jax.render.rasterize import project, rasterize
from sv3d_jax.render.volume import composite
from tests.parity.cases import Case, Family, load_arrays, load_numbers, numbers, unknown_family
from tests.parity.compare import EXACT, Measure, Tolerance, absolute, relative
from tests.recon.antialias_cases import FAMILIES as ANTIALIAS_FAMILIES
from tests.recon.sampling import sample_bilinear, seen_face_normals
from tests.recon.shading_cases import FAMILIES as SHADING_FAMILIES
from tests.recon.tets_cases import FAMILIES as TETS_FAMILIES


def cases(folder: Path) -> list[Case]:
    """One case for every file but the README; one of no known family fails its check."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [Case(folder, str(file), _family(str(file))) for file in files if str(file) != "README.md"]


def _family(file: str) -> Family:
    return next((family for family in FAMILIES if re.fullmatch(family.pattern, file)), unknown_family())


# Cameras


def compute_cameras(case: Case, path: str) -> dict[str, np.ndarray]:
    given = json.loads(case.path.read_text())
    focal, center = intrinsics(given["fov_deg"], given["resolution"])
    matrix = [[focal[0], 0.0, center[0]], [0.0, focal[1], center[1]], [0.0, 0.0, 1.0]]
    cameras = {}
    for name, entries in given["cameras"].items():
        cameras[name] = []
        for index, entry in enumerate(entries):
            pose = look_at(entry["azimuth_deg"], entry["elevation_deg"], entry["radius"])
            inverse = np.linalg.inv(pose).tolist()
            cameras[name].append(
                {"index": index, "c2w_opengl": pose.tolist(), "w2c_opengl": inverse, "K": matrix}
            )
    return numbers({"cameras": cameras})


def compute_orbits(case: Case, path: str) -> dict[str, np.ndarray]:
    given, outputs = json.loads(case.path.read_text()), {}
    for name, entries in given.items():
        if name == "convention":
            continue
        elevation_deg = entries[-1]["elevation_deg"]
        if match := re.fullmatch(r"sine(\d+)", name):
            orbit = sine_orbit(len(entries), elevation_deg, float(match[1]))
        else:
            orbit = static_orbit(len(entries), elevation_deg)
        outputs[name] = [
            {
                "frame": frame,
                "azimuth_deg": float(orbit.azimuths_deg[frame]),
                "elevation_deg": float(orbit.elevations_deg[frame]),
                "c2w_opengl": orbit.camera_to_world[frame].tolist(),
            }
            for frame in range(len(entries))
        ]
    return numbers(outputs)


# Meshes


def compute_mesh(case: Case, path: str) -> dict[str, np.ndarray]:
    """The arrays of `<mesh>_mesh.npz` from the GLB, which holds the same mesh z up."""
    mesh = _read(case)
    normals = vertex_normals(jnp.asarray(mesh.vertices, jnp.float32), jnp.asarray(mesh.faces))
    outputs = {"vertices": mesh.vertices, "faces": mesh.faces, "vertex_normals": np.asarray(normals)}
    if mesh.texture is not None:
        outputs |= {"uv": mesh.uv, "texture_u8": np.rint(mesh.texture * 255)}
    elif mesh.vertex_colors is not None:
        outputs["vertex_colors_u8"] = np.rint(mesh.vertex_colors * 255)
    return outputs


def mesh_tolerance(name: str, path: str) -> Tolerance:
    return EXACT if name == "faces" or name.endswith("_u8") else Tolerance(1e-6, absolute)


def _read(case: Case) -> Mesh:
    """The mesh with colours as the file stores them: its COLOR_0 was meant as it is, not as linear light."""
    mesh = read_mesh(case.path.with_name(f"{_mesh_name(case)}.glb"), up="z")
    colors, texture = mesh.vertex_colors, mesh.texture
    return replace(
        mesh,
        vertex_colors=None if colors is None else linear_from_srgb(colors),
        texture=None if texture is None else texture / np.float32(255),
    )


def _mesh_name(case: Case) -> str:
    return re.fullmatch(r"(\w+?)(_mesh|_renders)?", case.path.stem)[1]


# Renders


def compute_renders(case: Case, path: str) -> dict[str, np.ndarray]:
    cameras = json.loads(case.path.with_name("cameras.json").read_text())
    size, samples, outputs = cameras["resolution"], cameras["supersampling_aa"], {}
    mesh, background = _read(case), np.asarray(cameras["background_rgb"], np.float32)
    for index, camera in enumerate(cameras["cameras"][_mesh_name(case)]):
        pose = np.asarray(camera["c2w_opengl"])
        sharp = jax.tree.map(np.asarray, _render(mesh, pose, cameras["fov_deg"], size, background))
        fine = _render(mesh, pose, cameras["fov_deg"], size * samples, background)
        smooth = {f"{name}_aa": _box_filtered(fine[name], samples) for name in ("mask", "albedo")}
        outputs |= {f"{name}_{index}": value for name, value in (sharp | smooth).items()}
    return outputs


def _render(
    mesh: Mesh, pose: np.ndarray, fov_deg: float, size: int, background: np.ndarray
) -> dict[str, jax.Array]:
    focal, center = intrinsics(fov_deg, size)
    vertices, faces = jnp.asarray(mesh.vertices, jnp.float32), jnp.asarray(mesh.faces)
    camera = (jnp.asarray(value[None], jnp.float32) for value in (pose, focal, center))
    fragments = rasterize(project(vertices, *camera), faces, size, size)
    seen = fragments.face_id[..., None] >= 0
    if mesh.texture is None:
        albedo = interpolate(jnp.asarray(mesh.vertex_colors), faces, fragments)
    else:
        uv = interpolate(jnp.asarray(mesh.uv), faces, fragments)
        albedo = sample_bilinear(jnp.asarray(mesh.texture), uv)
    normals = vertex_normals(vertices, faces)
    buffers = {
        "mask": seen[..., 0],
        "depth": fragments.depth,
        "face_id": fragments.face_id,
        "bary": fragments.barycentrics[..., 1:],
        "albedo": jnp.where(seen, albedo, background),
        "face_normal": seen_face_normals(vertices, faces, fragments),
        "shading_normal": seen_shading_normals(normals, faces, fragments),
    }
    return {name: buffer[0] for name, buffer in buffers.items()}


def _box_filtered(image: jax.Array, samples: int) -> np.ndarray:
    """Mean over `samples` x `samples` blocks of a picture or a mask."""
    pixels = image.reshape(1, *image.shape[:2], -1).astype(jnp.float32)
    return np.asarray(box_filter(pixels, samples)[0]).reshape(
        *(n // samples for n in image.shape[:2]), *image.shape[2:]
    )


OTHER_FACE = 4 / 128**2  # of the pixels may see another face: their centre lies on an edge, within rounding


def _share_that_differs(got: np.ndarray, stored: np.ndarray) -> float:
    return float((got != stored).mean())


def _largest_elsewhere(got: np.ndarray, stored: np.ndarray) -> float:
    """Largest difference at a pixel, those left out that may see another face."""
    difference = np.abs(got - stored)
    worst = np.sort(difference.reshape(*stored.shape[:2], -1).max(-1).ravel())
    return float(worst[-1 - round(OTHER_FACE * worst.size)])


def _mean_difference(got: np.ndarray, stored: np.ndarray) -> float:
    return float(np.abs(got - stored).mean())


_RENDER_LIMITS: dict[str, tuple[float, Measure]] = {
    "mask": (OTHER_FACE, _share_that_differs),
    "face_id": (OTHER_FACE, _share_that_differs),
    "depth": (2e-5, _largest_elsewhere),
    "bary": (5e-4, _largest_elsewhere),
    "albedo": (1e-4, _largest_elsewhere),
    "face_normal": (1e-4, _largest_elsewhere),
    "shading_normal": (1e-4, _largest_elsewhere),
    "mask_aa": (2e-5, _mean_difference),
    "albedo_aa": (2e-5, _mean_difference),
}


def render_tolerance(name: str, path: str) -> Tolerance:
    return Tolerance(*_RENDER_LIMITS[name.rsplit("_", 1)[0]])


def table_tolerance(name: str, path: str) -> Tolerance:
    # The table's texture has sharp edges.
    return (
        Tolerance(5e-4, _largest_elsewhere)
        if re.fullmatch(r"albedo_\d+", name)
        else render_tolerance(name, path)
    )


# Hash grid


def compute_hash_grid(case: Case, path: str) -> dict[str, np.ndarray]:
    tensors, outputs = case.tensors(), {}
    for name in tensors:
        match = re.fullmatch(r"(\w+)_(paper|tcnn)_(y|dydx|resolutions)", name)
        if match is None:
            continue
        configuration, variant, quantity = match.groups()
        levels, features, size, base, growth = tensors[f"{configuration}_config"]
        grid = HashGrid(
            num_levels=int(levels),
            num_features=int(features),
            table_size=int(size),
            base_resolution=int(base),
            growth=float(growth),
            variant=variant,
        )
        if quantity == "resolutions":
            outputs[name] = np.asarray(grid.resolutions)
        else:
            features_of = jax.jit(_encoding(grid, tensors[f"{configuration}_table"], quantity))
            outputs[name] = np.asarray(features_of(tensors[f"{configuration}_x"]))
    return outputs


def _encoding(grid: HashGrid, tables: np.ndarray, quantity: str) -> Callable[[jax.Array], jax.Array]:
    def features(x):
        return encode(grid, jnp.asarray(tables), x[None])[0]

    return jax.vmap(features if quantity == "y" else jax.jacrev(features))


def _but(first: int, measure: Measure) -> Measure:
    """A measure of all points but the first ones."""
    return lambda got, stored: measure(got[first:], stored[first:])


def hash_grid_tolerance(name: str, path: str) -> Tolerance:
    # The first 8 points are corners of the cube, whose cells the tcnn variant wraps in its own way.
    first = 8 if "_tcnn_" in name else 0
    if name.endswith("_resolutions"):
        return EXACT
    return (
        Tolerance(1e-5, _but(first, absolute))
        if name.endswith("_y")
        else Tolerance(5e-5, _but(first, relative))
    )


# Compositing


def compute_volume(case: Case, path: str) -> dict[str, np.ndarray]:
    tensors = {name: jnp.asarray(tensor, jnp.float32) for name, tensor in case.tensors().items()}
    edges = case.tensors()["t_edges"]
    lengths = jnp.asarray(np.diff(edges), jnp.float32)
    middles = jnp.asarray((edges[:, 1:] + edges[:, :-1]) / 2, jnp.float32)

    def loss(sigma, rgb):
        seen = composite(sigma, rgb, lengths, middles, tensors["background"])
        parts = {"color": seen.color, "depth": seen.depth, "opacity": seen.opacity}
        return sum(jnp.sum(tensors[f"cot_{name}"] * value) for name, value in parts.items()), seen

    gradients, seen = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(tensors["sigma"], tensors["rgb"])
    outputs = seen._asdict() | {"grad_sigma": gradients[0], "grad_rgb": gradients[1]}
    return {name: np.asarray(value) for name, value in outputs.items()}


def volume_tolerance(name: str, path: str) -> Tolerance:
    return Tolerance(1e-5, relative) if name.startswith("grad_") else Tolerance(5e-6, absolute)


FAMILIES = (
    Family(
        pattern=r"cameras\.json",
        inputs=r"fov_deg|resolution|supersampling_aa|background_rgb|.*\.(azimuth_deg|elevation_deg|radius)",
        load=load_numbers,
        compute=compute_cameras,
        tolerance=lambda name, path: Tolerance(1e-6, absolute),
    ),
    Family(
        pattern=r"orbits\.json",
        inputs=r"",
        load=load_numbers,
        compute=compute_orbits,
        tolerance=lambda name, path: Tolerance(1e-6, absolute),
    ),
    Family(
        pattern=r"\w+_mesh\.npz",
        inputs=r"",
        load=load_arrays,
        compute=compute_mesh,
        tolerance=mesh_tolerance,
    ),
    Family(
        pattern=r"\w+\.glb",
        inputs=r"vertex_normals",
        load=lambda path: load_arrays(path.with_name(f"{path.stem}_mesh.npz")),
        compute=compute_mesh,
        tolerance=mesh_tolerance,
    ),
    Family(
        pattern=r"table_renders\.npz",
        inputs=r"",
        load=load_arrays,
        compute=compute_renders,
        tolerance=table_tolerance,
        slow=True,
    ),
    Family(
        pattern=r"\w+_renders\.npz",
        inputs=r"",
        load=load_arrays,
        compute=compute_renders,
        tolerance=render_tolerance,
        slow=True,
    ),
    Family(
        pattern=r"hashgrid\w*\.npz",
        inputs=r"\w+_(config|table|x)",
        load=load_arrays,
        compute=compute_hash_grid,
        tolerance=hash_grid_tolerance,
    ),
    Family(
        pattern=r"volume_rendering\w*\.npz",
        inputs=r"t_edges|sigma|rgb|background|cot_\w+",
        load=load_arrays,
        compute=compute_volume,
        tolerance=volume_tolerance,
    ),
    *ANTIALIAS_FAMILIES,
    *SHADING_FAMILIES,
    *TETS_FAMILIES,
)
