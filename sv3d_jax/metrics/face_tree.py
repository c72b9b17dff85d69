"""Nearest points on many triangles, by a binary tree of bounding discs. Plain NumPy, in bounded memory."""

import numpy as np

from sv3d_jax.arrays import Float

CHUNK = 2**15  # pairs of point and disc processed at a time
LEAF = 4  # minimum number of triangles in a leaf


class FaceTree:
    """A binary tree over triangles, split at the median of their centres along the longest axis."""

    def __init__(self, triangles: Float[np.ndarray, "t 3 3"]):
        centers = triangles.mean(axis=1)
        self.triangles = triangles
        depth = max(len(triangles) // LEAF, 1).bit_length() - 1
        leaf = -(-len(triangles) // 2**depth)
        # Some triangles appear twice, so that all leaves have the same size.
        order = np.resize(np.arange(len(triangles)), leaf * 2**depth)
        self.levels = []
        for level in range(depth + 1):
            groups = order.reshape(2**level, -1)
            self.levels.append(_discs(triangles[groups].reshape(len(groups), -1, 3)))
            if level < depth:
                axis = np.ptp(centers[groups], axis=1).argmax(axis=1)
                along = np.argpartition(centers[groups, axis[:, None]], groups.shape[1] // 2, axis=1)
                order = np.take_along_axis(groups, along, axis=1).ravel()
        self.leaves = order.reshape(2**depth, leaf)
        self.levels.append(_discs(triangles[order]))

    def nearest(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """The exact nearest point on the triangles to each point.

        Branch and bound: the distance to a disc is a lower bound for its triangles, and the distance to its centre,
        which lies on one of them, an upper bound. Discs whose lower bound exceeds the best upper bound are skipped.
        """
        bound, best = np.full((2, len(points)), np.inf)
        found = np.zeros(len(points), np.intp)
        todo = [(0, np.arange(len(points)), np.zeros(len(points), np.intp))]
        while todo:
            level, point, group = todo.pop()
            if len(point) > CHUNK:
                halves = zip(*(np.array_split(array, 2) for array in (point, group)), strict=True)
                todo += [(level, *half) for half in halves]
                continue
            begin, center = _bounds(points.take(point, axis=0), self.levels[level].take(group, axis=0))
            np.minimum.at(bound, point, center)
            near = begin <= bound[point]
            point, group = point[near], group[near]
            if level == len(self.levels) - 1:
                triangle = self.leaves.ravel()[group]
                distance = distance_to_triangles(points[point], self.triangles[triangle])
                np.minimum.at(best, point, distance)
                nearest = distance == best[point]
                found[point[nearest]] = triangle[nearest]
                bound[point] = np.minimum(bound[point], best[point])
            elif len(point):
                width = self.leaves.shape[1] if level == len(self.levels) - 2 else 2
                group = (group[:, None] * width + np.arange(width)).ravel()
                todo.append((level + 1, np.repeat(point, width), group))
        return nearest_of_triangles(points, self.triangles[found])


def nearest_of_triangles(
    points: Float[np.ndarray, "n 3"], triangles: Float[np.ndarray, "n 3 3"]
) -> Float[np.ndarray, "n 3"]:
    """The nearest point on its triangle to each point: the projection onto the plane if inside, else onto an edge."""
    a, b, c = np.moveaxis(triangles, 1, 0)
    normal = np.cross(b - a, c - a)
    inside = _dot(normal, normal) > 0
    best, squared = np.empty(points.shape), np.full(len(points), np.inf)
    foot, weights = np.zeros(points.shape), np.zeros(len(points))
    for p, q, opposite in ((a, b, c), (b, c, a), (c, a, b)):
        edge, offset = q - p, points - p
        along = np.clip(_dot(offset, edge) / np.maximum(_dot(edge, edge), 1e-300), 0, 1)[:, None] * edge
        away = offset - along
        nearer = _dot(away, away) < squared
        best[nearer] = (p + along)[nearer]
        squared = np.where(nearer, _dot(away, away), squared)
        weight = _dot(np.cross(edge, offset), normal)
        inside &= weight >= 0
        foot, weights = foot + weight[:, None] * opposite, weights + weight
    foot /= np.where(inside & (weights > 0), weights, 1)[:, None]
    return np.where((inside & (weights > 0))[:, None], foot, best)


def distance_to_triangles(
    points: Float[np.ndarray, "n 3"], triangles: Float[np.ndarray, "n 3 3"]
) -> Float[np.ndarray, "n"]:
    """Distance of each point to its triangle: to the plane if the projection lies inside, else to an edge."""
    a, b, c = np.moveaxis(triangles, 1, 0)
    normal = np.cross(b - a, c - a)
    length = np.linalg.norm(normal, axis=-1)
    inside = length > 0
    squared = np.full(length.shape, np.inf)
    for p, q in ((a, b), (b, c), (c, a)):
        edge, offset = q - p, points - p
        along = _dot(offset, edge) / np.maximum(_dot(edge, edge), 1e-300)
        away = offset - np.clip(along, 0, 1)[..., None] * edge
        squared = np.minimum(squared, _dot(away, away))
        inside &= _dot(np.cross(edge, offset), normal) >= 0
    height = np.abs(_dot(points - a, normal)) / np.maximum(length, 1e-300)
    return np.where(inside, height, np.sqrt(squared))


def _discs(vertices: np.ndarray) -> np.ndarray:
    """Bounding discs (n 8) of groups of triangles, given by their vertices (n k 3).

    A disc is a flat cylinder: centre, axis, radius, half the thickness. It is centred on a triangle, and its axis is
    the direction in which the vertices spread least, so that it fits tightly around a flat patch.
    """
    middle = 0.5 * (vertices.min(axis=1) + vertices.max(axis=1))
    centers = vertices.reshape(len(vertices), -1, 3, 3).mean(axis=2)
    nearest = np.linalg.norm(centers - middle[:, None], axis=2).argmin(axis=1)
    center = centers[np.arange(len(centers)), nearest]
    offset = vertices - center[:, None]
    axis = np.linalg.eigh(np.einsum("nki,nkj->nij", offset, offset))[1][:, :, 0]
    height = np.einsum("nki,ni->nk", offset, axis)
    lateral = np.sqrt(np.maximum(_dot(offset, offset) - height**2, 0))
    sizes = lateral.max(axis=1), np.abs(height).max(axis=1)
    return np.concatenate([center, axis, np.stack(sizes, axis=1)], axis=1)


def _bounds(points: np.ndarray, discs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances of points (n 3), each to its disc (minus a margin for rounding) and to the centre of the disc."""
    x, y, z = points.T
    cx, cy, cz, ax, ay, az, radius, half_thickness = discs.T
    x, y, z = x - cx, y - cy, z - cz
    height = np.abs(x * ax + y * ay + z * az)
    squared = x * x + y * y + z * z
    lateral = np.sqrt(np.maximum(squared - height * height, 0))
    above = np.maximum(height - half_thickness, 0)
    beyond = np.maximum(lateral - radius, 0)
    begin = np.sqrt(above * above + beyond * beyond) * (1 - 1e-9) - 1e-9 * radius
    return begin, np.sqrt(squared)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", a, b)
