"""Rasterization of triangles in plain JAX: the face at every pixel centre, with barycentrics and depth.

The bounding box of every triangle is divided into square tiles. The tiles of all triangles in all views form one list,
which a loop of data-dependent length processes in chunks: a windowed scatter-min of depth, then of face id. There is no
fixed-size buffer that could overflow, whatever the mesh. The choice of the face has no gradient; barycentrics and depth
are computed afterwards from the chosen face and are differentiable in the vertices.

Pixel centres lie at (column + 0.5, row + 0.5), row 0 on top. Depth is the distance along the optical axis.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Bool, Float, Int

NEAR = 1e-3  # near plane: faces with a vertex of smaller depth are not drawn
BEHIND = 4e-6  # relative depth difference from which a face counts as behind `beyond` (depth peeling)
TIE = 1e-6  # depths within this relative difference (a few float32 steps) are equal; the lower face id wins


class Fragments(NamedTuple):
    """What is visible at each pixel centre; on the background face_id is -1 and the rest 0."""

    face_id: Int[Array, "n h w"]
    barycentrics: Float[Array, "n h w 3"]  # perspective-correct weights of the face's three vertices
    depth: Float[Array, "n h w"]


def project(
    vertices: Float[Array, "*n v 3"],
    camera_to_world: Float[Array, "n 4 4"],
    focal_px: Float[Array, "n 2"],
    center_px: Float[Array, "n 2"],
) -> Float[Array, "n v 3"]:
    """Column, row (in pixels) and depth of world points in cameras that look along -z with y up.

    The vertices are the same for all cameras, or there is one set for each camera.
    """
    offset = vertices - camera_to_world[:, None, :3, 3]
    x, y, z = jnp.moveaxis(
        jnp.einsum("nvi,nij->nvj", offset, camera_to_world[:, :3, :3], precision="highest"), -1, 0
    )
    depth = -z
    column = focal_px[:, :1] * x / depth + center_px[:, :1]
    row = -focal_px[:, 1:] * y / depth + center_px[:, 1:]
    return jnp.stack([column, row, depth], axis=-1)


def rasterize(
    screen: Float[Array, "n v 3"],
    faces: Int[Array, "t 3"],
    height: int,
    width: int,
    *,
    tile: int = 4,
    cull_back: bool = False,
) -> Fragments:
    """Face, barycentrics and depth at every pixel centre; front and back faces are drawn, or front faces alone.

    `tile` affects only the speed: best is about the size in pixels of a typical triangle. `cull_back` gives the same in
    less time if the surface is closed and seen from outside.
    """
    face_id = visible_faces(screen, faces, height, width, tile=tile, cull_back=cull_back)
    barycentrics, depth = surface_points(screen, faces, face_id)
    return Fragments(face_id, barycentrics, depth)


def visible_faces(
    screen: Float[Array, "n v 3"],
    faces: Int[Array, "t 3"],
    height: int,
    width: int,
    *,
    tile: int = 4,
    cull_back: bool = False,
    beyond: Float[Array, "n h w"] | None = None,
) -> Int[Array, "n h w"]:
    """Id of the nearest face at every pixel centre, -1 where there is none.

    `cull_back` leaves out back faces: the same result in less time if the surface is closed. With `beyond`, a depth for
    every pixel, only faces clearly behind that depth count, as depth peeling needs.
    """
    num_views, num_faces = screen.shape[0], faces.shape[0]
    triangles = _Triangles.of(
        jax.lax.stop_gradient(jnp.asarray(screen))[:, faces].reshape(-1, 3, 3), height, width, tile, cull_back
    )
    ends = jnp.cumsum(triangles.columns * triangles.rows)
    # Tiles may extend beyond the right and lower border by less than one tile.
    shape = (num_views, height + tile, width + tile)
    if beyond is not None:
        beyond = jnp.pad(beyond * (1.0 + BEHIND), ((0, 0), (0, tile), (0, tile)))

    tiles = partial(_chunk_of_tiles, triangles, ends, beyond, num_faces, tile)

    def keep_nearest(step, nearest):
        depth, _, origin = tiles(step)
        return jax.lax.scatter_min(nearest, origin, depth, _WINDOW, mode="clip")

    def keep_lowest_id(step, ids):
        depth, face, origin = tiles(step)
        seen = depth <= jax.lax.gather(limit, origin, _WINDOW_READ, (1, tile, tile), mode="clip")
        seen &= jnp.isfinite(depth)
        return jax.lax.scatter_min(
            ids, origin, jnp.where(seen, face[:, None, None], num_faces), _WINDOW, mode="clip"
        )

    steps = -(-ends[-1] // _tiles_per_step(tile))
    nearest = jax.lax.fori_loop(0, steps, keep_nearest, jnp.full(shape, jnp.inf, jnp.float32))
    limit = nearest * (1.0 + TIE)
    ids = jax.lax.fori_loop(0, steps, keep_lowest_id, jnp.full(shape, num_faces, jnp.int32))
    ids = ids[:, :height, :width]
    return jnp.where(ids == num_faces, -1, ids)


def surface_points(
    screen: Float[Array, "n v 3"], faces: Int[Array, "t 3"], face_id: Int[Array, "n h w"]
) -> tuple[Float[Array, "n h w 3"], Float[Array, "n h w"]]:
    """Perspective-correct barycentrics and depth of each pixel centre on its face, 0 on the background."""
    num_views, height, width = face_id.shape
    view = jnp.arange(num_views)[:, None, None, None]
    corners = screen[view, faces[jnp.maximum(face_id, 0)]]  # n h w 3 3
    return points_on_faces(corners, jnp.arange(width), jnp.arange(height)[:, None], face_id >= 0)


def points_on_faces(
    corners: Float[Array, "*n 3 3"], column: Int[Array, "*n"], row: Int[Array, "*n"], hit: Bool[Array, "*n"]
) -> tuple[Float[Array, "*n 3"], Float[Array, "*n"]]:
    """The same of single pixels, by column, row and depth of the corners of their faces, 0 where nothing is `hit`."""
    x = corners[..., 0] - (column.astype(corners.dtype) + 0.5)[..., None]
    y = corners[..., 1] - (row.astype(corners.dtype) + 0.5)[..., None]
    second, third = (jnp.roll(x, -1, -1), jnp.roll(y, -1, -1)), (jnp.roll(x, -2, -1), jnp.roll(y, -2, -1))
    weights = second[0] * third[1] - third[0] * second[1]
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(hit[..., None] & (total != 0), total, 1.0) / corners[..., 2]
    depth = 1.0 / jnp.where(hit, weights.sum(-1), 1.0)
    return jnp.where(hit[..., None], weights * depth[..., None], 0.0), jnp.where(hit, depth, 0.0)


class _Triangles(NamedTuple):
    """Corners and tiled bounding boxes of a list of triangles."""

    corners: Float[Array, "t 3 3"]
    # First column and row of the bounding box, and its size in tiles; 0 tiles: not drawn.
    left: Int[Array, "t"]
    top: Int[Array, "t"]
    columns: Int[Array, "t"]
    rows: Int[Array, "t"]

    @classmethod
    def of(
        cls, corners: Float[Array, "t 3 3"], height: int, width: int, tile: int, cull_back: bool
    ) -> "_Triangles":
        """Triangles, given by column, row and depth of their vertices."""
        x, y, z = corners[..., 0], corners[..., 1], corners[..., 2]
        left, columns = _pixel_range(x, width)
        top, rows = _pixel_range(y, height)
        # Rows count downwards, so counter-clockwise faces have a negative area here.
        doubled_area = _doubled_area(x, y)
        drawn = (doubled_area < 0) if cull_back else (doubled_area != 0)
        drawn &= jnp.isfinite(corners).all((1, 2)) & (z > NEAR).all(1)
        return cls(
            corners=corners,
            left=jnp.where(drawn, left, 0),
            top=jnp.where(drawn, top, 0),
            columns=jnp.where(drawn, -(-columns // tile), 0),
            rows=jnp.where(drawn, -(-rows // tile), 0),
        )

    def depth_at(self, column: Float[Array, "t 1 s"], row: Float[Array, "t s 1"]) -> Float[Array, "t s s"]:
        """Depth at pixel centres, infinite outside the triangle.

        Edge i is opposite vertex i; its edge function is slope . (pixel - anchor), not negative inside. Anchor and
        direction depend only on the edge, not on the triangle, so two triangles that share an edge get the same value
        with opposite sign, and no pixel between them is missed.
        """
        x, y, z = self.corners[..., 0], self.corners[..., 1], self.corners[..., 2]
        doubled_area = _doubled_area(x, y)
        orientation = jnp.where(doubled_area < 0, -1.0, 1.0)
        scale = jnp.where(doubled_area != 0, jnp.abs(doubled_area), 1.0)
        inverse, inside = 0.0, True
        for i in range(3):
            start_x, start_y, end_x, end_y = (leaf[:, (i + k) % 3] for k in (1, 2) for leaf in (x, y))
            swap = (start_x > end_x) | ((start_x == end_x) & (start_y > end_y))
            slope_x, slope_y = orientation * (start_y - end_y), orientation * (end_x - start_x)
            anchor_x, anchor_y = jnp.where(swap, end_x, start_x), jnp.where(swap, end_y, start_y)
            parts = slope_x, slope_y, anchor_x, anchor_y, 1.0 / (z[:, i] * scale)
            slope_x, slope_y, anchor_x, anchor_y, weight = (leaf[:, None, None] for leaf in parts)
            edge = slope_x * (column - anchor_x) + slope_y * (row - anchor_y)
            inverse = inverse + edge * weight
            inside &= edge >= 0
        return jnp.where(inside, 1.0 / inverse, jnp.inf)


def _doubled_area(x: Float[Array, "t 3"], y: Float[Array, "t 3"]) -> Float[Array, "t"]:
    return (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])


def _chunk_of_tiles(
    triangles: _Triangles,
    ends: Int[Array, "t"],
    beyond: Float[Array, "n h_padded w_padded"] | None,
    num_faces: int,
    tile: int,
    step: Int[Array, ""],
) -> tuple[Float[Array, "k s s"], Int[Array, "k"], Int[Array, "k 3"]]:
    """Depths (infinite outside the triangle), face id and window origin of the tiles of one step of the loop.

    `ends` is the running sum of the triangles' numbers of tiles; triangles of all views follow one another.
    """
    chunk, pixel = _tiles_per_step(tile), jnp.arange(tile)
    number = step * chunk + jnp.arange(chunk)
    index = jnp.minimum(jnp.searchsorted(ends, number, side="right"), ends.shape[0] - 1)
    chosen = jax.tree.map(lambda leaf: leaf[index], triangles)
    place = number - (ends[index] - chosen.columns * chosen.rows)
    columns = jnp.maximum(chosen.columns, 1)
    left = chosen.left + tile * (place % columns)
    top = chosen.top + tile * (place // columns)
    depth = chosen.depth_at(
        (left[:, None] + pixel)[:, None, :] + 0.5, (top[:, None] + pixel)[:, :, None] + 0.5
    )
    depth = jnp.where((number < ends[-1])[:, None, None], depth, jnp.inf)
    origin = jnp.stack([index // num_faces, top, left], axis=-1)
    if beyond is not None:
        passed = jax.lax.gather(beyond, origin, _WINDOW_READ, (1, tile, tile), mode="clip")
        depth = jnp.where(depth > passed, depth, jnp.inf)
    return depth, (index % num_faces).astype(jnp.int32), origin


def _pixel_range(coordinate: Float[Array, "t 3"], size: int) -> tuple[Int[Array, "t"], Int[Array, "t"]]:
    """First pixel centre within the triangle's extent, and the number of such pixels inside the image."""
    first = jnp.clip(jnp.ceil(coordinate.min(1) - 0.5), 0, size)
    last = jnp.clip(jnp.floor(coordinate.max(1) - 0.5), -1, size - 1)
    first, last = jnp.nan_to_num(first), jnp.nan_to_num(last, nan=-1.0)
    return first.astype(jnp.int32), jnp.maximum(last - first + 1, 0).astype(jnp.int32)


def _tiles_per_step(tile: int) -> int:
    """Tiles per step of the loop: as many as fit a CPU's cache, or enough to fill an accelerator."""
    pixels = 1 << (15 if jax.default_backend() == "cpu" else 22)
    return pixels // tile**2


_WINDOW = jax.lax.ScatterDimensionNumbers(
    update_window_dims=(1, 2), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 1, 2)
)
_WINDOW_READ = jax.lax.GatherDimensionNumbers(
    offset_dims=(1, 2), collapsed_slice_dims=(0,), start_index_map=(0, 1, 2)
)
