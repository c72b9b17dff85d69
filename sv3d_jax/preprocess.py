"""From any picture of an object to the model's input: cut out, centred in a square, resized, over white."""

import importlib
import importlib.util
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from sv3d_jax.errors import InputError
from sv3d_jax.io.images import MAX_PIXELS, Picture, over_white
from sv3d_jax.models.config import ModelConfig

BACKGROUNDS = ("auto", "alpha", "remove", "keep")
CUTOUT_SIDE = 768  # pictures without alpha are shrunk to this before their background is removed
BORDER_TOLERANCE = 12  # grey levels in any channel: noise of a JPEG's plain background
BORDER_SHARE = 0.8  # of the border's pixels must have its colour; the object may touch the rest
SPECK_SHARE = 1e-4  # of the picture: smaller islands in a keyed background are dust


@dataclass(frozen=True)
class PreparedImage:
    """The picture that the model sees."""

    pixels: np.ndarray  # (size, size, 3) uint8
    bbox: tuple[int, int, int, int]  # x, y, width, height of the object in the picture it was cut from
    notes: list[str] = field(default_factory=list)


def prepare_image(
    picture: Picture,
    size: int,
    background: str = "auto",
    frame_ratio: float | None = None,
    published_side: bool = False,
) -> PreparedImage:
    """Cut the object out, centre it in a square, resize to `size` and composite over white.

    The square's side is the object's longer side / frame_ratio; without a ratio the longest side of the picture,
    or with `published_side` its number of rows, which a wide object may not fit. "keep" neither cuts nor centres.
    """
    if background not in BACKGROUNDS:
        raise InputError(f"background must be one of {', '.join(BACKGROUNDS)}, got {background!r}")
    if frame_ratio is not None and not 0 < frame_ratio <= 1:
        raise InputError(f"frame ratio must lie in (0, 1], got {frame_ratio}")
    if picture.alpha is not None and not picture.alpha.any():
        raise InputError(
            "the picture is transparent everywhere", hint="save it again with the object visible"
        )
    notes = list(picture.notes)
    rows, columns = picture.rgb.shape[:2]
    if max(rows, columns) > 2 * min(rows, columns):
        notes.append(f"the picture is {columns}x{rows}, far from square, and is padded")
    if background == "keep":
        return PreparedImage(_square_as_is(picture, size), (0, 0, columns, rows), notes)

    cutout = cut_out(picture, background, notes)
    box = x, y, width, height = bounding_box(cutout[..., 3])
    side = square_side(cutout.shape[:2], box, frame_ratio, published_side)
    if side < max(width, height):
        raise InputError(
            f"the object is {width}x{height} pixels and does not fit the square of side {side}",
            hint="give a frame ratio, such as --frame-ratio 0.917",
        )
    _check_room(side)
    square = np.zeros((side, side, 4), np.uint8)
    top, left = side // 2 - height // 2, side // 2 - width // 2
    square[top : top + height, left : left + width] = cutout[y : y + height, x : x + width]
    # Pillow resizes RGBA premultiplied by alpha, with 8-bit rounding before and after, as the reference does.
    resized = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))
    return PreparedImage(over_white(resized[..., :3], resized[..., 3]), box, notes)


def prepare_for(
    model: ModelConfig,
    picture: Picture,
    size: int,
    background: str = "auto",
    frame_ratio: float | None = None,
) -> PreparedImage:
    """`prepare_image` as suits a model.

    Models that we trained know frames as `sv3d data render` makes them, where the camera looks at the object's
    middle and not at that of its outline. Such a picture is kept as it is by "auto".
    """
    if background == "auto" and frame_ratio is None and model.training and is_render(picture):
        background = "keep"
    return prepare_image(picture, size, background, frame_ratio)


def is_render(picture: Picture) -> bool:
    """Whether this looks like a frame of ours: square, with nothing but white at its border."""
    rgb = picture.rgb
    border = (rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1])
    return (
        picture.alpha is None and rgb.shape[0] == rgb.shape[1] and all((side == 255).all() for side in border)
    )


def cut_out(picture: Picture, background: str, notes: list[str]) -> np.ndarray:
    """RGBA uint8 of the object, by its own alpha, a uniform border or a background remover; says which in notes."""
    if background in ("auto", "alpha") and picture.alpha is not None:
        return np.dstack([picture.rgb, picture.alpha])
    if background == "alpha":
        raise InputError(
            "the picture has no cut-out: its alpha is absent or opaque everywhere",
            hint="use --background auto, or save the object with a transparent background",
        )
    rgb = picture.rgb if picture.alpha is None else over_white(picture.rgb, picture.alpha)
    image = Image.fromarray(rgb)
    image.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE), Image.Resampling.LANCZOS)
    if background == "auto":
        keyed = key_uniform_border(np.asarray(image))
        if keyed is not None:
            notes.append("the background was keyed by the uniform colour of the border")
            return keyed
        if not _has_remover():
            raise InputError(
                "the picture has neither an alpha channel nor a uniform border",
                hint="three ways out: save the object with a transparent background,"
                ' pip install "sv3d_jax[rembg]" to remove backgrounds, or --background keep',
            )
    notes.append("the background was removed by rembg")
    return _remove_background(image)


