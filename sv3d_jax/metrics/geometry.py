"""Geometry metrics (Chamfer distance, F-score, volume IoU, colour error) and the verb `eval mesh`."""

import warnings
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from sv3d_jax.arrays import Bool, Float
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.meshes import read_mesh, world_from_mesh_file
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.io.outputs import write_json
from sv3d_jax.metrics.config import EvalMeshConfig
from sv3d_jax.metrics.face_tree import FaceTree
from sv3d_jax.progress import Progress
from sv3d_jax.render.appearance import appearance_of, seen_colors

CHUNK = 2**19  # voxel columns processed at a time
MAX_EXTENT = 1e30  # products of six lengths neither overflow float64 nor vanish
MAX_PIECE = 1 / 64  # of the largest box side: longer faces are subdivided, as their bounds would be too loose


def sample_surface(mesh: Mesh, count: int, seed: int) -> Float[np.ndarray, "n 3"]:
    """Points distributed uniformly at random over the surface."""
    chosen, weights = _places(mesh, count, seed)
    return np.einsum("nk,nkc->nc", weights, mesh.vertices[mesh.faces[chosen]])


def color_error(prediction: Mesh, target: Mesh, points: int, seed: int = 0) -> dict[str, float] | None:
    """Mean absolute difference of the surfaces' colours, in display values of [0, 1]; None unless both have some.

    Each sampled point of the prediction is compared with the nearest place of the target, whose colour is that of the
    nearest among four times as many sampled points. `color_error_scaled` is the difference after scaling all predicted
    colours by one factor, the median ratio, because albedo is only known up to the brightness of the light.
    """
    from scipy.spatial import cKDTree

    if any(mesh.vertex_colors is None and mesh.texture is None for mesh in (prediction, target)):
        return None
    (ours, theirs), (seen, true) = zip(
        *(
            _colored_points(m, n, seed + i)
            for i, (m, n) in enumerate(((prediction, points), (target, 4 * points)))
        ),
        strict=True,
    )
    # Project to the surface first: searching sampled points from far away is slow.
    true = true[cKDTree(theirs).query(_nearest_of_surface(ours, target))[1]]
    scale = np.median(true.sum(axis=1) / np.maximum(seen.sum(axis=1), 1e-3))
    return {
        "color_error": float(np.abs(seen - true).mean()),
        "color_error_scaled": float(np.abs(np.clip(scale * seen, 0, 1) - true).mean()),
    }


def distance_to_surface(points: Float[np.ndarray, "n 3"], mesh: Mesh) -> Float[np.ndarray, "n"]:
    """Exact distance of each point to the surface."""
    return np.linalg.norm(points - _nearest_of_surface(points, mesh), axis=1)


