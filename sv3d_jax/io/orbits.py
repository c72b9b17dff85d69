"""Orbit folders: the frames of an orbit as PNG files, with their cameras in cameras.json.

Every command that makes views writes such a folder, and every command that uses views reads one. A frame is stored
either with its own alpha channel, or composited over white with its alpha in a second, grey picture ("alpha_file").
Frames of the second kind can be shown and fed to a model as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.errors import InputError
from sv3d_jax.io.cameras_file import (
    CAMERAS_FILE,
    FrameCameras,
    alpha_file,
    frame_cameras,
    frame_file,
    read_camera_path,
    read_folder_cameras,
    write_cameras,
)
from sv3d_jax.io.documents import read_json
from sv3d_jax.io.images import (
    check_total_pixels,
    mask_of,
    over_white,
    picture_of,
    read_picture,
    write_png,
)
from sv3d_jax.io.inline import picture_html
from sv3d_jax.io.names import exists, not_leading_out, outside_reason
from sv3d_jax.io.outputs import RUN_FILE, check_finite, refuse_links
from sv3d_jax.io.video import contact_sheet

INPUT_FILE = "input.png"  # the picture as the model saw it
NOT_WHITE = 8  # 8-bit levels below white from which a pixel counts as object
MAX_CONTRADICTION = 1e-3  # largest share of a frame's pixels that may be object where its alpha is 0


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OrbitFrames(FrameCameras):
    """Views of one object with their cameras."""

    images: np.ndarray  # (f, h, w, 3) float32 in [0, 1], over white
    alphas: np.ndarray | None  # (f, h, w) float32 in [0, 1]; None if no frame has an alpha
    files: list[str]  # of the frames, relative to the folder

    @classmethod
    def from_views(
        cls,
        images: Sequence[Any] | np.ndarray,
        cameras: CameraPath,
        masks: Sequence[Any] | np.ndarray | None = None,
    ) -> "OrbitFrames":
        """Views of one's own: pictures of one size and, in the same order, their cameras.

        images: paths, PIL images or arrays (h, w, 3 or 4), uint8, or float in [0, 1]; those with alpha are composited
        over white. masks: where the object is in each picture, in place of alpha: paths, PIL images or arrays (h, w),
        uint8, bool, or float in [0, 1]. Raises InputError for what does not fit together.
        """
        if not isinstance(cameras, CameraPath):
            raise InputError(
                f"cameras must be a CameraPath, got {type(cameras).__name__}",
                hint="CameraPath(azimuths_deg, elevations_deg, radius, fov_deg); poses of other kinds are read from"
                " files by read_views: cameras.json, transforms.json or COLMAP's",
            )
        masks = [None] * len(images) if masks is None else masks
        for what, given in {"images": images, "masks": masks}.items():
            if len(given) != len(cameras):
                raise InputError(f"got {len(given)} {what} for {len(cameras)} cameras")
        views = [_view(*pair, index) for index, pair in enumerate(zip(images, masks, strict=True))]
        for index, view in enumerate(views):
            if view.rgb.shape != views[0].rgb.shape:
                sizes = [f"{rgb.shape[1]}x{rgb.shape[0]}" for rgb in (view.rgb, views[0].rgb)]
                raise InputError(f"images[{index}] has {sizes[0]} pixels, images[0] has {sizes[1]}")
        pictures, alphas = stack_frames(views)
        focal, center = intrinsics(cameras.fov_deg, pictures.shape[1:3])
        return cls(
            images=pictures,
            alphas=alphas,
            camera_to_world=cameras.camera_to_world,
            focal_px=np.tile(focal, (len(views), 1)),
            center_px=np.tile(center, (len(views), 1)),
            azimuths_deg=cameras.azimuths_deg,
            elevations_deg=cameras.elevations_deg,
            radius=cameras.radius,
            input_frame=cameras.input_frame,
            fov_deg=cameras.fov_deg,
            object_to_world=None,
            files=[f"frame {index}" for index in range(len(views))],
        )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width = self.images.shape[1:3]
        alpha = "without alpha" if self.alphas is None else "with alpha"
        return f"OrbitFrames({len(self)} views of {width}x{height}, {alpha}, input frame {self.input_frame})"

    def _repr_html_(self) -> str:
        labels = [f"{index}" for index in range(len(self))]
        return picture_html(contact_sheet(np.round(255 * self.images).astype(np.uint8), labels), repr(self))


class Frame(NamedTuple):
    """One view as stored in its files."""

    rgb: np.ndarray  # (h, w, 3) uint8, over white
    alpha: np.ndarray | None  # (h, w) uint8


def _view(image: Any, mask: Any, index: int) -> Frame:
    """One of the views that Python code gives. Raises InputError, which names it."""
    name = f"images[{index}]"
    try:
        picture = picture_of(_in_8_bits(image), min_side=1)
        name = name if mask is None else f"masks[{index}]"
        alpha = picture.alpha if mask is None else mask_of(_in_8_bits(mask)).coverage
    except InputError as error:
        raise InputError(f"{name}: {error.message}", error.hint) from error
    if alpha is None:
        return Frame(picture.rgb, None)
    alpha = np.uint8(255) * alpha if alpha.dtype == bool else alpha
    if alpha.dtype != np.uint8 or alpha.shape != picture.rgb.shape[:2]:
        height, width = picture.rgb.shape[:2]
        raise InputError(
            f"{name} must be uint8 ({height}, {width}) as its picture, got {alpha.dtype} {alpha.shape}"
        )
    return Frame(over_white(picture.rgb, alpha), alpha)


def _in_8_bits(pixels: Any) -> Any:
    """Floats in [0, 1] as uint8; anything else as it is."""
    if not hasattr(pixels, "dtype") or np.asarray(pixels).dtype.kind != "f":
        return pixels
    values = np.asarray(pixels)
    if not (np.isfinite(values).all() and 0 <= values.min() and values.max() <= 1):
        raise InputError("holds floats outside [0, 1], or such that are not finite")
    return np.round(255 * values).astype(np.uint8)


def write_orbit(
    directory: str | Path,
    images: np.ndarray,
    cameras: CameraPath,
    object_to_world: np.ndarray | None = None,
    alphas: np.ndarray | None = None,
    lenses: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[str]:
    """Write uint8 frames (f, h, w, 3 or 4) and then cameras.json into a folder, which is created if necessary.

    `alphas` (f, h, w), uint8, are those of frames (f, h, w, 3) that are composited over white. `lenses` are focal
    lengths and principal points in pixels (f, 2); they are written for each frame unless they follow from the path's
    field of view. Returns the names of the files. Raises InputError where the shapes do not fit each other, and
    SV3DError for numbers that are not finite.
    """
    if len(images) != len(cameras):
        raise InputError(f"got {len(images)} images for {len(cameras)} cameras")
    if alphas is not None and (images.shape[-1] != 3 or alphas.shape != images.shape[:3]):
        raise InputError(
            f"alphas of shape {alphas.shape} do not fit frames of shape {images.shape}",
            hint="frames (f, h, w, 3) over white have alphas (f, h, w); frames (f, h, w, 4) have their own",
        )
    for name, values in {"object_to_world": object_to_world, "lenses": lenses}.items():
        if values is not None:
            check_finite(np.asarray(values, np.float64), f"{directory} is not written: rows of {name}")
    refuse_links(directory, {Path(name).parts[0] for name in (frame_file(0), alpha_file(0))})
    pictures = {frame_file(index): image for index, image in enumerate(images)}
    masks = {alpha_file(index): alpha for index, alpha in enumerate(() if alphas is None else alphas)}
    for name, picture in (pictures | masks).items():
        write_png(Path(directory) / name, picture)
    write_cameras(
        Path(directory) / CAMERAS_FILE,
        cameras,
        object_to_world=object_to_world,
        alpha_files=list(masks) or None,
        lenses=None if lenses is None else _lens_entries(*lenses, cameras.fov_deg, images.shape[1:3]),
    )
    return [*pictures, *masks, CAMERAS_FILE]


def _lens_entries(
    focal_px: np.ndarray, center_px: np.ndarray, fov_deg: float, size: tuple[int, int]
) -> list[dict[str, float]] | None:
    """Entries of each frame for its focal lengths and principal point; None if they follow from the field of view."""
    plain = intrinsics(fov_deg, size)
    if np.allclose(focal_px, plain[0], rtol=1e-9) and np.allclose(center_px, plain[1], rtol=1e-9):
        return None
    names = "fl_x", "fl_y", "cx", "cy"
    values = np.concatenate([focal_px, center_px], axis=1).tolist()
    return [dict(zip(names, row, strict=True)) | {"width": size[1], "height": size[0]} for row in values]


def read_orbit(directory: str | Path) -> OrbitFrames:
    """Read an orbit folder: any number of views of one size, any rigid poses, any intrinsics.

    A frame's pose is its camera_to_world, or else follows from azimuth_deg, elevation_deg and radius; where both are
    given and differ, a CameraWarning says so and the matrix is used. Frames with an alpha channel are composited over
    white. If alphas are files of their own, every frame must have one. Raises InputError and CameraError, which name
    the file.
    """
    directory = Path(directory)
    document = read_folder_cameras(directory)
    frames = document["frames"]
    files = [_frame_path(directory, frame, index) for index, frame in enumerate(frames)]
    alpha_files = [_alpha_path(directory, frame, index) for index, frame in enumerate(frames)]
    for kind, names in {"frames": files, "alphas": [file for file in alpha_files if file]}.items():
        absent = [file for file in names if not exists(directory / file)]
        if absent:
            raise InputError(
                f"{directory / absent[0]} does not exist",
                hint=f"{CAMERAS_FILE} names {len(absent)} of {len(names)} {kind} that are not there",
            )
    if any(alpha_files) and not all(alpha_files):
        index = alpha_files.index(None)
        raise InputError(
            f"{directory / CAMERAS_FILE}: frames[{index}] has no alpha_file, others have one",
            hint="every frame needs one, or none",
        )
    check_total_pixels([directory / file for file in (*files, *filter(None, alpha_files))], directory)
    images, alphas = _stacked(directory, frames)
    cameras = frame_cameras(document, directory / CAMERAS_FILE, *images.shape[1:3])
    return OrbitFrames(images=images, alphas=alphas, files=files, **vars(cameras))


def load_orbit(directory: Path) -> tuple[np.ndarray, CameraPath, np.ndarray | None, int | None]:
    """What `Orbit.save` wrote into a folder: frames (f, h, w, 3), uint8, their cameras, the input picture and the seed.

    The picture or the seed are None where the folder does not hold them.
    """
    read = read_orbit(directory)
    cameras = read_camera_path(directory)
    if read.fov_deg is not None and read.radius is not None:
        cameras = replace(cameras, fov_deg=read.fov_deg, radius=read.radius)
    picture = directory / INPUT_FILE
    pixels = read_picture(picture, min_side=1).rgb if picture.exists() else None
    return np.round(255 * read.images).astype(np.uint8), cameras, pixels, _sampling_seed(directory)


def _sampling_seed(directory: Path) -> int | None:
    """The seed with which the `sv3d` command sampled the orbit in a folder."""
    path = directory / RUN_FILE
    config = read_json(path).get("config", {}) if path.exists() else {}
    return config.get("seed") if config.get("verb") in ("orbit", "generate") else None


def read_frame(directory: Path, frame: dict[str, Any], index: int) -> Frame:
    """Read one frame of a cameras.json: its colours over white, and its alpha if it has one.

    Raises InputError, which names the file, where the picture or its alpha is missing or damaged, lies outside the
    folder, or where the two do not fit each other.
    """
    path = directory / _frame_path(directory, frame, index)
    name = _alpha_path(directory, frame, index)
    picture = read_picture(path, min_side=1)
    if name is None:
        alpha = picture.alpha
        return Frame(picture.rgb if alpha is None else over_white(picture.rgb, alpha), alpha)
    if picture.alpha is not None:
        raise InputError(
            f"{path} has an alpha channel, and also the alpha_file {name}",
            hint=f"leave alpha_file out of frames[{index}] of {CAMERAS_FILE}, or give the frame over white",
        )
    alpha = _read_alpha(directory / name)
    if alpha.shape != picture.rgb.shape[:2]:
        sizes = [f"{width}x{height}" for height, width in (alpha.shape, picture.rgb.shape[:2])]
        raise InputError(f"{directory / name} has {sizes[0]} pixels, {path.name} has {sizes[1]}")
    if ((alpha == 0) & (picture.rgb.min(axis=-1) < 255 - NOT_WHITE)).mean() > MAX_CONTRADICTION:
        raise InputError(
            f"{directory / name} is 0 where {path.name} is not white",
            hint=f"frames with an alpha_file are composited over white; is it the alpha of frames[{index}]?",
        )
    return Frame(picture.rgb, alpha)


def stack_frames(views: list[Frame]) -> tuple[np.ndarray, np.ndarray | None]:
    """Images (f, h, w, 3) and alphas (f, h, w) in [0, 1] of frames of one size.

    Frames without alpha count as opaque; alphas are None if no frame has one.
    """
    images = _scaled([view.rgb for view in views])
    if all(view.alpha is None for view in views):
        return images, None
    opaque = np.full(images.shape[1:3], 255, np.uint8)
    return images, _scaled([opaque if view.alpha is None else view.alpha for view in views])


def _scaled(arrays: list[np.ndarray]) -> np.ndarray:
    """8-bit arrays of one shape in one float32 array in [0, 1], without a copy of all of them in between."""
    scaled = np.empty((len(arrays), *arrays[0].shape), np.float32)
    for row, array in zip(scaled, arrays, strict=True):
        row[...] = array
        row /= 255
    return scaled


def _frame_path(directory: Path, frame: dict[str, Any], index: int) -> str:
    file = frame.get("file")
    if not isinstance(file, str) or not file:
        raise InputError(f'{directory / CAMERAS_FILE}: frames[{index}] has no "file"')
    _check_inside(directory, file, f"frames[{index}]")
    return file


def _alpha_path(directory: Path, frame: dict[str, Any], index: int) -> str | None:
    file = frame.get("alpha_file")
    if file is None:
        return None
    if not isinstance(file, str) or not file:
        raise InputError(
            f"{directory / CAMERAS_FILE}: frames[{index}].alpha_file must be a file's name, got {file!r}"
        )
    _check_inside(directory, file, f"frames[{index}].alpha_file")
    return file


def _check_inside(directory: Path, file: str, where: str) -> None:
    if outside_reason(file):
        raise InputError(f"{directory / CAMERAS_FILE}: {where} lies outside the folder: {file}")
    if Path(file).name in ("", ".."):
        raise InputError(f"{directory / CAMERAS_FILE}: {where} names a folder, a file is needed: {file}")
    not_leading_out(directory / file, directory, f"{directory / CAMERAS_FILE}: {where}")


def _read_alpha(path: Path) -> np.ndarray:
    """Read the grey picture (h, w) that holds a frame's alpha."""
    picture = read_picture(path, min_side=1)
    if picture.alpha is not None or (picture.rgb != picture.rgb[..., :1]).any():
        raise InputError(
            f"{path} is not an alpha: it has colours or is transparent itself",
            hint="an alpha_file is a grey picture: 0 where there is background, 255 where there is object",
        )
    return picture.rgb[..., 0]


def _stacked(directory: Path, frames: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray | None]:
    views = [read_frame(directory, frame, index) for index, frame in enumerate(frames)]
    for frame, view in zip(frames, views, strict=True):
        if view.rgb.shape != views[0].rgb.shape:
            sizes = [f"{v.rgb.shape[1]}x{v.rgb.shape[0]}" for v in (view, views[0])]
            raise InputError(
                f"{directory / frame['file']} has {sizes[0]} pixels, {frames[0]['file']} has {sizes[1]}"
            )
    return stack_frames(views)
