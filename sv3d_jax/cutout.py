"""Cutting the object out of a picture: by a plain background, a mask, a box, or a background removal network."""

import importlib
import os
import reprlib
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sv3d_jax.config import is_number
from sv3d_jax.errors import InputError, WeightsError
from sv3d_jax.io.images import Mask, Picture, over_white

CUTOUT_SIDE = 768  # pictures are downscaled to this before the background is detected
BORDER_TOLERANCE = 12  # 8-bit levels in any channel: JPEG noise of a plain background
BORDER_SHARE = 0.8  # of the border's pixels must have the background's colour; the object may touch the rest
SPECK_SHARE = 1e-4  # of the picture: smaller islands in the background are removed as dust
SLOW_RANGE = 4  # 8-bit levels: a background that varies less along the border counts as uniform
SLOW_GAIN = 0.02  # share of border or picture that a gradient must explain beyond a uniform colour
PIECE_SHARE = 0.1  # of the largest piece in a box: smaller pieces belong to the background
HOLE_SHARE = 0.01  # of the object: smaller holes are filled
MASK_NOISE = 16  # 8-bit levels by which black and white of a mask may be off after lossy compression
ASPECT_TOLERANCE = 0.01  # relative difference between the aspect ratios of mask and picture, from rounding

# The network of rembg whose weights are under a free licence too.
REMOVER = "u2net"
REMOVER_FILE = "u2net.onnx"
REMOVER_SIZE = "176 MB"
REMOVER_URL = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2net.onnx"
INSTALL_PHOTOS = 'pip install "sv3d_jax[photos]"'
INSTALL_REMBG = 'pip install "sv3d_jax[rembg]"'


class Remover:
    """Background removal by rembg with its model u2net, which is loaded at the first use and kept."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGBA uint8 of an RGB image without its background.

        Raises InputError if rembg is not installed, WeightsError if its model is damaged or cannot be downloaded.
        """
        session = self.session
        remove = importlib.import_module("rembg").remove
        cut = remove(image.convert("RGBA"), session=session, alpha_matting=True)
        return np.asarray(cut.convert("RGBA"))

    @cached_property
    def session(self) -> Any:
        """The network of rembg, which downloads it if necessary."""
        if not has_rembg():
            raise InputError("removing a background needs rembg, which is not installed", hint=INSTALL_REMBG)
        rembg = importlib.import_module("rembg")
        try:
            return rembg.new_session(REMOVER)
        except Exception as error:  # errors of requests, pooch or onnxruntime, which may not be installed
            raise _no_model() from error


def has_rembg() -> bool:
    """Whether rembg and onnxruntime are installed."""
    return all(find_spec(name) for name in ("rembg", "onnxruntime"))


def remover_file() -> Path | None:
    """The file of rembg's model where rembg looks for it, or None."""
    return next((place for place in _model_places() if place.is_file()), None)


def ways() -> dict[str, str]:
    """For `doctor`: each way to cut out an object, with what is installed for it or how to install it."""
    model = remover_file()
    rembg = f"rembg {_version('rembg')}, model {model or f'{REMOVER_FILE} is downloaded when first needed'}"
    return {
        "alpha, plain border, --mask": "always",
        "--box": f"OpenCV {_version('opencv-python-headless')}" if find_spec("cv2") else INSTALL_PHOTOS,
        "--background remove": rembg if has_rembg() else INSTALL_REMBG,
        "HEIC": f"pi-heif {_version('pi-heif')}" if find_spec("pi_heif") else INSTALL_PHOTOS,
    }


def ways_out(picture: Picture) -> str:
    """A hint for pictures without an obvious background: the options to add to the command, and what each needs."""
    rows, columns = picture.rgb.shape[:2]
    box = f"--box {columns // 8} {rows // 8} {columns - columns // 8} {rows - rows // 8}"
    file = Path(picture.name)
    mask = f"--mask {file.stem}_mask.png" if file.suffix else "--mask FILE"
    opencv = "installed" if find_spec("cv2") else f"{INSTALL_PHOTOS} (Apache-2.0, 150 MB installed)"
    rembg = "installed" if has_rembg() else f"{INSTALL_REMBG} (MIT, 300 MB installed)"
    table = {
        mask: "a picture of the same size, white where the object is; needs nothing",
        box: f"the object's own box in pixels, x0 y0 x1 y1; OpenCV: {opencv}",
        "--background remove": f"rembg: {rembg}; its model {REMOVER} (Apache-2.0, {REMOVER_SIZE}) comes once",
        "--background keep": "the picture as it is, background and all; needs nothing",
    }
    width = max(map(len, table))
    lines = [f"  {flags:{width}}  {what}" for flags, what in table.items()]
    return "\n".join(
        ["add one of these to the command, or save the object with a transparent background", *lines]
    )