def occupancy(mesh: Mesh, low: np.ndarray, cell: float, voxels: int) -> Bool[np.ndarray, "n n n"]:
    """Voxels (x y z) whose centre lies inside a closed mesh; `low` is the corner of the grid.

    Counts the faces below each centre, upward ones minus downward ones, so parts of the mesh may overlap.
    """
    # A tiny offset, so that no column of voxel centres passes exactly through an edge.
    corners = (mesh.vertices[mesh.faces] - low) / cell - 0.5 + np.array([1.3e-6, 2.1e-6, 0])
    crossings = np.zeros((voxels, voxels, voxels + 1), np.int32)
    first = np.clip(np.ceil(corners[..., :2].min(axis=1)).astype(int), 0, voxels)
    last = np.clip(np.floor(corners[..., :2].max(axis=1)).astype(int), -1, voxels - 1)
    spans = np.maximum(last - first + 1, 0)
    columns = spans[:, 0] * spans[:, 1]
    a, b, c = np.moveaxis(corners[..., :2], 1, 0)
    doubled_area = _cross_2d(b - a, c - a)
    faces = np.flatnonzero((columns > 0) & (doubled_area != 0))
    ends = np.cumsum(columns[faces])
    for group in np.split(faces, np.flatnonzero(np.diff(ends // CHUNK)) + 1):
        face = np.repeat(group, columns[group])
        place = np.arange(len(face)) - np.repeat(np.cumsum(columns[group]) - columns[group], columns[group])
        column = first[face] + np.stack([place // spans[face, 1], place % spans[face, 1]], axis=1)
        edges = [_cross_2d(q[face] - p[face], column - p[face]) for p, q in ((b, c), (c, a), (a, b))]
        weights = np.stack(edges, axis=1) / doubled_area[face, None]
        hit = (weights > 0).all(axis=1)
        height = np.einsum("nk,nk->n", weights[hit], corners[face[hit], :, 2])
        above = np.clip(np.ceil(height), 0, voxels).astype(int)
        direction = np.sign(doubled_area[face[hit]]).astype(np.int32)
        np.add.at(crossings, (column[hit, 0], column[hit, 1], above), -direction)
    return np.cumsum(crossings, axis=2)[..., :voxels] > 0


def volume_iou(first: Mesh, second: Mesh, voxels: int = 128) -> float:
    """Intersection over union of the volumes of two closed meshes, on a grid over both."""
    vertices = np.concatenate([first.vertices, second.vertices])
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    cell = (high - low).max() / voxels
    inside = [occupancy(mesh, low, cell, voxels) for mesh in (first, second)]
    return float((inside[0] & inside[1]).sum() / max((inside[0] | inside[1]).sum(), 1))


def is_closed(mesh: Mesh) -> bool:
    """Whether the mesh is closed: each edge is used equally often in both directions.

    Vertices at the same position count as one.
    """
    _, merged = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = merged.reshape(-1)[mesh.faces].astype(np.int64)
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    edges = np.minimum(start, end) * (merged.max() + 1) + np.maximum(start, end)
    _, index = np.unique(edges, return_inverse=True)
    return not np.bincount(index, weights=np.where(start < end, 1.0, -1.0)).any()


def compare_meshes(
    prediction: Mesh,
    target: Mesh,
    points: int = 100_000,
    threshold: float = 0.01,
    voxels: int = 128,
    seed: int = 0,
) -> dict[str, Any]:
    """Surface distances in units of the target's largest box side, F-score, IoU (None unless both are closed).

    Raises InputError for a mesh further from the origin than `MAX_EXTENT`, or smaller than its inverse.
    """
    for name, mesh in (("prediction", prediction), ("target", target)):
        _check_extent(mesh, name)
    scale = 1.0 / _largest_side(target)
    there = distance_to_surface(sample_surface(prediction, points, seed), target) * scale
    back = distance_to_surface(sample_surface(target, points, seed + 1), prediction) * scale
    precision, recall = float((there < threshold).mean()), float((back < threshold).mean())
    closed = {"pred_closed": is_closed(prediction), "target_closed": is_closed(target)}
    return {
        "pred_to_target": float(there.mean()),
        "target_to_pred": float(back.mean()),
        "chamfer": float(there.mean() + back.mean()) / 2,
        "chamfer_sum": float(there.mean() + back.mean()),
        "precision": precision,
        "recall": recall,
        "f_score": 2 * precision * recall / max(precision + recall, 1e-12),
        "threshold": threshold,
        **(
            color_error(prediction, target, points, seed) or {"color_error": None, "color_error_scaled": None}
        ),
        "iou": volume_iou(prediction, target, voxels) if all(closed.values()) else None,
        **closed,
    }


def run_eval_mesh(config: EvalMeshConfig, progress: Progress) -> dict[str, Any]:
    """The verb `eval mesh`: compare two mesh files. Raises InputError for files that cannot be compared."""
    progress.stage("load")
    prediction, target = read_mesh(config.pred), _target(config)
    remarks = {"pred": list(prediction.remarks), "target": list(target.remarks)}
    for name, said in remarks.items():
        for remark in said:
            progress.note(f"{getattr(config, name)}: {remark}")
    if config.dry_run:
        return {"dry_run": True, "pred_faces": len(prediction.faces), "target_faces": len(target.faces)}
    apart = np.abs(_box(prediction) - _box(target)).max() / _largest_side(target)
    if apart > 0.25:
        warnings.warn(
            f"the boxes of the meshes differ by {apart:.0%} of the target's"
            + ("" if config.orbit else "; was the target rendered to an orbit (--orbit)?"),
            stacklevel=2,
        )
    progress.stage("compare")
    result = compare_meshes(prediction, target, config.points, config.threshold, config.voxels, config.seed)
    result["remarks"] = remarks
    if config.output is not None:
        write_json(config.output, result)
    return result


def _check_extent(mesh: Mesh, name: str) -> None:
    farthest, side = np.abs(_box(mesh)).max(), _largest_side(mesh)
    if farthest > MAX_EXTENT or side < 1 / MAX_EXTENT:
        raise InputError(
            f"the {name} has a side of {side:.3g} and lies up to {farthest:.3g} from the origin: meshes between"
            f" {1 / MAX_EXTENT:g} and {MAX_EXTENT:g} can be compared",
            hint="scale the mesh",
        )


def _places(mesh: Mesh, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniformly random points on the surface: their faces (n) and barycentric coordinates (n 3)."""
    rng = np.random.default_rng(seed)
    corners = mesh.vertices[mesh.faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    if not areas.sum() > 0:
        raise InputError("the mesh has no area")
    chosen = rng.choice(len(areas), count, p=areas / areas.sum())
    u, v = rng.random((2, count))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return chosen, np.stack([1 - u - v, u, v], axis=1)


def _colored_points(mesh: Mesh, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random points on the surface (n 3) and their sRGB colours (n 3)."""
    chosen, weights = _places(mesh, count, seed)
    look, weights = appearance_of(mesh), weights.astype(np.float32)
    colors, _ = jax.jit(seen_colors)(look, mesh.faces, chosen, weights)  # eagerly, it is sixty programs
    return np.einsum("nk,nkc->nc", weights, mesh.vertices[mesh.faces[chosen]]), np.asarray(colors)


def _target(config: EvalMeshConfig) -> Mesh:
    """The target mesh in the world coordinates of the prediction."""
    if config.orbit is None:
        return read_mesh(config.target, config.up)
    matrix = read_orbit(config.orbit).object_to_world
    if matrix is None:
        raise InputError(
            f"{config.orbit} does not say where the object stood (object_to_world)",
            hint="only rendered orbits do: sv3d data render",
        )
    # object_to_world starts from the coordinates in the file.
    matrix = matrix @ world_from_mesh_file(config.target).T
    mesh = read_mesh(config.target)
    return replace(mesh, vertices=mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3])


def _box(mesh: Mesh) -> np.ndarray:
    used = mesh.vertices[np.unique(mesh.faces)]
    return np.stack([used.min(axis=0), used.max(axis=0)])


def _largest_side(mesh: Mesh) -> float:
    low, high = _box(mesh)
    return float((high - low).max())


def _nearest_of_surface(points: np.ndarray, mesh: Mesh) -> np.ndarray:
    return FaceTree(_cut(mesh.vertices[mesh.faces], MAX_PIECE * _largest_side(mesh))).nearest(points)


def _cut(triangles: np.ndarray, side: float) -> np.ndarray:
    """Triangles (t 3 3) bisected at their longest edges until no edge is longer than `side`."""
    small = []
    while len(triangles):
        edges = np.linalg.norm(triangles - np.roll(triangles, -1, axis=1), axis=2)  # a-b, b-c, c-a
        longest = edges.argmax(axis=1)
        large = edges.max(axis=1) > side
        small.append(triangles[~large])
        order = (longest[large, None] + np.arange(3)) % 3
        a, b, c = np.moveaxis(np.take_along_axis(triangles[large], order[..., None], axis=1), 1, 0)
        middle = (a + b) / 2
        triangles = np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])
    return np.concatenate(small)


def _cross_2d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