def bounding_box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """x, y, width, height of all nonzero alpha."""
    if not alpha.any():
        raise InputError("nothing of the picture is left when its background is removed")
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def square_side(
    rows_columns: tuple[int, ...],
    bbox: tuple[int, int, int, int],
    frame_ratio: float | None = None,
    published_side: bool = False,
) -> int:
    """Side of the square that a cut-out of this size and box is centred in; see `prepare_image`."""
    if frame_ratio is not None:
        return int(max(bbox[2:]) / frame_ratio)
    return rows_columns[0] if published_side else max(rows_columns)


def key_uniform_border(rgb: np.ndarray) -> np.ndarray | None:
    """RGBA with the plain background around the object made transparent, or None if the border is not plain.

    The background is what joins the border in the border's colour, so the same colour inside the object stays.
    Along the edge alpha and colour are unmixed from the background.
    """
    from scipy import ndimage

    border = np.concatenate([rgb[:2].reshape(-1, 3), rgb[-2:].reshape(-1, 3), *rgb[:, [0, 1, -2, -1]]])
    color = np.median(border, axis=0)
    distance = np.abs(rgb - color).max(axis=-1)
    if (np.abs(border - color).max(axis=-1) <= BORDER_TOLERANCE).mean() < BORDER_SHARE:
        return None
    # One pixel of background all round joins what an object that touches the border would part.
    plain = np.pad(distance <= BORDER_TOLERANCE, 1, constant_values=True)
    labels = np.empty(plain.shape, np.int32)
    ndimage.label(plain, output=labels)
    outside = (labels == labels[0, 0])[1:-1, 1:-1]

    islands = np.empty(outside.shape, np.int32)
    ndimage.label(~outside, np.ones((3, 3)), output=islands)
    outside |= (np.bincount(islands.ravel()) < SPECK_SHARE * outside.size)[islands]
    rim = ~outside & ndimage.binary_dilation(outside, np.ones((3, 3)))
    alpha, unmixed = _unmix(rgb, color, distance, rim)
    alpha[outside] = 0.0
    return np.dstack([unmixed, np.rint(alpha * 255).astype(np.uint8)])


def _unmix(
    rgb: np.ndarray, background: np.ndarray, distance: np.ndarray, rim: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and uint8 colour with pixel = alpha * foreground + (1 - alpha) * background on the rim.

    The foreground is taken from the pixel within 2 steps that differs most from the background.
    """
    y, x = np.nonzero(rim)
    steps = np.stack(np.meshgrid(range(-2, 3), range(-2, 3)), axis=-1).reshape(-1, 2)
    near_y = np.clip(y[:, None] + steps[:, 1], 0, rim.shape[0] - 1)
    near_x = np.clip(x[:, None] + steps[:, 0], 0, rim.shape[1] - 1)
    farthest = distance[near_y, near_x].argmax(axis=1)[:, None]
    foreground = rgb[near_y, near_x][np.arange(len(y))[:, None], farthest][:, 0] - background
    pixel = rgb[y, x] - background
    share = np.clip((pixel * foreground).sum(axis=1) / (foreground**2).sum(axis=1), 1 / 255, 1.0)
    alpha, color = np.ones(rim.shape), rgb.copy()
    alpha[y, x] = share
    color[y, x] = np.clip(np.rint(background + pixel / share[:, None]), 0, 255)
    return alpha, color


def _square_as_is(picture: Picture, size: int) -> np.ndarray:
    rgb = picture.rgb if picture.alpha is None else over_white(picture.rgb, picture.alpha)
    rows, columns = rgb.shape[:2]
    side = max(rows, columns)
    _check_room(side)
    top, left = (side - rows) // 2, (side - columns) // 2
    square = np.full((side, side, 3), 255, np.uint8)
    square[top : top + rows, left : left + columns] = rgb
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))


def _check_room(side: int) -> None:
    if side**2 > 2 * MAX_PIXELS:
        raise InputError(
            f"padding the picture to a square would make it {side}x{side} pixels",
            hint="crop it closer to the object, or make it smaller",
        )


def _has_remover() -> bool:
    return all(importlib.util.find_spec(name) for name in ("rembg", "onnxruntime"))


def _remove_background(image: Image.Image) -> np.ndarray:
    if not _has_remover():
        raise InputError(
            "removing a background needs rembg, which is not installed",
            hint='pip install "sv3d_jax[rembg]"',
        )
    remove = importlib.import_module("rembg").remove

    return np.asarray(remove(image.convert("RGBA"), alpha_matting=True).convert("RGBA"))
