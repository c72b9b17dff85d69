"""Reading pictures of any common format as 8-bit sRGB with a separate alpha, and writing PNG."""

import importlib
import io
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from sv3d_jax.errors import InputError
from sv3d_jax.io.outputs import write_atomic
from sv3d_jax.io.reading import open_file, read_file, reading

MAX_PIXELS = 64_000_000
MAX_BYTES = 200_000_000
# Of all pictures of an orbit or a scene, with their alphas. Reading them takes up to 28 bytes a pixel: 11 GB.
MAX_TOTAL_PIXELS = 400_000_000
MIN_SIDE = 32
MAX_COUNTED_BYTES = (
    2_000_000  # of files whose frames are counted: GIF and TIFF state no number, a minute for 100 MB
)
_NO_PICTURE = "is not a picture that can be read"
# Largest difference between the channels of a grey picture that JPEG compression may cause.
_GREY_TOLERANCE = 24

_TIFF = "a TIFF that is damaged or of a kind that is not read (colours as floats or 32-bit numbers, say)"
_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"%pdf", "a PDF document"),
    (b"pk\x03\x04", "a zip archive"),
    (b"gltf", "a GLB mesh"),
    (b"%!ps", "a PostScript document"),
    (b"ii*\x00", _TIFF),
    (b"mm\x00*", _TIFF),
)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Values that may mean white: 1 (only for floats), then the largest of 8, 16, 24, 31 and 32 bits.
_WHITES = (1, 255, 65535, 2**24 - 1, 2**31 - 1, 2**32 - 1)
# None of these decoders runs another program. MPO files of phones are opened as JPEG.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA")
PICTURE_SUFFIXES = (
    ".png",
    ".webp",
    ".avif",
    ".tif",
    ".tiff",
    ".tga",
    ".jpg",
    ".jpeg",
    ".heic",
    ".heif",
    ".bmp",
)
PICTURE_SUFFIXES += (".gif", ".jp2", ".j2k", ".ppm", ".pgm")
"""Suffixes of pictures in a folder; those of formats with an alpha channel, which may be cut out, come first."""


@dataclass(frozen=True)
class Picture:
    """An 8-bit sRGB picture; alpha is None if the file has no transparency."""

    rgb: np.ndarray  # (h, w, 3) uint8, not multiplied by alpha
    alpha: np.ndarray | None = None  # (h, w) uint8
    notes: list[str] = field(default_factory=list)  # conversions that were made, for run.json
    name: str = "the picture"  # file name, for messages


@dataclass(frozen=True)
class Mask:
    """The object's coverage of a picture: 255 or True is object, 0 background, in between partly covered."""

    coverage: np.ndarray  # (h, w) uint8 or bool
    name: str = "the mask"  # file name, for messages


def read_picture(path: str | Path, min_side: int = MIN_SIDE, upright: bool = True) -> Picture:
    """Read a picture file; its size is checked before pixels are decoded.

    With `upright` the EXIF orientation is applied. An alpha that is 255 everywhere is dropped. Raises InputError if the
    file is missing, not a picture, too large, or smaller than `min_side`.
    """
    path = Path(path)
    with reading(path, _NO_PICTURE):
        data = read_file(path, MAX_BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this package's limits are below those of Pillow's warnings
        with reading(path, f"{_NO_PICTURE}: found {_describe(data)}", _hint(data)):
            try:
                image = _open(io.BytesIO(data))
            except Image.DecompressionBombError as cause:
                raise InputError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels") from cause
        with image:
            _check_size(path, image.size, min_side)
            article = "an" if image.format in ("AVIF", "MPO") else "a"
            hint = "it may be cut short: copy it again from where it came, or save it again"
            with reading(path, f"is {article} {image.format} file that is damaged", hint):
                decoded = _decoded(image, upright, len(data))
    return _converted(decoded, str(path))


def check_total_pixels(paths: Iterable[Path], whole: Path) -> None:
    """Raise InputError if the headers of pictures that are to be held at once declare too many pixels together.

    `whole` names what they belong to. Files that cannot be opened count nothing here; `read_picture` says why.
    """
    total = 0
    for path in paths:
        try:
            with warnings.catch_warnings(), open_file(path) as file:
                warnings.simplefilter("ignore")
                with _open(file) as image:
                    total += image.size[0] * image.size[1]
        except MemoryError:
            raise
        except Exception:  # decoders raise errors of any kind on damaged data
            continue
        if total > MAX_TOTAL_PIXELS:
            raise InputError(
                f"{whole}: its pictures have more than {MAX_TOTAL_PIXELS // 10**6} megapixels in all,"
                f" up to {path.name}",
                hint="make the pictures smaller, or use fewer",
            )


def require_readable(pictures: int, size: int, option: str) -> None:
    """Raise InputError, which begins with `option`, if so many square pictures would be too many pixels to read.

    `pictures` counts alphas in files of their own as well; `size` is the side.
    """
    if pictures * size**2 > MAX_TOTAL_PIXELS:
        raise InputError(
            f"{option}: {pictures} pictures of {size}x{size} are {pictures * size**2 / 1e6:.0f} megapixels,"
            f" and an orbit of more than {MAX_TOTAL_PIXELS // 10**6} is not read again",
            hint=f"--size {math.isqrt(MAX_TOTAL_PIXELS // pictures)} at most, or fewer --frames",
        )


def read_mask(path: str | Path, upright: bool = True) -> Mask:
    """Read a mask file: its alpha channel if it has one, else its grey values; white is object.

    Values of only 0 and 1 are taken as 0 and 255. `upright` as in `read_picture`. Raises InputError like
    `read_picture`, and for masks in colour.
    """
    picture = read_picture(path, min_side=1, upright=upright)
    if picture.alpha is not None:
        return Mask(picture.alpha, picture.name)
    if np.ptp(picture.rgb.astype(np.int16), axis=-1).max() > _GREY_TOLERANCE:
        raise InputError(
            f"{path} is in colour and has no alpha: a mask is grey, white where the object is",
            hint="save it in black and white, or the object with a transparent background",
        )
    grey = picture.rgb[..., 1]
    return Mask(grey * np.uint8(255) if grey.max() == 1 else grey, picture.name)


def masked(picture: Picture, mask_file: Path) -> Picture:
    """The picture with the mask in a file as its alpha, or the minimum of both if it has an alpha.

    EXIF orientation of the mask is not applied. Raises InputError for a mask of another size.
    """
    mask = read_mask(mask_file, upright=False).coverage
    if mask.shape != picture.rgb.shape[:2]:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, picture.rgb.shape)]
        raise InputError(f"{mask_file} has {sizes[0]} pixels, its picture has {sizes[1]}")
    return replace(picture, alpha=mask if picture.alpha is None else np.minimum(mask, picture.alpha))


