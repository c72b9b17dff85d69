"""Triangulation of polygons with any number of corners."""

from collections.abc import Callable, Iterator

import numpy as np

_MAX_BLOCK_CORNERS = 1 << 20  # corners processed at a time
_MAX_CUT_CORNERS = 10_000  # larger polygons are only triangulated as fans
# Limit of the summed squared corner counts of self-intersecting polygons: some seconds.
_MAX_CROSSED_COST = 2e8
_FLAT = 1e-12  # triangles of smaller area count as degenerate, in a polygon of size 1


def triangulate(
    vertices: np.ndarray, indices: np.ndarray, counts: np.ndarray, remark: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Triangulate polygons: corner numbers of the triangles (int64, t 3), and the polygon of each (int64, t).

    `vertices` is v 3; `indices` is the vertex of every corner, polygon after polygon, and `counts` the number of
    corners of each polygon; those with fewer than three are dropped. Corner numbers index into `indices`, so that other
    attributes of corners can be looked up too. Triangles keep the order and the winding of their polygons. Polygons are
    triangulated in their own plane and may be concave. Self-intersecting ones become fans around their first corner,
    and `remark` is called with a message.
    """
    counts = np.asarray(counts, np.int64)
    starts = np.cumsum(counts) - counts
    if (counts == 3).all():
        return np.arange(3 * len(counts)).reshape(-1, 3), np.arange(len(counts))
    triangles, polygons, fanned, budget = [], [], 0, _MAX_CROSSED_COST
    for members, corners in _blocks(counts, starts):
        if corners.shape[1] == 3:
            triangles.append(corners)
            polygons.append(members)
            continue
        if corners.shape[1] == 4:
            local, crossed = _cut_quads(vertices, indices[corners])
        else:
            local, crossed = _cut_polygons(_flattened(vertices, indices[corners]), budget)
            budget -= crossed.sum() * corners.shape[1] ** 2
        fanned += int(crossed.sum())
        kept = local[..., 0] >= 0
        rows = np.broadcast_to(np.arange(len(members))[:, None], kept.shape)[kept]
        triangles.append(corners[rows[:, None], local[kept]])
        polygons.append(members[rows])
    if fanned:
        remark(f"{fanned} polygons, which intersect themselves or have very many corners, are drawn as fans")
    if not triangles:
        return np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
    polygon = np.concatenate(polygons)
    order = np.argsort(polygon, kind="stable")
    return np.concatenate(triangles)[order], polygon[order]


def _blocks(counts: np.ndarray, starts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of polygons (n) with the same number of corners, at least three, and their corner numbers (n k)."""
    order = np.argsort(counts, kind="stable")
    sizes, first = np.unique(counts[order], return_index=True)
    for size, begin, end in zip(sizes.tolist(), first, [*first[1:], len(order)], strict=True):
        if size < 3:
            continue
        step = max(1, _MAX_BLOCK_CORNERS // size)
        for at in range(begin, end, step):
            members = order[at : min(at + step, end)]
            yield members, starts[members][:, None] + np.arange(size)


def _flattened(vertices: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Corners of polygons (n k) in 2D coordinates of their planes (n k 2), scaled to size 1, counter-clockwise.

    Planes are found by Newell's method. Polygons without area or with non-finite vertices become zeros.
    """
    with np.errstate(all="ignore"):
        points = vertices[indices] - vertices[indices[:, :1]]
        points = points / np.abs(points).max(axis=(1, 2), keepdims=True)
        normal = np.cross(points, np.roll(points, -1, axis=1)).sum(axis=1)
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        normal = normal / length
        least = np.eye(3)[np.abs(np.nan_to_num(normal)).argmin(axis=1)]
        right = np.cross(least, normal)
        right = right / np.linalg.norm(right, axis=1, keepdims=True)
        up = np.cross(normal, right)
        flat = np.einsum("nkd,nad->nka", points, np.stack([right, up], axis=1))
    has_area = (length[:, 0] > _FLAT) & np.isfinite(flat).all(axis=(1, 2))
    return np.where(has_area[:, None, None], flat, 0.0)


def _fans(flat: np.ndarray) -> np.ndarray:
    """Triangle fans around the first corner (n k-2 3)."""
    step = np.arange(1, flat.shape[1] - 1)
    fan = np.stack([np.zeros_like(step), step, step + 1], axis=1)
    return np.tile(fan, (len(flat), 1, 1))


def _doubled_areas(flat: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Twice the signed areas (n t) of triangles (n t 3), negative if clockwise."""
    corners = flat[np.arange(len(flat))[:, None, None], triangles]
    (ax, ay), (bx, by) = (np.moveaxis(corners[:, :, i] - corners[:, :, 0], -1, 0) for i in (1, 2))
    return ax * by - ay * bx


def _cut_quads(vertices: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two triangles for each quad (n 2 3), and whether they overlap (n).

    The diagonal goes through the first corner, unless only the other one gives two triangles with the quad's winding.
    """
    with np.errstate(all="ignore"):
        a, b, c, d = vertices[indices].transpose(1, 2, 0)
        first, second = _cross(b - a, c - a), _cross(c - a, d - a)
        normal = first + second
        smallest = np.minimum(_dot(first, normal), _dot(second, normal))
        third, fourth = _cross(b - a, d - a), _cross(c - b, d - b)
        smallest_other = np.minimum(_dot(third, normal), _dot(fourth, normal))
        flat = _FLAT * _dot(normal, normal)
    crossed = np.maximum(smallest, smallest_other) < -flat
    turned = (smallest <= flat) & (smallest_other > smallest) & ~crossed
    return _QUAD_CUTS[turned.astype(np.int64)], crossed


_QUAD_CUTS = np.array([[[0, 1, 2], [0, 2, 3]], [[0, 1, 3], [1, 2, 3]]])


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products of vectors (3 n)."""
    return np.stack([a[i - 2] * b[i - 1] - a[i - 1] * b[i - 2] for i in range(3)])


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cut_polygons(flat: np.ndarray, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of each polygon (n k-2 3), padded by rows of -1, and whether they overlap (n)."""
    size = flat.shape[1]
    triangles, crossed = _fans(flat), np.zeros(len(flat), bool)
    has_overlaps = _doubled_areas(flat, triangles).min(axis=1) < -_FLAT
    for row in np.flatnonzero(has_overlaps):
        cut = _cut(flat[row]) if size <= _MAX_CUT_CORNERS and budget > 0 else None
        if cut is None:
            crossed[row] = True
            budget -= size**2
        else:
            triangles[row] = -1
            triangles[row, : len(cut)] = cut
    return triangles, crossed


def _cut(flat: np.ndarray) -> np.ndarray | None:
    """Triangles (t 3) that fill one polygon (k 2) without overlaps; None if there is no such triangulation."""
    import mapbox_earcut

    triangles = mapbox_earcut.triangulate_float64(flat, np.array([len(flat)], np.uint32))
    triangles = triangles.reshape(-1, 3).astype(np.int64)
    areas = _doubled_areas(flat[None], triangles[None])[0]
    triangles[areas < 0] = triangles[areas < 0][:, ::-1]
    x, y = flat.T
    area = float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    is_filled = 0 < len(triangles) <= len(flat) - 2 and abs(np.abs(areas).sum() - area) <= 1e-6 * area
    return triangles if is_filled else None
