"""The `mixed` family: a wide domain of one to four random shapes with random poses, colours and patterns."""

import colorsys
from collections.abc import Callable

import manifold3d
import numpy as np

from sv3d_jax.geometry.mesh import Mesh

Shape = tuple[np.ndarray, np.ndarray]  # vertices v 3 inside about the unit ball, faces t 3


def mixed_mesh(seed: int) -> Mesh:
    """The mixed object with this seed, z up: the closed surface of the union of its overlapping parts."""
    rng = np.random.default_rng(seed)
    count = rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1])
    names = sorted(SHAPES)
    parts = []
    for index in range(count):
        vertices, faces = SHAPES[names[rng.integers(len(names))]](rng)
        colors = _pattern(rng, vertices)
        stretch = rng.uniform(0.6, 1.0, 3) * (1.0 if index == 0 else rng.uniform(0.35, 0.8))
        # Further parts are centred on a vertex of the first one, so that the object is connected.
        place = np.zeros(3) if index == 0 else rng.choice(parts[0][0])
        parts.append(((vertices * stretch) @ _rotation(rng).T + place, faces, colors))
    return _united(parts)


def _united(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Mesh:
    """The surface of the union of closed parts, given as vertices, faces and colours."""
    solids = []
    for vertices, faces, colors in parts:
        solid = manifold3d.Mesh(np.float32(np.hstack([vertices, colors])), faces.astype(np.uint32))
        solid.merge()
        solids.append(manifold3d.Manifold(solid))
    union = manifold3d.Manifold.batch_boolean(solids, manifold3d.OpType.Add).to_mesh()
    vertices, colors = np.split(union.vert_properties, [3], axis=1)
    vertices = np.float64(vertices)
    rows, faces = _split_at_sharp_edges(vertices, union.tri_verts.astype(np.int32))
    return Mesh(vertices[rows], faces, colors[rows])


# Closed surfaces on grids of two angles


def _superquadric(rng: np.random.Generator) -> Shape:
    e, n = rng.uniform(0.2, 2.2, 2)
    return _sphere_like(lambda d: np.sign(d) * np.abs(d) ** np.array([n, n, e]))


def _ellipsoid(rng: np.random.Generator) -> Shape:
    axes = rng.uniform(0.4, 1.0, 3)
    return _sphere_like(lambda d: axes * d)


def _blob(rng: np.random.Generator) -> Shape:
    waves, phases = rng.normal(0.0, 2.0, (6, 3)), rng.uniform(0, 2 * np.pi, 6)
    return _sphere_like(lambda d: d * (1.0 + 0.1 * np.sin(d @ waves.T + phases).sum(-1, keepdims=True)))


def _bumpy_ball(rng: np.random.Generator) -> Shape:
    k = rng.integers(3, 8, 2)
    depth = rng.uniform(0.05, 0.2)

    def shape(d):
        polar, azimuth = np.arccos(np.clip(d[..., 2:], -1, 1)), np.arctan2(d[..., 1:2], d[..., :1])
        return d * (1.0 + depth * np.sin(k[0] * polar) * np.cos(k[1] * azimuth) * np.sin(polar))

    return _sphere_like(shape)


def _heart(rng: np.random.Generator) -> Shape:
    cleft = rng.uniform(0.3, 0.6)
    flatness = np.array([1.0, rng.uniform(0.4, 0.7), 1.0])
    return _sphere_like(lambda d: flatness * d + np.array([0, 0, 1]) * cleft * (np.abs(d[..., :1]) - 0.5))


def _shell(rng: np.random.Generator) -> Shape:
    ribs, depth = rng.integers(6, 16), rng.uniform(0.05, 0.15)
    squash = np.array([1.0, 1.0, rng.uniform(0.35, 0.8)])

    def shape(d):
        azimuth = np.arctan2(d[..., 1:2], d[..., :1])
        return squash * d * (1.0 + depth * np.cos(ribs * azimuth) * np.hypot(d[..., :1], d[..., 1:2]))

    return _sphere_like(shape)


def _torus(rng: np.random.Generator) -> Shape:
    width = rng.uniform(0.15, 0.4)
    return _tube(_circle, lambda t: width + 0 * t, True)


def _wavy_ring(rng: np.random.Generator) -> Shape:
    waves, height, width = rng.integers(2, 6), rng.uniform(0.15, 0.35), rng.uniform(0.12, 0.25)
    return _tube(
        lambda t: _circle(t) + height * np.sin(waves * t)[:, None] * [0, 0, 1], lambda t: width + 0 * t, True
    )


def _beaded_ring(rng: np.random.Generator) -> Shape:
    beads, width = rng.integers(5, 12), rng.uniform(0.12, 0.22)
    return _tube(_circle, lambda t: width * (1.0 + 0.5 * np.cos(beads * t)), True)


def _knot(rng: np.random.Generator) -> Shape:
    p, q = [(2, 3), (3, 2), (2, 5), (3, 4)][rng.integers(4)]
    width = rng.uniform(0.1, 0.16)

    def curve(t):
        r = 0.65 + 0.3 * np.cos(q * t)
        return np.stack([r * np.cos(p * t), r * np.sin(p * t), 0.35 * np.sin(q * t)], axis=1)

    return _tube(curve, lambda t: width + 0 * t, True, samples=192)


def _spring(rng: np.random.Generator) -> Shape:
    turns, width = rng.integers(2, 6), rng.uniform(0.07, 0.14)

    def curve(t):
        return np.stack([0.7 * np.cos(turns * t), 0.7 * np.sin(turns * t), t / np.pi - 1.0], axis=1)

    return _tube(curve, lambda t: width + 0 * t, False, samples=160)


def _horn(rng: np.random.Generator) -> Shape:
    bend, width = rng.uniform(0.5, 1.6), rng.uniform(0.25, 0.4)

    def curve(t):
        s = t / (2 * np.pi)
        return np.stack([np.sin(bend * s), 1.0 - np.cos(bend * s) - 0.4, 2.0 * s - 1.0], axis=1)

    return _tube(curve, lambda t: width * (1.02 - t / (2 * np.pi)), False)


def _capsule_chain(rng: np.random.Generator) -> Shape:
    beads, width = rng.integers(2, 5), rng.uniform(0.2, 0.35)
    profile = lambda t: width * (0.25 + 0.75 * np.abs(np.sin(0.5 * beads * t)))  # noqa: E731
    return _tube(lambda t: np.stack([0 * t, 0 * t, t / np.pi - 1.0], axis=1), profile, False)


# Outlines: lathes and extrusions


def _vase(rng: np.random.Generator) -> Shape:
    return _lathe(np.interp(np.linspace(0, 1, 24), np.linspace(0, 1, 6), rng.uniform(0.2, 0.9, 6)))


def _smooth_vase(rng: np.random.Generator) -> Shape:
    a, b, phase = rng.uniform(0.1, 0.3), rng.uniform(3.0, 7.0), rng.uniform(0, 6.28)
    return _lathe(0.6 + a * np.sin(b * np.linspace(0, 1, 32) + phase))


def _cylinder(rng: np.random.Generator) -> Shape:
    return _lathe(np.full(2, rng.uniform(0.3, 0.9)))


def _cone(rng: np.random.Generator) -> Shape:
    return _lathe(np.linspace(rng.uniform(0.5, 1.0), rng.uniform(0.02, 0.4), 12))


def _spinning_top(rng: np.random.Generator) -> Shape:
    waist = rng.uniform(0.3, 0.7)
    return _lathe(np.interp(np.linspace(0, 1, 25), [0, waist, 1], [0.03, 0.95, 0.05]))


def _stepped_tower(rng: np.random.Generator) -> Shape:
    return _lathe(np.repeat(np.sort(rng.uniform(0.2, 0.9, rng.integers(2, 5)))[::-1], 2), steps=True)


def _dumbbell(rng: np.random.Generator) -> Shape:
    bar, ends = rng.uniform(0.12, 0.3), rng.uniform(0.5, 0.9)
    return _lathe(np.array([ends, ends, bar, bar, ends, ends]), steps=True)


def _mushroom(rng: np.random.Generator) -> Shape:
    stem, cap = rng.uniform(0.2, 0.4), rng.uniform(0.7, 1.0)
    dome = cap * np.cos(np.linspace(0, 1.45, 14))
    return _lathe(np.concatenate([[stem, stem, stem], dome]))


def _box(rng: np.random.Generator) -> Shape:
    x, y = rng.uniform(0.4, 0.9, 2)
    return _extrusion(np.array([[x, y], [-x, y], [-x, -y], [x, -y]]), rng.uniform(0.3, 0.9))


def _prism(rng: np.random.Generator) -> Shape:
    return _extrusion(0.9 * _polygon(rng.integers(3, 9)), rng.uniform(0.3, 0.9))


def _pyramid(rng: np.random.Generator) -> Shape:
    return _extrusion(0.9 * _polygon(rng.integers(3, 7)), rng.uniform(0.5, 0.9), taper=rng.uniform(0.02, 0.5))


def _antiprism(rng: np.random.Generator) -> Shape:
    sides = rng.integers(3, 9)
    return _extrusion(0.85 * _polygon(sides), rng.uniform(0.3, 0.8), twist=np.pi / sides)


def _twisted_bar(rng: np.random.Generator) -> Shape:
    sides = rng.integers(3, 6)
    return _extrusion(0.5 * _polygon(sides), 1.0, twist=rng.uniform(1.0, 4.0), layers=32)


def _star(rng: np.random.Generator) -> Shape:
    points = rng.integers(4, 9)
    radii = np.where(np.arange(2 * points) % 2, rng.uniform(0.35, 0.6), 1.0)
    return _extrusion(radii[:, None] * _polygon(2 * points), rng.uniform(0.15, 0.5))


def _gear(rng: np.random.Generator) -> Shape:
    teeth = rng.integers(6, 15)
    radii = np.tile([1.0, 1.0, 0.75, 0.75], teeth)
    return _extrusion(radii[:, None] * _polygon(4 * teeth), rng.uniform(0.1, 0.35))


def _flower(rng: np.random.Generator) -> Shape:
    petals, depth = rng.integers(3, 8), rng.uniform(0.15, 0.3)
    angles = np.arange(96) * 2 * np.pi / 96
    radii = 0.7 + depth * np.cos(petals * angles)
    return _extrusion(radii[:, None] * _polygon(96), rng.uniform(0.2, 0.6), taper=rng.uniform(0.6, 1.0))


def _cross(rng: np.random.Generator) -> Shape:
    a = rng.uniform(0.2, 0.45)
    arm = np.array([[1.0, -a], [1.0, a], [a, a]])
    quarter_turns = [np.linalg.matrix_power([[0, -1], [1, 0]], k) for k in range(4)]
    return _extrusion(np.concatenate([arm @ turn.T for turn in quarter_turns]), rng.uniform(0.2, 0.6))


def _screw(rng: np.random.Generator) -> Shape:
    angles = np.arange(64) * 2 * np.pi / 64
    radii = 0.55 + rng.uniform(0.1, 0.25) * np.cos(rng.integers(1, 4) * angles)
    return _extrusion(radii[:, None] * _polygon(64), 1.0, twist=rng.uniform(4.0, 10.0), layers=48)


SHAPES: dict[str, Callable[[np.random.Generator], Shape]] = {
    shape.__name__.strip("_"): shape
    for shape in (
        _superquadric, _ellipsoid, _blob, _bumpy_ball, _heart, _shell, _torus, _wavy_ring, _beaded_ring, _knot,
        _spring, _horn, _capsule_chain, _vase, _smooth_vase, _cylinder, _cone, _spinning_top, _stepped_tower,
        _dumbbell, _mushroom, _box, _prism, _pyramid, _antiprism, _twisted_bar, _star, _gear, _flower, _cross, _screw,
    )
}  # fmt: skip


# Builders


def _sphere_like(shape: Callable[[np.ndarray], np.ndarray], rings: int = 24, sectors: int = 48) -> Shape:
    """The image of the unit sphere under a map of directions `... 3`."""
    polar = np.linspace(np.pi, 0.0, rings + 1)[:, None]
    azimuth = np.arange(sectors) * 2 * np.pi / sectors
    directions = np.stack(
        [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar) + 0 * azimuth],
        axis=-1,
    )
    points = shape(directions)
    return _closed_layers(points[1:-1], points[0].mean(0), points[-1].mean(0))


