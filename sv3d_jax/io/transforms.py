"""Reading transforms.json with its pictures: NeRF's synthetic scenes, BlenderNeRF, instant-ngp, nerfstudio."""

import math
import reprlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.cameras.orbit import CameraWarning
from sv3d_jax.cameras.pose import finite_number, number_matrix, rigid_pose
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.documents import read_frames
from sv3d_jax.io.images import check_total_pixels, masked, read_picture
from sv3d_jax.io.lens import Lens, PosedPicture
from sv3d_jax.io.names import AbsentFile, exists, named_file, not_leading_out

# In order of preference; only one is read, the others usually hold views for testing.
TRANSFORMS_FILES = ("transforms.json", "transforms_train.json", "transforms_test.json", "transforms_val.json")
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")
CLIMB = 1  # folders up that names may lead: instant-ngp writes ../images/0001.jpg
EQUIRECTANGULAR = ("is_equirectangular", "equirectangular", "latlong")  # flags of such panoramas
SAME_FOCAL = 1e-3  # relative difference from which two focal lengths contradict each other
TERMS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "p3", "p4")
# Further coefficients of Metashape, OpenCV and instant-ngp's ftheta lenses; refused if not zero.
OTHER_TERMS = ("b1", "b2", "s1", "s2", "s3", "s4", "sx1", "sy1", "skew", *(f"ftheta_p{i}" for i in range(5)))


def read_transforms(path: Path) -> tuple[list[PosedPicture], list[str]]:
    """The views of a transforms.json in the order of the file, and messages about frames without a picture.

    Intrinsics of a frame take precedence over those of the whole file, focal lengths in pixels over angles; a
    CameraWarning names values that contradict each other. Poses already include nerfstudio's applied_transform. Raises
    InputError for files that cannot be read and CameraError for invalid cameras.
    """
    document = read_frames(path)
    frames = document["frames"]
    poses = [_pose(frame, f"{path}: frames[{index}]") for index, frame in enumerate(frames)]
    files: dict[int, list[Path]] = {}
    views, absent, contradictions = [], [], []
    for index, frame in enumerate(frames):
        try:
            files[index] = _files(path.parent, frame, f"{path}: frames[{index}]")
        except AbsentFile as error:
            absent.append(error.message)
    check_total_pixels([file for both in files.values() for file in both], path)
    for index, (file, *mask) in files.items():
        frame, pose, where = frames[index], poses[index], f"{path}: frames[{index}]"
        picture = read_picture(file, min_side=1, upright=False)
        picture = masked(picture, mask[0]) if mask else picture
        height, width = picture.rgb.shape[:2]
        lens, contradiction = _lens(document, frame, width, height, where)
        if contradiction:
            contradictions.append(f"frames[{index}]: {contradiction}")
        fitted = lens.fitted(width, height, where)
        views.append(PosedPicture(f"frames[{index}]", picture, pose, fitted, files[index]))
    if contradictions:
        others = f", and so in {len(contradictions) - 1} more" if len(contradictions) > 1 else ""
        warnings.warn(f"{path}: {contradictions[0]}{others}", CameraWarning, stacklevel=2)
    return views, absent


def _pose(frame: dict[str, Any], where: str) -> np.ndarray:
    """World-from-camera matrix (4, 4). As in this package, cameras look along -z with y up."""
    if frame.get("transform_matrix") is None:
        raise CameraError(f"{where} needs a transform_matrix of 4x4 numbers")
    where = f"{where}: transform_matrix"
    return rigid_pose(number_matrix(frame["transform_matrix"], where), where)


def _files(folder: Path, frame: dict[str, Any], where: str) -> list[Path]:
    """The picture of a frame, and its mask if it has one. Raises AbsentFile if there is no picture."""
    picture = _file(folder, frame, "file_path", where)
    if frame.get("mask_path") is None:
        return [picture]
    try:
        return [picture, _file(folder, frame, "mask_path", where)]
    except AbsentFile as error:  # a frame without its mask must not be used
        raise InputError(error.message) from error


def _file(folder: Path, frame: dict[str, Any], key: str, where: str) -> Path:
    name = frame.get(key)
    if not isinstance(name, str) or not name:
        raise InputError(f'{where} has no "{key}"')
    path = named_file(folder, name, f"{where}: {key}", CLIMB)
    for suffix in SUFFIXES:
        if exists(found := path.with_name(path.name + suffix)):
            return not_leading_out(found, folder.joinpath(*[".."] * CLIMB), f"{where}: {key}")
    raise AbsentFile(f"{where}: {path} does not exist, nor does it with .png, .jpg, .jpeg or .webp")