def write_png(path: str | Path, array: np.ndarray) -> None:
    """Write uint8 (h, w), (h, w, 3) or (h, w, 4) as PNG, atomically. Raises InputError for other types of numbers."""
    if array.dtype != np.uint8:
        raise InputError(f"{path}: a picture is written from uint8, got {array.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def picture_of(image: Any, min_side: int = MIN_SIDE) -> Picture:
    """A picture as Python code has it: a path, a PIL image, an array (h, w, 3 or 4), uint8, or a `Picture`.

    Raises InputError for anything else, and for a file of fewer pixels than `min_side` a side.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, (str, os.PathLike)):
        return read_picture(image, min_side)
    if hasattr(image, "has_transparency_data"):  # a PIL image of any mode
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or not pixels.size:
        raise InputError(f"a picture as an array is uint8 (h, w, 3 or 4), got {pixels.dtype} {pixels.shape}")
    alpha = pixels[..., 3] if pixels.shape[2] == 4 and (pixels[..., 3] < 255).any() else None
    return Picture(pixels[..., :3], alpha)


def mask_of(mask: Any) -> Mask:
    """A mask as Python code has it: a path, a PIL image, an array (h, w), uint8 or bool, or a `Mask`."""
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, (str, os.PathLike)):
        return read_mask(mask)
    return Mask(np.asarray(mask.convert("L") if hasattr(mask, "convert") else mask))


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite 8-bit colours over white like the published preprocessing: in float64, then truncated to 8 bits.

    The order of operations, rgb * a + (1 - a), matters: others change about one byte in a thousand by one.
    """
    result = np.empty_like(rgb)
    for row, (colors, opacity) in enumerate(zip(rgb, alpha, strict=True)):  # row by row, to save memory
        weight = (opacity / 255.0)[:, None]
        result[row] = ((colors / 255.0 * weight + (1.0 - weight)) * 255.0).astype(np.uint8)
    return result


def _open(file: BinaryIO) -> Image.Image:
    """Open a picture without decoding its pixels.

    HEIC is read by pi-heif's class directly: registering it with Pillow would affect other users of Pillow.
    """
    try:
        return Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        if not (_is_heic(file.read(12)) and find_spec("pi_heif")):
            raise
        file.seek(0)
        return importlib.import_module("pi_heif").HeifImageFile(file)


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


def _hint(data: bytes) -> str:
    if _is_heic(data) and not find_spec("pi_heif"):
        return 'pip install "sv3d_jax[photos]" to read HEIC (pi-heif), or save it as JPEG or PNG'
    return "PNG, JPEG, WebP, AVIF, TIFF, GIF and BMP are read"


def _check_size(path: Path, size: tuple[int, int], min_side: int) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path} has {width}x{height} = {width * height / 1e6:.0f} megapixels,"
            f" the limit is {MAX_PIXELS // 10**6}",
            hint="make the picture smaller; the model sees at most 576x576 of it",
        )
    if min(size) < min_side:
        raise InputError(f"{path} has {width}x{height} pixels, at least {min_side}x{min_side} are needed")