def cut_out(
    picture: Picture,
    background: str,
    notes: list[str],
    mask: Mask | np.ndarray | None = None,
    box: tuple[int, int, int, int] | None = None,
    remover: Remover | None = None,
) -> np.ndarray:
    """RGBA uint8 of the object, cut out by a mask or box if given, else as `background` says.

    "auto" uses the picture's own alpha, else a uniform or slowly varying background, else the remover. What was done is
    appended to `notes`. Raises InputError if the object cannot be cut out in this way.
    """
    if mask is not None:
        notes.append("cut out by the mask that was given")
        return np.dstack([picture.rgb, fitted_mask(picture, mask, notes)])
    if box is None and background in ("auto", "alpha") and picture.alpha is not None:
        return np.dstack([picture.rgb, picture.alpha])
    if background == "alpha":
        raise InputError(
            f"{picture.name} has no cut-out: its alpha is absent or opaque everywhere",
            hint="use --background auto, or save the object with a transparent background",
        )
    rgb = picture.rgb if picture.alpha is None else over_white(picture.rgb, picture.alpha)
    image = Image.fromarray(rgb)
    image.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE), Image.Resampling.LANCZOS)
    if box is not None:
        small = _scaled_box(picture, box, image.size)
        notes.append(f"cut out of the box {' '.join(map(str, box))} by GrabCut")
        return cut_by_box(np.asarray(image), small, picture.name)
    if background == "auto":
        if (keyed := key_border(np.asarray(image))) is not None:
            cutout, what = keyed
            notes.append(f"the background was keyed by {what} of the border")
            return cutout
        if not has_rembg():
            raise InputError(
                f"{picture.name} has neither an alpha channel nor a uniform border", hint=ways_out(picture)
            )
    cutout = (remover or Remover())(image)
    notes.append(f"the background was removed by rembg with its model {REMOVER}")
    return cutout


def fitted_mask(picture: Picture, mask: Mask | np.ndarray, notes: list[str]) -> np.ndarray:
    """A mask as alpha (h, w) uint8 of a picture; transparent parts of the picture stay transparent.

    A mask of another size is resized if it has the same aspect ratio. Nearly black and white become black and white.
    Raises InputError for another aspect ratio, or if the mask is all black or all white.
    """
    mask = mask if isinstance(mask, Mask) else Mask(mask)
    alpha = mask.coverage
    if alpha.ndim != 2 or alpha.dtype not in (np.uint8, np.bool_):
        raise InputError(f"a mask as an array is uint8 or bool (h, w), got {alpha.dtype} {alpha.shape}")
    if alpha.dtype == np.bool_:
        alpha = alpha * np.uint8(255)
    rows, columns = picture.rgb.shape[:2]
    size = f"{alpha.shape[1]}x{alpha.shape[0]}"
    if alpha.shape != (rows, columns):
        if abs(alpha.shape[1] * rows / (alpha.shape[0] * columns) - 1) > ASPECT_TOLERANCE:
            raise InputError(
                f"{mask.name} is {size} pixels, {picture.name} {columns}x{rows}",
                hint="a mask has the size of its picture, or at least its proportions",
            )
        notes.append(f"the mask was resized from {size} to {columns}x{rows}")
        alpha = np.asarray(Image.fromarray(alpha).resize((columns, rows), Image.Resampling.LANCZOS))
    alpha = np.where(alpha < MASK_NOISE, 0, np.where(alpha > 255 - MASK_NOISE, 255, alpha)).astype(np.uint8)
    if not alpha.any():
        raise InputError(f"{mask.name} is black everywhere: nothing is marked", hint="white marks the object")
    if (alpha == 255).all():
        raise InputError(
            f"{mask.name} is white everywhere, so nothing is cut out",
            hint="black marks the background; --background keep takes the picture as it is",
        )
    if np.median(_border(alpha)) > 127:
        notes.append("the mask is white along most of the border: white marks the object")
    return alpha if picture.alpha is None else np.minimum(alpha, picture.alpha)


