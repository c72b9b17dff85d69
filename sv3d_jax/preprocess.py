"""Preparing the input picture: cut out the object, centre it in a square, resize, composite over white."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from sv3d_jax.config import is_number
from sv3d_jax.cutout import Remover, cut_out
from sv3d_jax.errors import InputError
from sv3d_jax.io.images import MAX_PIXELS, Mask, Picture, over_white
from sv3d_jax.models.config import ModelConfig

BACKGROUNDS = ("auto", "alpha", "remove", "keep")


@dataclass(frozen=True)
class PreparedImage:
    """The model's input picture."""

    pixels: np.ndarray  # (size, size, 3) uint8
    bbox: tuple[int, int, int, int]  # x, y, width, height of the object in the picture that was cut out
    notes: list[str] = field(default_factory=list)  # what was done to the picture, for run.json


def prepare_image(
    picture: Picture,
    size: int,
    background: str = "auto",
    frame_ratio: float | None = None,
    published_side: bool = False,
    mask: Mask | np.ndarray | None = None,
    box: tuple[int, int, int, int] | None = None,
    remover: Remover | None = None,
) -> PreparedImage:
    """Cut the object out, centre it in a square, resize to `size` and composite over white.

    `background` is "auto" (the picture's alpha, else a plain background, else the remover), "alpha", "remove" or
    "keep". With "auto", the object may be given by a mask or by a box x0, y0, x1, y1. Pass one `remover` to load its
    network only once for many pictures.

    The side of the square is the object's longer side divided by `frame_ratio`. Without a ratio it is the longer side
    of the picture, or with `published_side` its height, which a wide object may not fit. "keep" neither cuts out nor
    centres.

    Raises InputError for a picture that cannot be used in this way, WeightsError if the remover's model is missing.
    """
    if background not in BACKGROUNDS:
        raise InputError(f"background must be one of {', '.join(BACKGROUNDS)}, got {background!r}")
    if frame_ratio is not None and not (is_number(frame_ratio) and 0 < frame_ratio <= 1):
        raise InputError(f"frame ratio must lie in (0, 1], got {frame_ratio!r}")
    if (mask is not None) + (box is not None) + (background != "auto") > 1:
        raise InputError(
            "--mask, --box and --background are three ways to cut out an object: give one of them"
        )
    if picture.alpha is not None and not picture.alpha.any():
        raise InputError(
            f"{picture.name} is transparent everywhere", hint="save it again with the object visible"
        )
    notes = list(picture.notes)
    rows, columns = picture.rgb.shape[:2]
    if max(rows, columns) > 2 * min(rows, columns):
        notes.append(f"the picture is {columns}x{rows}, far from square, and is padded")
    if background == "keep":
        return PreparedImage(_square_as_is(picture, size), (0, 0, columns, rows), notes)

    cutout = cut_out(picture, background, notes, mask, box, remover)
    bbox = x, y, width, height = bounding_box(cutout[..., 3], picture.name)
    side = square_side(cutout.shape[:2], bbox, frame_ratio, published_side)
    if side < max(width, height):
        raise InputError(
            f"the object in {picture.name} is {width}x{height} pixels and does not fit the square of side {side}",
            hint="give a frame ratio, such as --frame-ratio 0.917",
        )
    _check_room(side, picture.name)
    square = np.zeros((side, side, 4), np.uint8)
    top, left = side // 2 - height // 2, side // 2 - width // 2
    square[top : top + height, left : left + width] = cutout[y : y + height, x : x + width]
    # Pillow resizes RGBA premultiplied by alpha, with 8-bit rounding before and after, as the reference does.
    resized = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))
    return PreparedImage(over_white(resized[..., :3], resized[..., 3]), bbox, notes)


def prepare_for(
    model: ModelConfig,
    picture: Picture,
    size: int,
    background: str = "auto",
    frame_ratio: float | None = None,
    mask: Mask | np.ndarray | None = None,
    box: tuple[int, int, int, int] | None = None,
    remover: Remover | None = None,
) -> PreparedImage:
    """`prepare_image` with the framing that a model was trained with.

    Models trained by this package expect frames like those of `sv3d data render`, where the camera looks at the centre
    of the object's bounding box, not of its silhouette. With "auto", a picture that looks like such a frame is kept.
    """
    chosen = background != "auto" or frame_ratio is not None or mask is not None or box is not None
    if not chosen and model.training and is_render(picture):
        background = "keep"
    return prepare_image(picture, size, background, frame_ratio, mask=mask, box=box, remover=remover)


def is_render(picture: Picture) -> bool:
    """Whether a picture looks like a frame of `sv3d data render`: square, without alpha, with a white border."""
    rgb = picture.rgb
    border = (rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1])
    return (
        picture.alpha is None and rgb.shape[0] == rgb.shape[1] and all((side == 255).all() for side in border)
    )


def bounding_box(alpha: np.ndarray, name: str = "the picture") -> tuple[int, int, int, int]:
    """x, y, width, height of the region with nonzero alpha. Raises InputError if there is none."""
    if not alpha.any():
        raise InputError(
            f"nothing of {name} is left when its background is removed",
            hint="say what the object is: --mask FILE, --box X0 Y0 X1 Y1, or --background keep for all of it",
        )
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def square_side(
    rows_columns: tuple[int, ...],
    bbox: tuple[int, int, int, int],
    frame_ratio: float | None = None,
    published_side: bool = False,
) -> int:
    """Side of the square in which an object with this bounding box is centred; see `prepare_image`."""
    if frame_ratio is not None:
        return int(max(bbox[2:]) / frame_ratio)
    return rows_columns[0] if published_side else max(rows_columns)


def _square_as_is(picture: Picture, size: int) -> np.ndarray:
    rgb = picture.rgb if picture.alpha is None else over_white(picture.rgb, picture.alpha)
    rows, columns = rgb.shape[:2]
    side = max(rows, columns)
    _check_room(side, picture.name)
    top, left = (side - rows) // 2, (side - columns) // 2
    square = np.full((side, side, 3), 255, np.uint8)
    square[top : top + rows, left : left + columns] = rgb
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))


def _check_room(side: int, name: str) -> None:
    if side**2 > 2 * MAX_PIXELS:
        raise InputError(
            f"padding {name} to a square would make it {side}x{side} pixels",
            hint="crop it closer to the object, or make it smaller",
        )