def _lathe(radii: np.ndarray, steps: bool = False, sectors: int = 40) -> Shape:
    """A surface of revolution about z from a profile of radii, bottom to top.

    With `steps`, the radii come in pairs, the two ends of a segment; the radius jumps between segments.
    """
    heights = np.linspace(-0.9, 0.9, len(radii))
    if steps:
        heights = np.repeat(np.linspace(-0.9, 0.9, len(radii) // 2 + 1), 2)[1:-1]
    ring = _polygon(sectors)
    layers = np.stack(
        [np.column_stack([r * ring, np.full(sectors, z)]) for r, z in zip(radii, heights, strict=True)]
    )
    return _with_sharp_edges(_closed_layers(layers, layers[0].mean(0), layers[-1].mean(0)))


def _extrusion(
    outline: np.ndarray, half_height: float, taper: float = 1.0, twist: float = 0.0, layers: int = 2
) -> Shape:
    """An outline `n 2`, star-shaped about the origin and counter-clockwise, extruded along z."""
    share = np.linspace(0.0, 1.0, layers)
    scale, angle = 1.0 + (taper - 1.0) * share, twist * share
    x = scale[:, None] * (np.cos(angle)[:, None] * outline[:, 0] - np.sin(angle)[:, None] * outline[:, 1])
    y = scale[:, None] * (np.sin(angle)[:, None] * outline[:, 0] + np.cos(angle)[:, None] * outline[:, 1])
    z = np.broadcast_to(half_height * (2.0 * share[:, None] - 1.0), x.shape)
    points = np.stack([x, y, z], axis=-1)
    return _with_sharp_edges(
        _closed_layers(points, points[0].mean(0) * [0, 0, 1], points[-1].mean(0) * [0, 0, 1])
    )


def _tube(
    curve: Callable[[np.ndarray], np.ndarray],
    radius: Callable[[np.ndarray], np.ndarray],
    closed: bool,
    samples: int = 96,
    sectors: int = 12,
) -> Shape:
    """A tube round a curve over the parameter [0, 2 pi], with a rotation-minimising frame."""
    t = np.linspace(0.0, 2 * np.pi, samples, endpoint=not closed)
    centers, step = curve(t), 1e-4
    tangents = curve(t + step) - curve(t - step)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    normals = [_carried(np.eye(3)[np.argmin(np.abs(tangents[0]))], tangents[0])]
    for tangent in tangents[1:]:
        normals.append(_carried(normals[-1], tangent))
    normals = np.array(normals)
    if closed:
        # After one turn the frame is rotated by an angle against its start; spread this angle over the curve.
        last = _carried(normals[-1], tangents[0])
        excess = np.arctan2(np.cross(last, normals[0]) @ tangents[0], last @ normals[0])
        normals = _turned(normals, tangents, excess * np.arange(samples) / samples)
    binormals = np.cross(tangents, normals)
    ring = _polygon(sectors)
    offsets = ring[:, :1] * normals[:, None] + ring[:, 1:] * binormals[:, None]
    points = centers[:, None] + radius(t)[:, None, None] * offsets
    if closed:
        grid = np.arange(samples * sectors).reshape(samples, sectors)
        return points.reshape(-1, 3), _strip_faces(np.vstack([grid, grid[:1]]))
    return _closed_layers(points, centers[0], centers[-1])


def _carried(normal: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """The unit vector nearest to `normal` that is perpendicular to the tangent."""
    carried = normal - tangent * (normal @ tangent)
    return carried / np.linalg.norm(carried)


def _turned(normals: np.ndarray, tangents: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return np.cos(angles)[:, None] * normals + np.sin(angles)[:, None] * np.cross(tangents, normals)


def _closed_layers(layers: np.ndarray, bottom: np.ndarray, top: np.ndarray) -> Shape:
    """Rings of points `n s 3`, counter-clockwise and from the bottom up, joined and closed by two fans."""
    count, sectors = layers.shape[:2]
    grid = np.arange(count * sectors).reshape(count, sectors)
    low, high = count * sectors, count * sectors + 1
    first, last = grid[0], grid[-1]
    fans = [
        np.stack([np.roll(first, -1), first, np.full(sectors, low)], axis=1),
        np.stack([last, np.roll(last, -1), np.full(sectors, high)], axis=1),
    ]
    return np.concatenate([layers.reshape(-1, 3), [bottom, top]]), np.concatenate([_strip_faces(grid), *fans])


def _strip_faces(grid: np.ndarray) -> np.ndarray:
    """Two triangles for each cell between neighbouring rings of vertex ids."""
    a, b = grid[:-1], grid[1:]
    a_next, b_next = np.roll(a, -1, axis=1), np.roll(b, -1, axis=1)
    cells = np.stack([np.stack([a, a_next, b_next], -1), np.stack([a, b_next, b], -1)], axis=-2)
    return cells.reshape(-1, 3)


def _with_sharp_edges(shape: Shape) -> Shape:
    """Vertices split wherever faces meet at more than 40 degrees, so that shading has edges there."""
    rows, faces = _split_at_sharp_edges(*shape)
    return shape[0][rows], faces


def _split_at_sharp_edges(vertices: np.ndarray, faces: np.ndarray) -> tuple[list[int], np.ndarray]:
    """For each vertex after the split the index of its original vertex, and the faces."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    new_faces, groups = np.empty_like(faces), []  # a group: a vertex and the face whose normal defines it
    by_vertex: dict[int, list[int]] = {}
    for face, slot in np.ndindex(faces.shape):
        vertex = faces[face, slot]
        known = by_vertex.setdefault(vertex, [])
        match = [g for g in known if normals[groups[g][1]] @ normals[face] > np.cos(np.radians(40.0))]
        if not match:
            match = [len(groups)]
            known.append(match[0])
            groups.append((vertex, face))
        new_faces[face, slot] = match[0]
    return [vertex for vertex, _ in groups], new_faces


def _circle(t: np.ndarray) -> np.ndarray:
    return 0.65 * np.stack([np.cos(t), np.sin(t), 0 * t], axis=1)


def _polygon(sides: int) -> np.ndarray:
    angles = np.arange(sides) * 2 * np.pi / sides
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


# Colours and poses


def _pattern(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """Colours `v 3` of points: plain, a gradient, stripes, checks, rings, spots or a band."""
    first, second = _color(rng), _color(rng)
    direction, frequency = _rotation(rng)[0], rng.uniform(2.0, 7.0)
    along = points @ direction
    share = [
        np.zeros(len(points)),
        (along - along.min()) / max(np.ptp(along), 1e-9),
        np.sin(frequency * along) > 0,
        np.sin(frequency * (points @ _rotation(rng))).prod(axis=1) > 0,
        np.sin(2 * frequency * np.linalg.norm(points - direction, axis=1)) > 0,
        np.cos(frequency * points).sum(axis=1) > 1.2,
        np.abs(along - rng.uniform(-0.4, 0.4)) < rng.uniform(0.1, 0.3),
    ][rng.integers(7)]
    share = np.asarray(share, np.float64)[:, None]
    return (1.0 - share) * first + share * second


def _color(rng: np.random.Generator) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.2, 1.0), rng.uniform(0.25, 0.95)))


def _rotation(rng: np.random.Generator) -> np.ndarray:
    """A uniformly random rotation, from a random unit quaternion."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