def _lens(document, frame, width: int, height: int, where: str) -> tuple[Lens, str | None]:
    """The lens of a frame, and a message if other values contradict those that are used."""
    levels = [(frame, "the frame's"), (document, "the file's")]

    def number(name: str) -> float | None:
        return next(
            (value for level, _ in levels if (value := _number(level, name, where)) is not None), None
        )

    size = _or(number("w"), width), _or(number("h"), height)
    if min(size) < 1:
        raise CameraError(f"{where}: w and h must be positive, got {size[0]:g} and {size[1]:g}")
    across = _focal_lengths(levels, "x", size[0], where)
    down = _focal_lengths(levels, "y", size[1], where)
    if not across and not down:
        raise CameraError(
            f"{where} has no focal length",
            hint="fl_x (pixels) or camera_angle_x (radians) is needed, in the frame or for the whole file",
        )
    # If the frame gives one focal length, the other is not taken from the file, which may be for another lens.
    nearest = min(claim[0] for claim in across + down)
    own_across, own_down = ([claim for claim in of if claim[0] == nearest] for of in (across, down))
    taken = (own_across or own_down)[0], (own_down or own_across)[0]
    contradiction = _contradiction(across, taken[0], size[0]) or _contradiction(down, taken[1], size[1])
    center = _or(number("cx"), size[0] / 2), _or(number("cy"), size[1] / 2)
    terms = {name: _or(number(name), 0.0) for name in TERMS + OTHER_TERMS}
    lens = Lens((taken[0][2], taken[1][2]), center, size, _model(levels, where), terms)
    return lens, contradiction


Claim = tuple[int, str, float]  # level, name, focal length in pixels


def _focal_lengths(levels, axis: str, extent: float, where: str) -> list[Claim]:
    """All values that a frame and its file give for one focal length, in order of precedence."""
    claims = []
    for level, (record, owner) in enumerate(levels):
        names = f"fl_{axis}", f"camera_angle_{axis}", f"{axis}_fov"
        for name, of_angle in zip(names, (None, 1.0, math.pi / 180), strict=True):
            value = _number(record, name, where)
            if value is None or (of_angle is None and value == 0):
                continue
            if of_angle is not None:
                if not 0 < value * of_angle < math.pi:
                    unit = "radians, pi" if of_angle == 1.0 else "degrees, 180"
                    raise CameraError(
                        f"{where}: {name} must lie between 0 and a half turn ({unit}), got {value:g}"
                    )
                value = 0.5 * extent / math.tan(value * of_angle / 2)
            claims.append((level, f"{owner} {name}", value))
    return claims


def _contradiction(claims: list[Claim], taken: Claim, extent: float) -> str | None:
    for _, name, focal in claims:
        if abs(focal - taken[2]) > SAME_FOCAL * abs(taken[2]):
            angles = [math.degrees(2 * math.atan(0.5 * extent / value)) for value in (taken[2], focal)]
            return (
                f"{taken[1]} says {angles[0]:.4g} degrees ({taken[2]:.5g} pixels) and is taken,"
                f" {name} says {angles[1]:.4g} degrees ({focal:.5g} pixels)"
            )
    return None


def _model(levels, where: str) -> str:
    def given(name: str) -> Any:
        return next((record[name] for record, _ in levels if record.get(name) is not None), None)

    name = given("camera_model")
    if name is not None and not isinstance(name, str):
        raise CameraError(f"{where}: camera_model must be a name, got {name!r}")
    model = (name or "OPENCV").upper()
    flags = {name: _flag(given(name), f"{where}: {name}") for name in (*EQUIRECTANGULAR, "is_fisheye")}
    if any(flags[name] for name in EQUIRECTANGULAR):
        return "EQUIRECTANGULAR"
    return "OPENCV_FISHEYE" if flags["is_fisheye"] and not model.endswith("FISHEYE") else model


def _flag(value: Any, where: str) -> bool:
    if isinstance(value, (bool, int, type(None))) and value in (True, False, None):  # 1 and 0 equal them
        return bool(value)
    raise CameraError(f"{where} must be true or false, got {reprlib.repr(value)}")


def _number(record: dict[str, Any], name: str, where: str) -> float | None:
    return None if record.get(name) is None else finite_number(record[name], f"{where}: {name}")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