def key_border(rgb: np.ndarray) -> tuple[np.ndarray, str] | None:
    """RGBA with a plain background made transparent, and a description of it; None if the background is not plain.

    A background is plain if the picture's border has one colour, or colours that vary slowly. It is the region of these
    colours that is connected to the border, so the same colour inside the object is kept. Along the edge, alpha and
    foreground colour are unmixed.
    """
    border = _border(rgb)
    color = np.median(border, axis=0)
    share = (np.abs(border - color).max(axis=-1) <= BORDER_TOLERANCE).mean()
    uniform = np.broadcast_to(color, rgb.shape) if share >= BORDER_SHARE else None
    what, background = "the uniform colour", uniform
    slow = _slow_background(rgb)
    if slow is not None and np.ptp(_border(slow), axis=0).max() > SLOW_RANGE:
        gain = 1.0
        if uniform is not None:
            slow_share = (np.abs(border - _border(slow)).max(axis=-1) <= BORDER_TOLERANCE).mean()
            area = _outside(rgb, slow).mean() - _outside(rgb, uniform).mean()
            gain = max(slow_share - share, area)
        if gain > SLOW_GAIN:
            what, background = "the slowly changing colours", slow
    return None if background is None else (_keyed(rgb, background), what)


def cut_by_box(rgb: np.ndarray, box: tuple[int, int, int, int], name: str = "the picture") -> np.ndarray:
    """RGBA uint8 of the object in a box x0, y0, x1, y1, segmented by OpenCV's GrabCut.

    Pieces much smaller than the largest one are dropped. Alpha along the edge is estimated from the colours on both
    sides. Raises InputError if OpenCV is not installed or no object is found.
    """
    if not find_spec("cv2"):
        raise InputError("--box needs OpenCV, which is not installed", hint=INSTALL_PHOTOS)
    from scipy import ndimage

    cv2 = importlib.import_module("cv2")
    x0, y0, x1, y1 = box
    label = np.full(rgb.shape[:2], cv2.GC_BGD, np.uint8)
    label[y0:y1, x0:x1] = cv2.GC_PR_FGD
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    cv2.setRNGSeed(0)
    cv2.grabCut(bgr, label, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
    pieces, count = ndimage.label(label == cv2.GC_PR_FGD, np.ones((3, 3)))
    if not count:
        raise InputError(
            f"no object is found in the box of {name}: the box looks like its surroundings",
            hint="draw the box closer around the object, or give a --mask",
        )
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    inside = (sizes >= PIECE_SHARE * sizes.max())[pieces]
    holes, _ = ndimage.label(~inside)
    inside |= (np.bincount(holes.ravel()) < HOLE_SHARE * inside.sum())[holes]
    return _soft_edge(rgb, inside)


def _border(values: np.ndarray) -> np.ndarray:
    """The outermost two rows and columns of (h, w, ...), as (n, ...); corners count twice."""
    rest = values.shape[2:]
    sides = (values[:2], values[-2:], values[:, 0], values[:, 1], values[:, -2], values[:, -1])
    return np.concatenate([side.reshape(-1, *rest) for side in sides])


def _slow_background(rgb: np.ndarray) -> np.ndarray | None:
    """A smooth background (h, w, 3) that fits most of the border, extrapolated inwards; None if none fits.

    A polynomial of degree 2 is fitted to the border. Then the region that matches it is added to the fit, which so
    follows gradients and vignettes into the picture.
    """
    border = np.zeros(rgb.shape[:2], bool)
    border[:2] = border[-2:] = border[:, :2] = border[:, -2:] = True
    model = _fitted(rgb, border, 2)
    if (np.abs(rgb - model).max(axis=-1)[border] <= BORDER_TOLERANCE).mean() < BORDER_SHARE:
        return None
    area = 0.0
    for degree in (3, 4, 4, 4, 4, 4, 4, 4):
        outside = _outside(rgb, model)
        if outside.mean() - area < 1e-3:
            break
        area = outside.mean()
        model = _fitted(rgb, outside, degree)
    return model


def _fitted(rgb: np.ndarray, where: np.ndarray, degree: int) -> np.ndarray:
    """A polynomial in x and y per channel, fitted to the marked pixels and evaluated everywhere (h, w, 3).

    A robust fit by iteratively reweighted least squares: outliers, such as an object at the border, are down-weighted
    beyond a scale that decreases from 96 to 4 levels.
    """
    rows, columns = where.shape
    y, x = (np.vander(np.linspace(-1, 1, side), degree + 1, increasing=True) for side in (rows, columns))
    chosen = np.flatnonzero(where)
    chosen = chosen[:: max(1, len(chosen) // 8000)]
    terms = np.array([(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]).T
    basis = y[chosen // columns][:, terms[0]] * x[chosen % columns][:, terms[1]]
    values = rgb.reshape(-1, 3)[chosen].astype(np.float64)
    weight = np.ones(len(chosen))
    for scale in (96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 4, 4, 4):
        weighted = (basis * weight[:, None]).T
        # A narrow frame does not determine all terms of degree 4: take the least-norm solution.
        factors = np.linalg.lstsq(weighted @ basis, weighted @ values, rcond=1e-9)[0]
        weight = 1 / (1 + (np.abs(values - basis @ factors).max(axis=-1) / scale) ** 2) ** 2
    table = np.zeros((degree + 1, degree + 1, 3))
    table[terms[0], terms[1]] = factors
    return np.stack([y @ table[..., channel] @ x.T for channel in range(3)], axis=-1)


def _outside(rgb: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The region with the colours of the background (h, w, 3) that is connected to the picture's border."""
    from scipy import ndimage

    # A frame of one background pixel connects regions that an object touching the border would separate.
    distance = np.abs(rgb - background).max(axis=-1)
    plain = np.pad(distance <= BORDER_TOLERANCE, 1, constant_values=True)
    labels = np.empty(plain.shape, np.int32)
    ndimage.label(plain, output=labels)
    return (labels == labels[0, 0])[1:-1, 1:-1]


def _keyed(rgb: np.ndarray, background: np.ndarray) -> np.ndarray:
    """RGBA with the background region, including dust in it, made transparent."""
    from scipy import ndimage

    outside = _outside(rgb, background)
    islands = np.empty(outside.shape, np.int32)
    ndimage.label(~outside, np.ones((3, 3)), output=islands)
    outside |= (np.bincount(islands.ravel()) < SPECK_SHARE * outside.size)[islands]
    rim = ~outside & ndimage.binary_dilation(outside, np.ones((3, 3)))
    alpha, unmixed = _unmix(rgb, background, rim)
    alpha[outside] = 0.0
    return np.dstack([unmixed, np.rint(alpha * 255).astype(np.uint8)])


def _unmix(rgb: np.ndarray, background: np.ndarray, rim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and uint8 colour with pixel = alpha * foreground + (1 - alpha) * background on the rim.

    The foreground colour is that of the pixel within 2 pixels that differs most from the background.
    """
    y, x = np.nonzero(rim)
    distance = np.abs(rgb - background).max(axis=-1)
    steps = np.stack(np.meshgrid(range(-2, 3), range(-2, 3)), axis=-1).reshape(-1, 2)
    near_y = np.clip(y[:, None] + steps[:, 1], 0, rim.shape[0] - 1)
    near_x = np.clip(x[:, None] + steps[:, 0], 0, rim.shape[1] - 1)
    farthest = distance[near_y, near_x].argmax(axis=1)[:, None]
    behind = background[y, x]
    foreground = rgb[near_y, near_x][np.arange(len(y))[:, None], farthest][:, 0] - behind
    pixel = rgb[y, x] - behind
    share = np.clip((pixel * foreground).sum(axis=1) / (foreground**2).sum(axis=1), 1 / 255, 1.0)
    alpha, color = np.ones(rim.shape), rgb.copy()
    alpha[y, x] = share
    color[y, x] = np.clip(np.rint(behind + pixel / share[:, None]), 0, 255)
    return alpha, color


def _soft_edge(rgb: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """RGBA uint8 with a soft edge two pixels wide, where alpha is the object's share of the pixel's colour.

    The colours of both sides are means over nearby pixels. Where these are similar, alpha is the blurred mask.
    """
    from scipy import ndimage

    cross = np.ones((3, 3))
    inner = ndimage.binary_erosion(inside, cross, border_value=1)
    outer = ~ndimage.binary_dilation(inside, cross)
    edge = ~(inner | outer)
    front, back = (_near_mean(rgb, side)[edge] for side in (inner, outer))
    apart = ((front - back) ** 2).sum(axis=-1)
    share = ((rgb[edge] - back) * (front - back)).sum(axis=-1) / np.maximum(apart, 1.0)
    smooth = ndimage.gaussian_filter(inside.astype(np.float64), 1.0, mode="nearest")[edge]
    trust = apart / (apart + 3 * 16.0**2)  # less where the two means differ by less than a texture may vary
    alpha, color = inner.astype(np.float64), rgb.copy()
    alpha[edge] = np.clip(trust * share + (1 - trust) * smooth, 0, 1)
    color[edge] = np.clip(np.rint(front), 0, 255)
    return np.dstack([color, np.rint(alpha * 255).astype(np.uint8)])


def _near_mean(rgb: np.ndarray, where: np.ndarray) -> np.ndarray:
    """At every pixel, the mean colour of nearby marked pixels; that of the nearest one if none is nearby."""
    from scipy import ndimage

    weight = ndimage.gaussian_filter(where.astype(np.float64), 2.0)
    sums = ndimage.gaussian_filter(np.where(where[..., None], rgb, 0.0), (2.0, 2.0, 0.0))
    nearest = ndimage.distance_transform_edt(~where, return_distances=False, return_indices=True)
    return np.where(weight[..., None] > 1e-3, sums / np.maximum(weight, 1e-3)[..., None], rgb[tuple(nearest)])


def _scaled_box(
    picture: Picture, box: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A box in pixels of the picture, scaled to its downscaled copy.

    Raises InputError for a box that is not inside the picture or covers all of it.
    """
    rows, columns = picture.rgb.shape[:2]
    if not (isinstance(box, (tuple, list, np.ndarray)) and len(box) == 4 and all(map(is_number, box))):
        raise InputError(f"a box is four numbers, x0 y0 x1 y1, got {reprlib.repr(box)}")
    x0, y0, x1, y1 = box
    given = " ".join(map(str, box))
    if not (0 <= x0 < x1 <= columns and 0 <= y0 < y1 <= rows):
        raise InputError(
            f"the box {given} does not lie in {picture.name}, which is {columns}x{rows} pixels",
            hint="x0 y0 x1 y1 in pixels of the upright picture, from its upper left corner",
        )
    scale = size[0] / columns
    left, top = int(x0 * scale), int(y0 * scale)
    right, bottom = min(size[0], int(np.ceil(x1 * scale))), min(size[1], int(np.ceil(y1 * scale)))
    if (right - left) * (bottom - top) > 0.99 * size[0] * size[1]:
        raise InputError(
            f"the box {given} is all of {picture.name}, {columns}x{rows} pixels",
            hint="what is outside the box shows what the background looks like: leave some, or give a --mask",
        )
    return left, top, right, bottom


def _model_places() -> list[Path]:
    """Paths where rembg looks for its model; the last one is known to all its versions."""
    data = os.environ.get("XDG_DATA_HOME")
    old = os.environ.get("U2NET_HOME") or (f"{data}/.u2net" if data else "~/.u2net")
    home = os.environ.get("REMBG_HOME") or (f"{data}/rembg" if data else "~/.rembg")
    new = os.environ.get("U2NET_HOME") or home
    return [Path(folder).expanduser() / REMOVER_FILE for folder in (f"{new}/models/{REMOVER}", old)]


def _no_model() -> WeightsError:
    """The error for a model of rembg that is damaged or cannot be downloaded."""
    found, place = remover_file(), _model_places()[-1]
    if found:
        return WeightsError(
            f"{found}, the model of rembg ({REMOVER_SIZE}), cannot be loaded: it may be damaged",
            hint=f"remove it and run again, or download it: {_download(found)}",
        )
    return WeightsError(
        f"the model of rembg, {REMOVER_FILE} ({REMOVER_SIZE}, Apache-2.0), is not in {place.parent}"
        " and cannot be downloaded from here",
        hint=f"where there is a network: {_download(place)}",
    )


def _download(place: Path) -> str:
    return f'curl -fL --create-dirs -o "{place}" {REMOVER_URL}'


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # the same OpenCV module comes in several packages
        return ""
