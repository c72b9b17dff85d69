"""The reference data of marching tetrahedra: analytic distances on a Kuhn grid and the meshes they give.

`marching_tets.json` names its shapes without their sizes. Those are found by a fit to the distances that
`mtet_<shape>_<N>.npz` stores, which must leave no residual.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares

from sv3d_jax.recon.dmtet.surface import Capacity, Surface, extract
from sv3d_jax.recon.dmtet.tets import TetGrid, kuhn_grid
from tests.parity.cases import Case, Family, load_arrays, load_numbers, numbers
from tests.parity.compare import EXACT, Tolerance, absolute, relative

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]  # parameters, points (n 3) -> distances

cached_grid = cache(kuhn_grid)


def compute_counts(case: Case, path: str) -> dict[str, np.ndarray]:
    """All numbers of `marching_tets.json`."""
    outputs = []
    for given in json.loads(case.path.read_text())["cases"]:
        grid = cached_grid(given["N"])
        surface = _extract(grid, _distances(case.path.parent, given["name"], given["N"]))
        vertices, faces = np.asarray(surface.vertices, np.float64), np.asarray(surface.faces)
        mesh = {"vertices": len(vertices), "faces": len(faces), **topology(faces)}
        euler = mesh["euler"]
        outputs.append(
            {
                **mesh,
                "area": float(np.linalg.norm(_cross_products(vertices, faces), axis=1).sum() / 2),
                "volume": volume(vertices, faces),
                "vertex_mean": vertices.mean(axis=0).tolist(),
                "vertex_sq_mean": (vertices**2).mean(axis=0).tolist(),
                "expected_euler": euler,
                "tets": len(grid.tets),
                "grid_vertices": len(grid.vertices),
            }
        )
    return numbers({"cases": outputs})


def compute_mesh(case: Case, path: str) -> dict[str, np.ndarray]:
    """The arrays of `mtet_<shape>_<N>.npz`."""
    sdf = case.tensors()["sdf"]
    surface = _extract(cached_grid(round(len(sdf) ** (1 / 3)) - 1), sdf)
    return {name: np.asarray(getattr(surface, name)) for name in ("edges", "vertices", "faces")}


def topology(faces: np.ndarray) -> dict[str, int]:
    """Euler characteristic, edges of one face, and edges of more than two or of two that wind around alike."""
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges, which, counts = np.unique(
        np.sort(directed, axis=1), axis=0, return_inverse=True, return_counts=True
    )
    balance = np.bincount(which.ravel(), weights=np.where(directed[:, 0] < directed[:, 1], 1, -1))
    return {
        "euler": len(np.unique(faces)) - len(edges) + len(faces),
        "boundary_edges": int((counts == 1).sum()),
        "nonmanifold_edges": int(((counts > 2) | (counts == 2) & (balance != 0)).sum()),
    }


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Inside a closed mesh; positive where its faces look outwards."""
    return float(np.einsum("ti,ti->", vertices[faces[:, 0]], _cross_products(vertices, faces)) / 6)


def counts_tolerance(name: str, path: str) -> Tolerance:
    quantity = name.rsplit(".", 1)[-1]
    if quantity == "vertex_mean":  # may be near 0, where float32 leaves an absolute error
        return Tolerance(2e-7, absolute)
    return Tolerance(1e-6, relative) if quantity in ("area", "volume", "vertex_sq_mean") else EXACT


def mesh_tolerance(name: str, path: str) -> Tolerance:
    return {
        "edges": EXACT,
        "vertices": Tolerance(3e-7, absolute),  # float32 grid vertices and crossings
        "faces": Tolerance(0.0, _other_triangles),
    }[name]


