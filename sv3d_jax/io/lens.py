"""Camera models of COLMAP, nerfstudio and instant-ngp, and undistortion of their pictures to pinhole cameras.

The pixel in row i, column j has its centre at (j + 0.5, i + 0.5), in these programs as in this package.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.cameras.pose import check_lens
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.images import Picture

# Parameters in COLMAP's order; f is both focal lengths.
MODELS = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fl_x", "fl_y", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "OPENCV_FISHEYE": ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4"),
    "SIMPLE_RADIAL_FISHEYE": ("f", "cx", "cy", "k1"),
    "RADIAL_FISHEYE": ("f", "cx", "cy", "k1", "k2"),
    "SIMPLE_FISHEYE": ("f", "cx", "cy"),
    "FISHEYE": ("fl_x", "fl_y", "cx", "cy"),
}
TERMS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # in OpenCV's order
FISHEYE_TERMS = ("k1", "k2", "k3", "k4")
FAR_OUTSIDE = -1e4  # a coordinate outside any picture
# Of real lenses, coefficients grow with the power of the focal length that they belong to: a few thousand for a
# telephoto. Powers of larger ones overflow.
MAX_TERM = 1e9
LEAST_SHOWN = (
    0.1  # of an undistorted picture's pixels must lie in the original; below, the coefficients are wrong
)


@dataclass(frozen=True)
class PosedPicture:
    """A picture with the camera pose and lens that another program's file gives for it."""

    name: str  # for messages
    picture: Picture
    camera_to_world: np.ndarray  # (4, 4), camera x right, y up, looking along -z; in the file's own world
    lens: "Lens"  # for the size of the stored picture
    files: list[Path]  # the picture, and its mask if it has one


@dataclass(frozen=True)
class Lens:
    """Intrinsics of a camera: how it maps directions to pixels."""

    focal_px: tuple[float, float]
    center_px: tuple[float, float]
    size: tuple[float, float]  # width and height of the picture that the intrinsics are for
    model: str = "PINHOLE"  # other names than those of MODELS are refused by `undistorted`
    # Distortion coefficients by name; absent ones are 0.
    terms: dict[str, float] = field(default_factory=dict)

    @property
    def is_fisheye(self) -> bool:
        """Whether the model is a fisheye."""
        return self.model.endswith("FISHEYE")

    @property
    def distortion(self) -> str | None:
        """For messages: the model if it is a fisheye or unknown, and the coefficients that are not 0; else None."""
        named = [f"{name} = {value:g}" for name, value in self.terms.items() if value]
        if self.is_fisheye or self.model not in MODELS:
            named.insert(0, self.model)
        return ", ".join(named) or None

    def fitted(self, width: int, height: int, where: str) -> "Lens":
        """The lens scaled to the size of the stored picture.

        Raises CameraError if the picture has another aspect ratio, or for impossible intrinsics.
        """
        numbers = [*self.focal_px, *self.center_px, *self.size]
        if not np.isfinite(numbers).all() or min(*self.focal_px, *self.size) <= 0:
            raise CameraError(
                f"{where}: focal lengths and sizes must be positive and finite, got focal lengths"
                f" {self.focal_px[0]:g}, {self.focal_px[1]:g} and {self.size[0]:g}x{self.size[1]:g} pixels"
            )
        scale = np.array([width / self.size[0], height / self.size[1]])
        rounding = 1.0 / min(width, height, *self.size)
        if abs(scale[0] / scale[1] - 1.0) > rounding + 1e-9:
            raise CameraError(
                f"{where}: its camera is for {self.size[0]:g}x{self.size[1]:g} pixels,"
                f" the picture has {width}x{height}",
                hint="was the picture turned or cropped after its camera was found?",
            )
        check_lens(self.focal_px, self.center_px, self.size, where)
        focal, center = np.array(self.focal_px) * scale, np.array(self.center_px) * scale
        return replace(self, focal_px=tuple(focal), center_px=tuple(center), size=(width, height))


def undistorted(picture: Picture, lens: Lens, where: str) -> Picture:
    """The picture resampled to a pinhole camera with the lens' focal lengths and principal point, at the same size.

    Where the original shows nothing, the result is transparent, or white if it has no alpha. Raises CameraError, which
    names the coefficients, if the model is not in MODELS or does not have these coefficients, if they are larger than
    `MAX_TERM` or leave less than `LEAST_SHOWN` of the picture, or if OpenCV is not installed.
    """
    if lens.distortion is None:
        return picture
    _check_terms(lens, where)
    try:
        import cv2
    except ImportError:
        raise CameraError(
            f"{where}: the lens distorts, {lens.distortion}, and OpenCV, which undistorts it, is not installed",
            hint='pip install "sv3d_jax[photos]", or undistort the pictures first (colmap image_undistorter)',
        ) from None
    try:
        sources = _sources(cv2, lens)
        _check_shown(sources, lens, where)
        if picture.alpha is None:
            rgb = _remapped(cv2, picture.rgb, sources, 255)
            return replace(picture, rgb=rgb)
        share = picture.alpha[..., None].astype(np.float32) / 255.0
        covered = _remapped(cv2, np.dstack([picture.rgb * share, share]), sources, 0)
    except cv2.error as error:
        raise InputError(f"{where}: OpenCV cannot undo {lens.distortion}: {error.err}") from error
    alpha = np.rint(255.0 * covered[..., 3]).astype(np.uint8)
    rgb = covered[..., :3] / np.maximum(covered[..., 3:], 1e-6)
    rgb = np.where(alpha[..., None] > 0, np.clip(np.rint(rgb), 0, 255), 0).astype(np.uint8)
    return replace(picture, rgb=rgb, alpha=alpha)


