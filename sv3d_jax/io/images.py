"""Pictures in and out: any common file to 8-bit sRGB with a separate alpha, arrays to PNG."""

import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from sv3d_jax.errors import InputError
from sv3d_jax.io.outputs import write_atomic

MAX_PIXELS = 64_000_000
MAX_BYTES = 200_000_000
MIN_SIDE = 32

_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"%pdf", "a PDF document"),
    (b"pk\x03\x04", "a zip archive"),
    (b"gltf", "a GLB mesh"),
    (b"%!ps", "a PostScript document"),
)
# None of these readers starts a program. A phone's MPO file is opened as JPEG.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA")


@dataclass(frozen=True)
class Picture:
    """An upright 8-bit sRGB picture; alpha is None where the file carries no cut-out."""

    rgb: np.ndarray  # (h, w, 3) uint8, not multiplied by alpha
    alpha: np.ndarray | None = None  # (h, w) uint8
    notes: list[str] = field(default_factory=list)  # what was converted on the way, for run.json


def read_picture(path: str | Path, min_side: int = MIN_SIDE) -> Picture:
    """Decode a picture file; sizes are checked before any pixel is.

    Raises InputError for what is missing, is no picture, is too large, or is smaller than `min_side`. An alpha
    that is 255 everywhere says nothing and is dropped.
    """
    path = Path(path)
    data = _read_bytes(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limits are lower than those that Pillow warns at
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError:
            raise InputError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels") from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
            raise InputError(
                f"{path} is not a picture that can be read: found {_describe(data)}",
                hint="PNG, JPEG, WebP, AVIF, TIFF, GIF and BMP are read",
            ) from None
        with image:
            _check_size(path, image.size, min_side)
            try:
                return _convert(image)
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise InputError(f"{path} is a {image.format} file that cannot be decoded: {error}") from None


def write_png(path: str | Path, array: np.ndarray) -> None:
    """Write uint8 (h, w), (h, w, 3) or (h, w, 4) as PNG, in one piece or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite 8-bit colours over white as the published preparation does: float64, then truncated to 8 bits.

    The grouping rgb * a + (1 - a) matters: any other changes about one byte in a thousand by one.
    """
    result = np.empty_like(rgb)
    for row, (colors, opacity) in enumerate(zip(rgb, alpha, strict=True)):  # by rows, as float64 takes room
        weight = (opacity / 255.0)[:, None]
        result[row] = ((colors / 255.0 * weight + (1.0 - weight)) * 255.0).astype(np.uint8)
    return result


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, a picture file is needed")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path} has {size / 1e6:.0f} MB, the limit is {MAX_BYTES // 10**6} MB")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


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
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "a HEIC picture"
    for signature, name in _SIGNATURES:
        if start.startswith(signature):
            return name
    if all(byte >= 9 for byte in data[:200]):
        return f"text that begins with {data[:24].decode(errors='replace')!r}"
    return f"{len(data)} bytes that begin with {data[:8].hex(' ')}"


def _convert(image: Image.Image) -> Picture:
    """Any Pillow mode to upright 8-bit sRGB and alpha."""
    notes = []
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and image.format != "MPO":
        notes.append(f"animated: the first of {num_frames} frames is used")
        image.seek(0)
    image.load()
    profile = image.info.get("icc_profile")
    if image.getexif().get(0x0112, 1) != 1:
        notes.append("turned upright as its EXIF orientation says")
        image = ImageOps.exif_transpose(image)

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Picture(np.repeat(_grey_8bit(image, notes)[..., None], 3, axis=2), None, notes)
    if image.mode not in ("RGB", "RGBA"):
        notes.append(f"converted from {image.mode} to 8-bit RGB")
    has_alpha = image.has_transparency_data
    alpha = np.asarray(image.convert("RGBA"))[..., 3] if has_alpha else None
    if alpha is not None and (alpha == 255).all():
        notes.append("an alpha channel that is opaque everywhere is ignored")
        alpha = None
    return Picture(np.asarray(_to_srgb(image, profile, notes)), alpha, notes)


def _grey_8bit(image: Image.Image, notes: list[str]) -> np.ndarray:
    """Grey of more than 8 bits; Pillow's own conversion would clip it to black and white."""
    values = np.asarray(image, np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values)
        white = 1.0 if values.max() <= 1.0 else 255.0
        notes.append(f"float grey: 0 is taken as black, {white:g} as white")
        scaled = values * (255.0 / white)
    else:
        notes.append("16-bit grey scaled to 8 bits")
        scaled = values / 257.0
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """8-bit RGB without alpha; colours go through the file's ICC profile if it has a usable one."""
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