def _cross_products(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return np.cross(b - a, c - a)


def _other_triangles(got: np.ndarray, stored: np.ndarray) -> float:
    """How many faces only one of the two has, whatever their order and wherever a face begins."""
    sets = []
    for faces in (got, stored):
        start = faces.argmin(axis=1)[:, None] + np.arange(3)
        sets.append({tuple(face) for face in np.take_along_axis(faces, start % 3, axis=1)})
    return len(sets[0] ^ sets[1])


def _extract(grid: TetGrid, sdf: np.ndarray) -> Surface:
    surface, _ = extract(
        grid, jnp.asarray(grid.vertices), jnp.asarray(sdf, jnp.float32), Capacity(1024, 2048)
    )
    used = {"vertices": surface.num_vertices, "edges": surface.num_vertices, "faces": surface.num_faces}
    return surface._replace(**{name: getattr(surface, name)[: int(count)] for name, count in used.items()})


# Distances


def _distances(folder: Path, name: str, cells: int) -> np.ndarray:
    """A shape's distances on the grid: stored, or from the shape that was fitted to those of another grid."""
    exact = folder / f"mtet_{name}_{cells}.npz"
    if exact.exists():
        return np.load(exact)["sdf"]
    sdf = np.load(sorted(folder.glob(f"mtet_{name}_[0-9]*.npz"))[-1])["sdf"]
    shape, start = SHAPES[name]
    points = _points(round(len(sdf) ** (1 / 3)) - 1)
    fit = least_squares(
        lambda p: shape(p, points) - sdf, start(points, sdf), xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    assert np.abs(fit.fun).max() < 1e-12, f"{name} is not the shape that it was taken for"
    return shape(fit.x, _points(cells))


def _points(cells: int) -> np.ndarray:
    """The grid's vertices in float64."""
    axis = np.linspace(-1.0, 1.0, cells + 1)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def _sphere(p: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points - p[:3], axis=1) - p[3]


def _two_spheres(p: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.minimum(_sphere(p[:4], points), _sphere(p[4:], points))


def _torus(p: np.ndarray, points: np.ndarray) -> np.ndarray:
    x, y, z = (points - p[:3]).T
    return np.hypot(np.hypot(x, y) - p[3], z) - p[4]


def _rounded_box(p: np.ndarray, points: np.ndarray) -> np.ndarray:
    beyond = np.abs(points - p[:3]) - p[3:6]
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0) - p[6]


def _start_sphere(points: np.ndarray, sdf: np.ndarray) -> np.ndarray:
    return np.append(points[sdf < 0].mean(axis=0), -sdf.min())


def _start_two_spheres(points: np.ndarray, sdf: np.ndarray) -> np.ndarray:
    side = round(len(sdf) ** (1 / 3))
    label = ndimage.label((sdf < 0).reshape(side, side, side))[0].ravel()
    return np.concatenate([_start_sphere(points, np.where(label == part, sdf, 1.0)) for part in (1, 2)])


def _start_torus(points: np.ndarray, sdf: np.ndarray) -> np.ndarray:
    center = points[sdf < 0].mean(axis=0)
    ring = np.hypot(*(points[sdf < 0] - center)[:, :2].T).mean()
    return np.array([*center, ring, -sdf.min()])


def _start_rounded_box(points: np.ndarray, sdf: np.ndarray) -> np.ndarray:
    inside = points[sdf < 0]
    return np.concatenate([inside.mean(axis=0), 0.45 * np.ptp(inside, axis=0), [0.05]])


SHAPES: dict[str, tuple[Shape, Shape]] = {  # with parameters near which a fit starts
    "sphere": (_sphere, _start_sphere),
    "two_spheres": (_two_spheres, _start_two_spheres),
    "torus": (_torus, _start_torus),
    "rounded_box": (_rounded_box, _start_rounded_box),
}


FAMILIES = (
    Family(
        pattern=r"marching_tets\w*\.json",
        inputs=r"cases\.\d+\.N",
        load=load_numbers,
        compute=compute_counts,
        tolerance=counts_tolerance,
    ),
    Family(
        pattern=r"mtet_\w+\.npz",
        inputs=r"sdf",
        load=load_arrays,
        compute=compute_mesh,
        tolerance=mesh_tolerance,
    ),
)
