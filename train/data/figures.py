"""The `figures` family: upright figures whose hidden sides can be inferred from one view.

A box or cylinder body with a hat, a foot band and a nose. The front has colour A, as the knob on the hat; the left
side has B, the colour of the hat; the right side has C, the colour of the foot band; the back is dark. A model
that has seen many of them can predict the hidden sides from any view.
"""

import colorsys

import numpy as np

from sv3d_jax.geometry.mesh import Mesh

MAX_TRIANGLES = 288  # of any figure
MIN_HUE_DISTANCE = 0.14


def figure_mesh(seed: int) -> Mesh:
    """The figure with this seed: z up, split vertices with one colour per face, closed parts, about one unit high."""
    rng = np.random.default_rng(seed)
    front, left, right = _distinct_colors(rng)
    back = np.full(3, rng.uniform(0.08, 0.2))

    outline, middles = _outline(rng, sector := np.radians(rng.uniform(75.0, 105.0)))
    side = np.round(middles / sector).astype(int)  # 0 front, 1 left, -1 right, others back
    sides = np.select([side[:, None] == k for k in (0, 1, -1)], [front, left, right], back)

    foot_top, hat_base = rng.uniform(0.13, 0.2), rng.uniform(0.68, 0.8)
    hat_width = rng.uniform(0.75, 1.0)
    taper = rng.uniform(0.85, 1.0)
    knob = 0.15 * np.stack([np.cos(k := np.arange(6) * np.pi / 3), np.sin(k)], 1)
    nose_height = foot_top + rng.uniform(0.45, 0.75) * (hat_base - foot_top)
    parts = [
        _frustum(outline, 0.0, foot_top, rng.uniform(0.78, 0.92), rng.uniform(0.9, 1.0), right),
        _frustum(outline, foot_top, hat_base, 1.0, taper, sides),
        _frustum(outline, hat_base, 1.0, hat_width, hat_width * rng.uniform(0.55, 0.9), left),
        _frustum(knob, 1.0, 1.0 + rng.uniform(0.04, 0.07), 1.0, rng.uniform(0.5, 1.0), front),
        _nose(rng, _radius_ahead(outline), nose_height, 0.45 + 0.55 * front),
    ]
    corners = np.concatenate([part for part, _ in parts])
    colors = np.concatenate([color for _, color in parts])

    yaw = rng.uniform(0.0, 2.0 * np.pi)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    return Mesh(
        vertices=corners.reshape(-1, 3) @ turn.T,
        faces=np.arange(3 * len(corners), dtype=np.int32).reshape(-1, 3),
        vertex_colors=np.repeat(colors, 3, axis=0).astype(np.float32),
    )


def _distinct_colors(rng: np.random.Generator) -> list[np.ndarray]:
    """Three saturated colours whose hues are far apart."""
    while True:
        hues = rng.uniform(size=3)
        gaps = np.abs(hues - np.roll(hues, 1))
        if np.minimum(gaps, 1.0 - gaps).min() > MIN_HUE_DISTANCE:
            break
    return [np.array(colorsys.hsv_to_rgb(h, rng.uniform(0.7, 1.0), rng.uniform(0.65, 1.0))) for h in hues]


def _outline(rng: np.random.Generator, sector: float) -> tuple[np.ndarray, np.ndarray]:
    """Points round the body's cross-section, front along +x, and the angle of the middle of the side after each point.

    The points include the borders of the coloured sectors.
    """
    borders = np.array([-1.5, -0.5, 0.5, 1.5]) * sector
    depth, width = rng.uniform(0.9, 1.0, 2)
    if rng.uniform() < 0.5:
        depth, width = 0.48 * depth, 0.48 * width
        corner = np.arctan2(width, depth)
        angles = np.sort(np.concatenate([borders, [corner, np.pi - corner, corner - np.pi, -corner]]))
        radii = 1.0 / np.maximum(np.abs(np.cos(angles)) / depth, np.abs(np.sin(angles)) / width)
    else:
        depth, width = 0.6 * depth, 0.6 * width
        angles = np.sort(np.concatenate([borders, (np.arange(16) - 7.5) * np.pi / 8]))
        radii = 1.0 / np.hypot(np.cos(angles) / depth, np.sin(angles) / width)
    following = np.append(angles[1:], angles[0] + 2.0 * np.pi)
    middles = (0.5 * (angles + following) + np.pi) % (2.0 * np.pi) - np.pi
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1), middles


def _radius_ahead(outline: np.ndarray) -> float:
    """Distance from the axis to the outline along +x."""
    after = np.flatnonzero(outline[:, 1] > 0)
    after = after[np.argmax(outline[after, 0] / outline[after, 1])]
    (x0, y0), (x1, y1) = outline[after - 1], outline[after]
    return x0 - y0 * (x1 - x0) / (y1 - y0)


def _frustum(outline, bottom, top, bottom_scale, top_scale, colors) -> tuple[np.ndarray, np.ndarray]:
    """Triangles `t 3 3` and colours `t 3` of a closed prism; `colors` is one colour, or one for each side."""
    count = len(outline)
    low = np.column_stack([bottom_scale * outline, np.full(count, bottom)])
    high = np.column_stack([top_scale * outline, np.full(count, top)])
    low_next, high_next = np.roll(low, -1, axis=0), np.roll(high, -1, axis=0)
    low_center, high_center = np.zeros_like(low) + [0, 0, bottom], np.zeros_like(low) + [0, 0, top]
    triangles = [
        (low, low_next, high_next),
        (low, high_next, high),
        (low_next, low, low_center),
        (high, high_next, high_center),
    ]
    corners = np.concatenate([np.stack(triangle, axis=1) for triangle in triangles])
    return corners, np.tile(np.broadcast_to(colors, (count, 3)), (4, 1))


def _nose(rng, distance, height, color) -> tuple[np.ndarray, np.ndarray]:
    """Triangles `t 3 3` and colours `t 3` of a truncated pyramid on the front."""
    square = rng.uniform(0.11, 0.16) * np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    length = rng.uniform(0.08, 0.12)
    corners, colors = _frustum(square, -0.08, length, 1.0, rng.uniform(0.3, 0.8), color)
    # The prism's axis z becomes the front +x: (x, y, z) -> (z, x, y), a rotation.
    return corners[..., [2, 0, 1]] + [distance, 0.0, height], colors