def _check_terms(lens: Lens, where: str) -> None:
    if lens.model not in MODELS:
        raise CameraError(
            f"{where}: the camera model {lens.model} is not known",
            hint=f"known: {', '.join(MODELS)}; colmap image_undistorter makes pinholes of others",
        )
    known = FISHEYE_TERMS if lens.is_fisheye else TERMS if lens.model == "FULL_OPENCV" else TERMS[:5]
    for name, value in lens.terms.items():
        if value and name not in known:
            raise CameraError(
                f"{where}: {name} = {value:g} is no coefficient of the camera model {lens.model}",
                hint=f"its coefficients are {', '.join(known)}; FULL_OPENCV has {', '.join(TERMS)}",
            )
        if not abs(value) <= MAX_TERM:  # also refuses NaN
            raise CameraError(
                f"{where}: {name} must lie between {-MAX_TERM:g} and {MAX_TERM:g}, got {value:g}"
            )


def _check_shown(sources: tuple[np.ndarray, np.ndarray], lens: Lens, where: str) -> None:
    """Raise CameraError if hardly any pixel of the result lies in the original."""
    shown = np.ones(sources[0].shape, bool)
    for places, size in zip(sources, lens.size, strict=True):
        shown &= (places >= -0.5) & (places <= size - 0.5)
    if (share := float(shown.mean())) < LEAST_SHOWN:
        raise CameraError(
            f"{where}: undistorted by {lens.distortion}, its picture would show {share:.2%} of what it covers, at"
            f" least {LEAST_SHOWN:.0%} are needed",
            hint="are these the lens' coefficients, in the order and units of this camera model?",
        )


def _sources(cv2: Any, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Column and row in the original for each pixel of the result; in OpenCV's convention, centres at integers."""
    focal, center = np.array(lens.focal_px), np.array(lens.center_px) - 0.5
    matrix = np.array([[focal[0], 0.0, center[0]], [0.0, focal[1], center[1]], [0.0, 0.0, 1.0]])
    size = int(lens.size[0]), int(lens.size[1])
    names = FISHEYE_TERMS if lens.is_fisheye else TERMS
    terms = np.array([lens.terms.get(name, 0.0) for name in names])
    make = cv2.fisheye.initUndistortRectifyMap if lens.is_fisheye else cv2.initUndistortRectifyMap
    columns, rows = make(matrix, terms, np.eye(3), matrix, size, cv2.CV_32FC1)
    radius = np.hypot(
        (np.arange(size[0]) - center[0]) / focal[0], ((np.arange(size[1]) - center[1]) / focal[1])[:, None]
    )
    beyond = radius >= _fold_radius(lens, terms, float(radius.max()))
    return np.where(beyond, np.float32(FAR_OUTSIDE), columns), np.where(beyond, np.float32(FAR_OUTSIDE), rows)


def _fold_radius(lens: Lens, terms: np.ndarray, reach: float) -> float:
    """Tangent of the angle to the optical axis where the distortion stops growing, infinity if it never does.

    Beyond that angle the model maps different directions to the same pixel.
    """
    tangent = np.linspace(0.0, reach, 4097)
    if lens.is_fisheye:
        angle = np.arctan(tangent)
        k1, k2, k3, k4 = terms
        distorted = angle * (1 + k1 * angle**2 + k2 * angle**4 + k3 * angle**6 + k4 * angle**8)
    else:
        k1, k2, _, _, k3, k4, k5, k6 = terms
        square = tangent**2
        above = 1 + k1 * square + k2 * square**2 + k3 * square**3
        below = 1 + k4 * square + k5 * square**2 + k6 * square**3
        distorted = np.where(below > 0, tangent * above / np.where(below > 0, below, 1.0), -1.0)
    folds = np.flatnonzero(np.diff(distorted) <= 0)
    return float(tangent[folds[0]]) if len(folds) else np.inf


def _remapped(cv2: Any, array: np.ndarray, sources: tuple[np.ndarray, np.ndarray], border: float):
    return cv2.remap(
        array, *sources, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(border,) * 4
    )