def _describe(data: bytes) -> str:
    if not data:
        return "an empty file"
    start = data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<?xml") and b"<svg" in start:
        return "an SVG drawing"
    if _is_heic(data):
        return "a HEIC picture"
    for signature, name in _SIGNATURES:
        if start.startswith(signature):
            return name
    if all(byte >= 9 for byte in data[:200]):
        return f"text that begins with {data[:24].decode(errors='replace')!r}"
    return f"{len(data)} bytes that begin with {data[:8].hex(' ')}"


class _Decoded(NamedTuple):
    """A picture as Pillow decodes it."""

    image: Image.Image  # 8-bit sRGB, or grey of more bits
    alpha: Image.Image | None  # of 8 bits
    grey: str  # which numbers stand for grey of more bits: 16-bit, signed 16-bit, unsigned 32-bit, 32-bit or float
    notes: list[str]


def _decoded(image: Any, upright: bool, size: int) -> _Decoded:
    """Decode any Pillow mode; apply the EXIF orientation if `upright`. `size` is in bytes."""
    notes: list[str] = []
    file = image
    if image.format == "HEIF" and image.n_frames > 1:
        notes.append(f"the main one of its {image.n_frames} pictures is used")
    elif image.format != "MPO" and getattr(image, "is_animated", False):
        first = f"first of {image.n_frames} frames" if size <= MAX_COUNTED_BYTES else "first frame"
        notes.append(f"animated: the {first} is used")
        image.seek(0)
    image.load()
    profile = image.info.get("icc_profile")
    if upright and image.getexif().get(0x0112, 1) != 1:
        notes.append("turned upright as its EXIF orientation says")
        image = ImageOps.exif_transpose(image)

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _Decoded(image, None, _grey_kind(image.mode, file), notes)
    if image.mode not in ("RGB", "RGBA"):
        notes.append(f"converted from {image.mode} to 8-bit RGB")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    return _Decoded(_to_srgb(image, profile, notes), alpha, "", notes)


def _grey_kind(mode: str, file: Any) -> str:
    """What the numbers of a grey picture of more than 8 bits are, as `_Decoded.grey`."""
    if mode == "F":
        return "float"
    if mode.startswith("I;16") or file.format != "TIFF":
        return "16-bit"
    tags = getattr(file, "tag_v2", {})
    if tags.get(258) == (16,):
        return "signed 16-bit"
    return "unsigned 32-bit" if set(tags.get(339, (1,))) == {1} else "32-bit"


def _converted(decoded: _Decoded, name: str) -> Picture:
    """The picture of a file with this name, without an alpha that is opaque everywhere."""
    if decoded.grey:
        grey, note = _grey_8bit(decoded.image, decoded.grey)
        return Picture(np.repeat(grey[..., None], 3, axis=2), None, [*decoded.notes, note], name)
    alpha, notes = decoded.alpha, decoded.notes
    if alpha is not None and alpha.getextrema() == (255, 255):
        notes, alpha = [*notes, "an alpha channel that is opaque everywhere is ignored"], None
    return Picture(np.asarray(decoded.image), None if alpha is None else np.asarray(alpha), notes, name)


def _grey_8bit(image: Image.Image, kind: str) -> tuple[np.ndarray, str]:
    """8-bit levels of grey with more than 8 bits, which Pillow's own conversion would clip.

    16-bit values use their full range. 32-bit integers and floats do not state which value is white: it is taken as the
    smallest of the usual values that is not below the largest value of the picture. Also returns a note on it.
    """
    values = np.asarray(image, np.float64)
    if kind == "16-bit":
        return np.clip(np.rint(values / 257.0), 0, 255).astype(np.uint8), "16-bit grey scaled to 8 bits"
    whites = _WHITES[1:]
    if kind == "float":
        whites = _WHITES
        values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=0.0)
        # Bright highlights of a picture in 0 to 1; a picture in 0 to 255 is not that dark.
        if 1 < values.max() <= 2:
            values = np.minimum(values, 1.0)
    elif kind == "signed 16-bit":
        whites = 255, 2**15 - 1
    elif kind == "unsigned 32-bit":
        values = values % 2.0**32  # unsigned numbers, which Pillow reads as signed
    highest = values[np.isfinite(values)].max(initial=0.0)
    white = next((white for white in whites if highest <= white), highest)
    note = f"{kind.removeprefix('unsigned ')} grey: 0 is taken as black, {white:.10g} as white"
    return np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8), note


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """8-bit RGB without alpha, converted by the file's ICC profile if it has a usable one."""
    source = image
    if source.mode in ("P", "PA", "RGBA", "RGBa", "1", "La"):
        source = source.convert("RGBA").convert("RGB")
    elif source.mode == "LA":
        source = source.convert("L")
    if profile and source.mode in ("RGB", "CMYK", "L", "LAB"):
        try:
            transform = ImageCms.buildTransform(
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                source.mode,
                "RGB",
            )
            converted = transform.apply(source)
        except (ImageCms.PyCMSError, OSError):
            notes.append("its ICC profile cannot be applied and is ignored")
        else:
            notes.append("colours converted to sRGB by its ICC profile")
            return converted
    return source.convert("RGB")
