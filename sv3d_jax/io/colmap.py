"""Reading COLMAP models (cameras and images, as text or binary) with their pictures."""

import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sv3d_jax.cameras.pose import quaternion_rotations, rigid_pose
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.images import check_total_pixels, masked, read_picture
from sv3d_jax.io.lens import MODELS, Lens, PosedPicture
from sv3d_jax.io.names import exists, named_file
from sv3d_jax.io.reading import read_file, reading

# Where the model may lie in the folder of a scene.
MODEL_FOLDERS = ("sparse/0", "sparse", ".", "colmap/sparse/0")
# Camera models of the binary format, by their id: name and number of parameters.
MODEL_IDS = (
    *(
        (name, len(MODELS[name]))
        for name in ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
    ),
    *((name, len(MODELS[name])) for name in ("OPENCV_FISHEYE", "FULL_OPENCV")),
    ("FOV", 5),
    *((name, len(MODELS[name])) for name in ("SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    ("SIMPLE_DIVISION", 4),
    ("DIVISION", 5),
    *((name, len(MODELS[name])) for name in ("SIMPLE_FISHEYE", "FISHEYE")),
    ("EUCM", 6),
    ("EQUIRECTANGULAR", 2),
)
MAX_BYTES = 1 << 30
_DAMAGED, _HINT = (
    "is no part of a COLMAP model that can be read",
    "export the model again: colmap model_converter",
)
OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # COLMAP's cameras look along +z with y down


class _Image(NamedTuple):
    name: str
    camera: int
    quaternion: tuple[float, ...]  # w x y z, camera from world
    translation: tuple[float, ...]


def find_colmap(folder: Path) -> Path | None:
    """The folder of the COLMAP model in the folder of a scene; None if there is none."""
    for place in MODEL_FOLDERS:
        model = folder / place
        if any(
            exists(model / f"cameras{end}") and exists(model / f"images{end}") for end in (".txt", ".bin")
        ):
            return model
    return None


def read_colmap(model: Path) -> tuple[list[PosedPicture], list[str]]:
    """The views of a model sorted by name (numbers in names by value), and messages about images without a picture.

    Pictures are searched in a folder `images` next to the model or above it, masks in `masks/NAME.png`, as in COLMAP.
    Raises InputError for files that cannot be read and CameraError for invalid cameras.
    """
    end = ".txt" if exists(model / "cameras.txt") and exists(model / "images.txt") else ".bin"
    read_lenses, read_images = (
        (_text_lenses, _text_images) if end == ".txt" else (_binary_lenses, _binary_images)
    )
    cameras, file = model / f"cameras{end}", model / f"images{end}"
    with reading(cameras, _DAMAGED, _HINT):
        lenses = _by_id(read_lenses(cameras), cameras)
    with reading(file, _DAMAGED, _HINT):
        images = sorted(read_images(file), key=lambda image: _natural(image.name))
    if not images:
        raise InputError(f"{file} holds no image")
    for image, following in pairwise(images):
        if image.name == following.name:
            raise InputError(f"{file} names the image {image.name} twice", hint=_HINT)
    poses = [_pose(image, f"{file}: {image.name}") for image in images]
    scene, folder = _picture_folder(model, [image.name for image in images], str(file))
    kept: list[tuple[_Image, np.ndarray, list[Path]]] = []  # with picture and mask
    absent = []
    for image, pose in zip(images, poses, strict=True):
        where = f"{file}: {image.name}"
        if image.camera not in lenses:
            raise CameraError(f"{where} has camera {image.camera}, which {cameras} does not know")
        if exists(path := named_file(folder, image.name, where, within=scene)):
            kept.append((image, pose, [path, *_mask(folder, image.name, where)]))
        else:
            absent.append(f"{where}: {folder / image.name} does not exist")
    check_total_pixels([path for _, _, paths in kept for path in paths], file)
    views = []
    for image, pose, (path, *mask) in kept:
        picture = read_picture(path, min_side=1, upright=False)
        picture = masked(picture, mask[0]) if mask else picture
        height, width = picture.rgb.shape[:2]
        lens = lenses[image.camera].fitted(width, height, f"{file}: {image.name}")
        views.append(PosedPicture(image.name, picture, pose, lens, [path, *mask]))
    return views, absent


def _by_id(lenses: Iterator[tuple[int, Lens]], file: Path) -> dict[int, Lens]:
    found: dict[int, Lens] = {}
    for camera, lens in lenses:
        if found.setdefault(camera, lens) is not lens:
            raise CameraError(f"{file} has two cameras with the id {camera}", hint=_HINT)
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which view 2 comes before view 10; numbers are compared by length, then digit by digit."""
    parts = re.split(r"([0-9]+)", name)  # text and numbers in turn
    parts[1::2] = [number.lstrip("0") for number in parts[1::2]]
    return [(len(part) if index % 2 else 0, part) for index, part in enumerate(parts)]


def _pose(image: _Image, where: str) -> np.ndarray:
    quaternion = np.array(image.quaternion)
    length = np.linalg.norm(quaternion)
    if not 0.5 < length < 2 or not np.isfinite(image.translation).all():
        raise CameraError(f"{where}: its rotation must be a quaternion of length 1, and its position finite")
    rotation = quaternion_rotations(quaternion / length)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ image.translation
    return rigid_pose(pose @ OPENGL_FROM_OPENCV, where)


def _picture_folder(model: Path, names: list[str], where: str) -> tuple[Path, Path]:
    """The folder of the scene, and that of its pictures: `images` next to the model or above it, or what holds it."""
    bases = [model.absolute(), model.absolute().parent]
    while bases[-1].name in ("sparse", "colmap"):
        bases.append(bases[-1].parent)
    for place in (place for base in bases for place in (base / "images", base)):
        if any(exists(named_file(place, name, f"{where}: {name}", within=bases[-1])) for name in names):
            return bases[-1], place
    looked = ", ".join(str(base / "images") for base in bases)
    raise InputError(f"{where} names {names[0]}, and none of its pictures lies in {looked}")


def _mask(folder: Path, name: str, where: str) -> list[Path]:
    """The mask of a picture, if it has one: in `masks` beside the folder of the pictures."""
    names = f"{name}.png", str(Path(name).with_suffix(".png"))
    found = [named_file(folder.parent / "masks", mask, where, within=folder.parent) for mask in names]
    return [path for path in found if exists(path)][:1]


def _text_lenses(file: Path) -> Iterator[tuple[int, Lens]]:
    for number, line in _lines(file):
        words, where = line.split(), f"{file} line {number}"
        if not words or words[0].startswith("#"):
            continue
        try:
            camera, model, width, height, *numbers = words
            values = [float(word) for word in numbers]
            size = float(int(width)), float(int(height))
            yield int(camera), _lens(model, size, values, where)
        except (ValueError, OverflowError) as cause:
            raise CameraError(
                f"{where}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS, got {line.strip()[:80]!r}"
            ) from cause


def _text_images(file: Path) -> Iterator[_Image]:
    lines = iter(_lines(file))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.strip().split(maxsplit=9)
        try:
            numbers = [float(word) for word in words[1:8]]
            image = _Image(words[9], int(words[8]), tuple(numbers[:4]), tuple(numbers[4:]))
        except (ValueError, IndexError) as cause:
            raise CameraError(
                f"{file} line {number}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME,"
                f" got {line.strip()[:80]!r}"
            ) from cause
        number, points = next(lines, (number, ""))
        if len(points.split()) % 3:
            raise CameraError(
                f"{file} line {number}: expected the points of {image.name} as X Y POINT3D_ID, or an empty line",
                hint="every image has two lines",
            )
        yield image


def _lines(file: Path) -> list[tuple[int, str]]:
    text = read_file(file, MAX_BYTES).decode("utf-8-sig", "surrogateescape")
    return list(enumerate(re.split("\r\n?|\n", text), start=1))


def _lens(model: str, size: tuple[float, float], values: list[float], where: str) -> Lens:
    if model not in MODELS:  # `undistorted` refuses it by name
        return Lens((1.0, 1.0), (0.0, 0.0), size, model)
    if len(values) != len(MODELS[model]):
        raise CameraError(
            f"{where}: a {model} camera has {len(MODELS[model])} parameters"
            f" ({', '.join(MODELS[model])}), got {len(values)}"
        )
    given = dict(zip(MODELS[model], values, strict=True))
    focal = (given.pop("f"),) * 2 if "f" in given else (given.pop("fl_x"), given.pop("fl_y"))
    return Lens(focal, (given.pop("cx"), given.pop("cy")), size, model, given)


def _binary_lenses(file: Path) -> Iterator[tuple[int, Lens]]:
    data = _Bytes(file)
    (count,) = data.take("Q")
    for _ in range(count):
        camera, number, width, height = data.take("IiQQ")
        if not 0 <= number < len(MODEL_IDS):
            raise CameraError(
                f"{file}: camera {camera} has the model number {number}, which is not known",
                hint="colmap model_converter --output_type TXT writes models by name",
            )
        model, length = MODEL_IDS[number]
        yield camera, _lens(model, (width, height), list(data.take(f"{length}d")), f"{file}: camera {camera}")


def _binary_images(file: Path) -> Iterator[_Image]:
    data = _Bytes(file)
    (count,) = data.take("Q")
    for _ in range(count):
        _, *numbers, camera = data.take("I7dI")
        name = data.text()
        (points,) = data.take("Q")
        data.skip(24 * points)
        yield _Image(name, camera, tuple(numbers[:4]), tuple(numbers[4:]))


class _Bytes:
    """Reads little-endian values from a file, one after the other."""

    def __init__(self, file: Path):
        self.file, self.data, self.place = file, read_file(file, MAX_BYTES), 0

    def take(self, kinds: str) -> tuple:
        """The next values, by struct's format characters."""
        start = self.place
        self.skip(struct.calcsize(f"<{kinds}"))
        return struct.unpack_from(f"<{kinds}", self.data, start)

    def text(self) -> str:
        """The next null-terminated string."""
        end = self.data.find(b"\0", self.place)
        if end < 0:
            raise self._cut_short()
        text = self.data[self.place : end].decode("utf-8", errors="surrogateescape")
        self.place = end + 1
        return text

    def skip(self, count: int) -> None:
        """Skip bytes."""
        if self.place + count > len(self.data):
            raise self._cut_short()
        self.place += count

    def _cut_short(self) -> InputError:
        return InputError(
            f"{self.file} is cut short or no COLMAP model: it has {len(self.data)} bytes and should have more"
        )
