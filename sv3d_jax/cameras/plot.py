"""A plot of a camera path: cameras seen from above, and their elevations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sv3d_jax.cameras.orbit import CameraPath

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_WIDTH, _HEIGHT = 1200, 560
_SCALE = 3  # supersampling, for smooth lines
_INK, _FAINT, _INPUT = (48, 54, 66), (222, 226, 232), (206, 60, 48)
_FIRST, _LAST = np.array([64, 160, 220]), np.array([70, 60, 150])


def plot_path(path: CameraPath) -> np.ndarray:
    """RGB image (560, 1200, 3): left, the cameras from above, the input view at the bottom; right, the elevations."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(15 * _SCALE)
    shares = np.linspace(0, 1, len(path))[:, None]
    colors = [tuple(color) for color in np.rint(_FIRST + (_LAST - _FIRST) * shares).astype(int).tolist()]
    colors[path.input_frame] = _INPUT
    _draw_from_above(draw, font, path, colors)
    _draw_elevations(draw, font, path, colors)
    return np.asarray(image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS))


def _draw_from_above(
    draw: ImageDraw.ImageDraw, font: Font, path: CameraPath, colors: list[tuple[int, ...]]
) -> None:
    center, radius = np.array([285.0, 300.0]), 185.0

    def place(azimuth_deg: float | np.ndarray, distance: float | np.ndarray) -> np.ndarray:
        """Pixel of a point around the object: azimuth 0 at the bottom, counter-clockwise."""
        angle = np.deg2rad(azimuth_deg)
        return center + radius * np.stack([distance * np.sin(angle), distance * np.cos(angle)], axis=-1)

    for share in (1.0, 0.5):
        _ellipse(draw, center, radius * share, outline=_FAINT)
    for azimuth in range(0, 360, 90):
        _line(draw, [center, place(azimuth, 1.0)], _FAINT)
        _text(draw, font, place(azimuth, 1.25), f"{azimuth}°", _INK)
    _ellipse(draw, center, radius * 0.58 / 2, fill=(238, 240, 244), outline=(190, 196, 206))
    _text(draw, font, center, "object", _INK)

    azimuths, distances = path.azimuths_deg, np.cos(np.deg2rad(path.elevations_deg))
    spots = place(azimuths, distances)
    _line(draw, spots, (170, 178, 190), width=1.5)
    stride = -(-len(path) // 24)
    for index in range(len(path)):
        inward = (center - spots[index]) / max(np.linalg.norm(center - spots[index]), 1e-9)
        sideways = np.array([-inward[1], inward[0]])
        tip = spots[index] + 15 * inward
        _polygon(draw, [spots[index], tip + 7 * sideways, tip - 7 * sideways], colors[index])
        _ellipse(draw, spots[index], 4.0, fill=colors[index])
        if index % stride == 0 or index == path.input_frame:
            _text(draw, font, spots[index] - 15 * inward, str(index), colors[index])
    _text(draw, font, np.array([285.0, 22.0]), "views from above, by frame; red is the input view", _INK)


def _draw_elevations(
    draw: ImageDraw.ImageDraw, font: Font, path: CameraPath, colors: list[tuple[int, ...]]
) -> None:
    left, right, top, bottom = 660.0, 1160.0, 60.0, 490.0
    elevations, last = path.elevations_deg, len(path) - 1
    low, high = min(-10.0, elevations.min() - 5), max(40.0, elevations.max() + 5)
    step = 10 if high - low <= 100 else 30

    def place(frame: float, elevation: float) -> np.ndarray:
        return np.array(
            [left + (right - left) * frame / last, bottom - (bottom - top) * (elevation - low) / (high - low)]
        )

    for elevation in range(int(np.ceil(low / step)) * step, int(high) + 1, step):
        shade = (170, 178, 190) if elevation == 0 else _FAINT
        _line(draw, [place(0, elevation), place(last, elevation)], shade)
        _text(draw, font, place(0, elevation) - [30, 0], f"{elevation}°", _INK)
    for frame in range(0, last + 1, max(1, round(last / 10))):
        _text(draw, font, np.array([place(frame, 0)[0], bottom + 22]), str(frame), _INK)
    spots = [place(frame, elevation) for frame, elevation in enumerate(elevations)]
    _line(draw, spots, (170, 178, 190), width=1.5)
    for spot, color in zip(spots, colors, strict=True):
        _ellipse(draw, spot, 5.0, fill=color)
    _text(draw, font, np.array([(left + right) / 2, 22.0]), "elevation, by frame", _INK)


def _line(draw: ImageDraw.ImageDraw, points, color: tuple[int, ...], width: float = 1.0) -> None:
    draw.line([tuple(point * _SCALE) for point in points], color, round(width * _SCALE), joint="curve")


def _polygon(draw: ImageDraw.ImageDraw, points, color: tuple[int, ...]) -> None:
    draw.polygon([tuple(point * _SCALE) for point in points], fill=color)


def _ellipse(draw: ImageDraw.ImageDraw, center: np.ndarray, radius: float, fill=None, outline=None) -> None:
    corners = np.concatenate([center - radius, center + radius]) * _SCALE
    draw.ellipse(tuple(corners), fill=fill, outline=outline, width=_SCALE)


def _text(draw: ImageDraw.ImageDraw, font, center: np.ndarray, text: str, color: tuple[int, ...]) -> None:
    draw.text(tuple(center * _SCALE), text, fill=color, font=font, anchor="mm")
