"""Differentiable antialiasing: neighbouring pixels are blended by where a silhouette edge passes between them.

A rasterized image is discontinuous at silhouettes, so visibility has no gradient. The blend has one: the crossing of
the silhouette with the line between two pixel centres moves with the two vertices of the edge. This follows Laine et
al. 2020 (Modular Primitives for High-Performance Differentiable Rendering), who search for crossings at the edges of
the visible triangle. Here all silhouette edges of the mesh are rasterized, so that edges of triangles smaller than a
pixel are not missed.

Which edge passes between two pixels is found without gradient, by a loop of data-dependent length over all crossings
(no fixed-size buffer can overflow). The crossing is then computed again, differentiably, from that edge.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce

from sv3d_jax.arrays import Array, Bool, Float, Int
from sv3d_jax.render.rasterize import NEAR, TIE, Fragments

CHUNK = 1 << 14  # crossings per step of the loop: enough for an accelerator, some milliseconds on a CPU


class Edges(NamedTuple):
    """Edges of a mesh with their two faces. Unused rows have -1 for both faces."""

    vertices: Int[Array, "e 2"]
    faces: Int[Array, "e 2"]  # the second one is -1 at a border


def mesh_edges(faces: Int[Array, "t 3"], point_ids: Int[Array, "v"] | None = None) -> Edges:
    """The edges of the faces, in 3 t rows, some of them unused.

    Vertices with equal `point_ids` are at the same position, so their edges are the same; without it all vertices are
    different points. Faces with two corners at one point have no edges. An edge of k > 2 faces takes k - 1 rows, each
    with two consecutive faces.
    """
    start = jnp.asarray(faces if point_ids is None else point_ids[faces])
    end = jnp.roll(start, -1, axis=1)
    proper = (start != end).all(axis=1, keepdims=True)
    last = jnp.iinfo(start.dtype).max  # sorts behind all points
    low, high = (jnp.where(proper, side(start, end), last).ravel() for side in (jnp.minimum, jnp.maximum))
    low, high, order = _sorted_pairs(low, high, last)

    repeats = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    continues, continued = jnp.pad(repeats, (1, 0)), jnp.pad(repeats, (0, 1))
    used = (low != last) & (continued | ~continues)
    face = order // 3
    second = jnp.where(continued, jnp.roll(face, -1), -1)
    vertices = jnp.stack([faces.ravel(), jnp.roll(faces, -1, axis=1).ravel()], axis=-1)[order]
    return Edges(vertices, jnp.where(used[:, None], jnp.stack([face, second], axis=-1), -1))


def _sorted_pairs(
    low: Int[Array, "n"], high: Int[Array, "n"], last: int
) -> tuple[Int[Array, "n"], Int[Array, "n"], Int[Array, "n"]]:
    """Pairs of numbers from 0 on in ascending order, and where each was; pairs of `last` are no pairs, and come last.

    Where both numbers fit into one and no pair is there more than twice, single integers are sorted, which takes a CPU
    a third of the time.
    """
    numbers = jnp.arange(low.size, dtype=jnp.int32)
    none = np.uint32(2**32 - 1)
    key = jnp.where(low == last, none, low.astype(jnp.uint32) << 16 | high.astype(jnp.uint32))
    fit = (jnp.where(low == last, 0, high) < 2**16 - 1).all()
    in_order = jax.lax.cond(fit, jnp.sort, lambda key: key, key)
    is_simple = fit & ((in_order[2:] != in_order[:-2]) | (in_order[2:] == none)).all()

    def of_single_numbers():
        first = jnp.searchsorted(in_order, key)
        owner = jnp.full_like(numbers, low.size).at[first].min(numbers)
        place = first + (owner[first] != numbers)
        order = jnp.zeros_like(numbers).at[place].set(numbers, mode="drop")
        is_none = in_order == none
        parts = (in_order >> 16).astype(low.dtype), (in_order & np.uint32(2**16 - 1)).astype(low.dtype)
        return *(jnp.where(is_none, last, part) for part in parts), order

    return jax.lax.cond(
        is_simple, of_single_numbers, lambda: tuple(jax.lax.sort((low, high, numbers), num_keys=2))
    )


def closed_mesh_edges(faces: Int[Array, "t 3"], num_vertices: int) -> Edges:
    """The edges of a closed mesh, each with exactly two faces, in 3 t / 2 rows, half of those of `mesh_edges`.

    Both ends are packed into one integer if they fit, because a CPU sorts integers eight times as fast as rows, and
    searching them is faster still.
    """
    if num_vertices > 2**16:
        return mesh_edges(faces)
    start, end = faces, jnp.roll(faces, -1, axis=1)
    none, count = np.uint32(2**32 - 1), 3 * len(faces) // 2
    packed = jnp.minimum(start, end).astype(jnp.uint32) << 16 | jnp.maximum(start, end).astype(jnp.uint32)
    key = jnp.where((start != end).all(axis=1, keepdims=True), packed, none).ravel()
    in_order = jnp.sort(key)
    is_new = jnp.append(True, in_order[1:] != in_order[:-1]) & (in_order != none)
    (rows,) = jnp.nonzero(is_new, size=count, fill_value=key.size)
    edge = in_order.at[rows].get(mode="fill", fill_value=none)
    row = jnp.where(key == none, count, jnp.searchsorted(edge, key))
    face = jnp.arange(key.size, dtype=jnp.int32) // 3
    first = jnp.full(count, len(faces), jnp.int32).at[row].min(face, mode="drop")
    second = jnp.full(count, -1, jnp.int32).at[row].max(face, mode="drop")
    vertices = jnp.stack([edge >> 16, edge & np.uint32(2**16 - 1)], axis=-1).astype(jnp.int32)
    used = (edge != none)[:, None]
    return Edges(jnp.where(used, vertices, 0), jnp.where(used, jnp.stack([first, second], axis=-1), -1))


def antialias(
    colors: Float[Array, "n h w c"],
    fragments: Fragments,
    screen: Float[Array, "n v 3"],
    faces: Int[Array, "t 3"],
    edges: Edges,
) -> Float[Array, "n h w c"]:
    """The rasterized colours (or a mask) blended at silhouettes, differentiable in colours and vertices.

    A silhouette edge has one face, or a front and a back face (all faces must be wound alike). Edges that are more
    vertical blend horizontal neighbours, others vertical neighbours, so that no edge counts twice. The gradient of a
    crossing goes to the two vertices in `edges`. Surfaces that cover no pixel centre stay invisible, and intersections
    of surfaces stay aliased.
    """
    fixed = jax.lax.stop_gradient(screen)
    facing = _facing(fixed, faces)
    silhouette = facing[:, edges.faces[:, 0]] != facing[:, edges.faces[:, 1]]
    reach = jnp.abs(fixed[:, edges.vertices[:, 1], :2] - fixed[:, edges.vertices[:, 0], :2])
    steep = reach[..., 1] >= reach[..., 0]
    face_id = fragments.face_id
    depth = jnp.where(face_id < 0, jnp.inf, jax.lax.stop_gradient(fragments.depth))

    across = _row_gains(colors, face_id, depth, screen, edges.vertices, silhouette & steep)
    colors_t, face_id_t, depth_t = (jnp.swapaxes(leaf, 1, 2) for leaf in (colors, face_id, depth))
    down = _row_gains(
        colors_t, face_id_t, depth_t, screen[..., jnp.array([1, 0, 2])], edges.vertices, silhouette & ~steep
    )
    return colors + across + jnp.swapaxes(down, 1, 2)


def box_filter(pixels: Float[Array, "n h w c"], factor: int) -> Float[Array, "n h2 w2 c"]:
    """Means over blocks of `factor` x `factor` pixels."""
    return reduce(pixels, "n (h s) (w r) c -> n h w c", "mean", s=factor, r=factor)


def _facing(screen: Float[Array, "n v 3"], faces: Int[Array, "t 3"]) -> Float[Array, "n t_plus_1"]:
    """1 for front faces, -1 for back faces, 0 for those not drawn; and a last 0, which index -1 selects."""
    corners = screen[:, faces]
    first, second = (corners[:, :, i, :2] - corners[:, :, 0, :2] for i in (1, 2))
    doubled_area = first[..., 0] * second[..., 1] - second[..., 0] * first[..., 1]
    drawn = jnp.isfinite(doubled_area) & (corners[..., 2] > NEAR).all(-1)
    # Rows count downwards, so counter-clockwise faces have a negative area here.
    return jnp.pad(jnp.where(drawn, -jnp.sign(doubled_area), 0.0), ((0, 0), (0, 1)))


def _row_gains(
    colors: Float[Array, "n h w c"],
    face_id: Int[Array, "n h w"],
    depth: Float[Array, "n h w"],
    screen: Float[Array, "n v 3"],
    edge_vertices: Int[Array, "e 2"],
    chosen: Bool[Array, "n e"],
) -> Float[Array, "n h w c"]:
    """The change of each pixel by the chosen edges between it and its neighbours in the row."""
    _, height, width = face_id.shape
    edge, edge_depth = _nearest_crossings(
        jax.lax.stop_gradient(screen)[:, edge_vertices], chosen, height, width
    )
    seen = (edge >= 0) & (face_id[:, :, 1:] != face_id[:, :, :-1])
    # An edge behind both surfaces is hidden. The factor allows for their slope within a pixel.
    seen &= edge_depth <= jnp.maximum(depth[:, :, 1:], depth[:, :, :-1]) * (1.0 + 1.0 / width)
    crossing = _crossing_columns(screen, edge_vertices, jnp.where(seen, edge, -1))
    middle = jnp.arange(1, width, dtype=screen.dtype)
    # The left colour extends to the crossing: beyond the middle the right pixel changes, before it the left one.
    shift = jnp.where(seen, crossing - middle, 0.0)[..., None]
    gain = shift * (colors[:, :, :-1] - colors[:, :, 1:])
    to_right = jnp.where(shift > 0, gain, 0.0)
    side = ((0, 0), (0, 0))
    return jnp.pad(to_right, (*side, (1, 0), (0, 0))) + jnp.pad(gain - to_right, (*side, (0, 1), (0, 0)))


@jax.custom_vjp
def _crossing_columns(
    screen: Float[Array, "n v 3"], edge_vertices: Int[Array, "e 2"], edge: Int[Array, "n h w"]
) -> Float[Array, "n h w"]:
    """Columns at which edges, of which each place has one or none (-1), cross its row; 0 where there is none.

    Few places have one. So the gradient goes through those alone, in a loop of data-dependent length.
    """
    view = jnp.arange(len(screen))[:, None, None, None]
    ends = screen[view, edge_vertices[jnp.maximum(edge, 0)]]  # n h w 2 3
    # Masked before use: vertices of hidden edges may be infinite.
    ends = jnp.where((edge >= 0)[..., None, None], ends, 0.0)
    return _column_at(ends, jnp.arange(edge.shape[1], dtype=screen.dtype)[:, None] + 0.5)


def _crossing_forward(screen, edge_vertices, edge):
    return _crossing_columns(screen, edge_vertices, edge), (screen, edge_vertices, edge)


def _crossing_backward(kept, cotangent):
    screen, edge_vertices, edge = kept
    _, height, width = edge.shape
    counts = jnp.cumsum(edge.ravel() >= 0)

    def add(step, total):
        number = step * CHUNK + jnp.arange(CHUNK)
        place = jnp.minimum(jnp.searchsorted(counts, number, side="right"), counts.size - 1)
        exists = number < counts[-1]
        row = (place // width % height).astype(screen.dtype) + 0.5
        corner = (place // (height * width))[:, None], edge_vertices[edge.ravel()[place]]
        ends = jnp.where(exists[:, None, None], screen[corner], 0.0)
        _, gradient = jax.vjp(lambda ends: _column_at(ends, row), ends)
        return total.at[corner].add(*gradient(jnp.where(exists, cotangent.ravel()[place], 0.0)))

    steps = -(-counts[-1] // CHUNK)
    return jax.lax.fori_loop(0, steps, add, jnp.zeros_like(screen)), None, None


_crossing_columns.defvjp(_crossing_forward, _crossing_backward)


def _nearest_crossings(
    ends: Float[Array, "n e 2 3"], chosen: Bool[Array, "n e"], height: int, width: int
) -> tuple[Int[Array, "n h w_minus_1"], Float[Array, "n h w_minus_1"]]:
    """Id and depth of the nearest chosen edge between each pixel centre and the next one in its row; -1 if none.

    At equal depth the edge with the lower id wins.
    """
    num_views, num_edges = chosen.shape
    # Half-open ranges, so that a row through a vertex crosses only one of the two edges that continue there.
    first, stop = (
        jnp.clip(jnp.ceil(y - 0.5), 0, height).astype(jnp.int32)
        for y in (ends[..., 1].min(-1), ends[..., 1].max(-1))
    )
    stops = jnp.cumsum(jnp.where(chosen, stop - first, 0).ravel())
    row_offset = stop.ravel() - stops  # row number = place in the list + offset
    ends = ends.reshape(-1, 2, 3)
    shape = (num_views, height, width - 1)

    def crossings(step):
        """Pixel, depth and edge of one chunk of crossings; pixels outside the image where there is none."""
        number = step * CHUNK + jnp.arange(CHUNK)
        index = jnp.minimum(jnp.searchsorted(stops, number, side="right"), stops.size - 1)
        row = number + row_offset[index]
        center = row.astype(ends.dtype) + 0.5
        left = jnp.floor(_column_at(ends[index], center) - 0.5)
        exists = (number < stops[-1]) & (left >= 0) & (left < width - 1)
        column = jnp.where(exists, left, width).astype(jnp.int32)
        depth = _depth_at(ends[index], center)
        return (index // num_edges, row, column), depth, (index % num_edges).astype(jnp.int32)

    def keep_nearest(step, nearest):
        place, depth, _ = crossings(step)
        return nearest.at[place].min(depth, mode="drop")

    def keep_lowest_id(step, ids):
        place, depth, edge = crossings(step)
        return ids.at[place].min(jnp.where(depth <= limit[place], edge, num_edges), mode="drop")

    steps = -(-stops[-1] // CHUNK)
    nearest = jax.lax.fori_loop(0, steps, keep_nearest, jnp.full(shape, jnp.inf, ends.dtype))
    limit = nearest * (1.0 + TIE)
    ids = jax.lax.fori_loop(0, steps, keep_lowest_id, jnp.full(shape, num_edges, jnp.int32))
    return jnp.where(ids == num_edges, -1, ids), nearest


def _column_at(ends: Float[Array, "*n 2 3"], row: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Column where an edge crosses a row."""
    start, end = ends[..., 0, :], ends[..., 1, :]
    return start[..., 0] + _share_at(ends, row) * (end[..., 0] - start[..., 0])


def _depth_at(ends: Float[Array, "*n 2 3"], row: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Depth of an edge where it crosses a row; inverse depth is linear in screen space."""
    inverse, share = 1.0 / ends[..., 2], _share_at(ends, row)
    return 1.0 / (inverse[..., 0] + share * (inverse[..., 1] - inverse[..., 0]))


def _share_at(ends: Float[Array, "*n 2 3"], row: Float[Array, "*n"]) -> Float[Array, "*n"]:
    rise = ends[..., 1, 1] - ends[..., 0, 1]
    return (row - ends[..., 0, 1]) / jnp.where(rise == 0, 1.0, rise)
