"""Pictures on surfaces, as mesh files hold them: raw values, without a look at colour profiles or orientation."""

import io
import warnings
from typing import Any

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.io.surfaces import Source

MAX_DECODED_PIXELS, MAX_DECODED_SIDE = 8192**2, 16384
MAX_KEPT_PIXELS, MAX_KEPT_SIDE = 4096**2, 8192  # of one picture; larger ones are reduced
MAX_ATLAS_PIXELS = 4 * MAX_KEPT_PIXELS  # of all pictures of a file
_STRIP = 256  # rows that are converted at once

# What cannot be decoded, by how it begins.
_FOREIGN = (
    (b"\xabKTX 20\xbb\r\n\x1a\n", "KTX2"),
    (b"\xabKTX 11\xbb\r\n\x1a\n", "KTX"),
    (b"DDS ", "DDS"),
    (b"sB", "Basis Universal"),
)
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "TGA", "PPM")


def decode_picture(data: bytes, name: str, source: Source, among: int = 1) -> np.ndarray:
    """A picture as uint8 `h w 3`, or `h w 4` where it has an alpha; reduced if it is large.

    Of one picture 4096x4096 texels are kept, of more than four, `among` so many, their share of four times that; and
    8192 along a side. `name` stands for it in messages. Raises InputError for what is no picture, and for more than
    8192x8192 texels or 16384 along a side.
    """
    from PIL import Image

    for start, form in _FOREIGN:
        if data.startswith(start):
            raise InputError(f"{name} is a {form} picture, which is not read", hint="use PNG, JPEG or WebP")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit below is lower than those that Pillow warns at
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise InputError(f"{name} has more than {MAX_DECODED_PIXELS} pixels") from None
    except MemoryError:
        raise
    except Exception:  # each decoder has errors of its own
        raise InputError(f"{name} is no picture that can be read", hint="use PNG, JPEG or WebP") from None
    with image:
        width, height = image.size
        if width * height > MAX_DECODED_PIXELS or max(width, height) > MAX_DECODED_SIDE:
            limits = f"{MAX_DECODED_PIXELS} in all or {MAX_DECODED_SIDE} along a side"
            raise InputError(f"{name} has {width}x{height} pixels, more than {limits}")
        kept = min(MAX_KEPT_PIXELS, MAX_ATLAS_PIXELS // among)
        factor = int(np.ceil(np.sqrt(width * height / kept)))
        down, across = (min(max(factor, -(-side // MAX_KEPT_SIDE)), side) for side in (height, width))
        if max(down, across) > 1:
            smaller = f"{width // across}x{height // down}"
            source.remark(f"{name}: {width}x{height} texels are reduced to {smaller}")
        try:
            image.draft("RGB", (width // across, height // down))  # a JPEG is decoded at an eighth to a half
            image.load()
            scale = image.size[0] / width
            return _pixels(image, *(max(1, round(factor * scale)) for factor in (down, across)))
        except MemoryError:
            raise
        except Exception:
            raise InputError(f"{name} is a {image.format} picture that is damaged") from None


def reduced(picture: np.ndarray, down: int, across: int) -> np.ndarray:
    """The means of so many texels down and across; what is left over at the right and the bottom goes."""
    height, width = picture.shape[0] // down, picture.shape[1] // across
    cut = picture[: height * down, : width * across]
    blocks = cut.reshape(height, down, width, across, -1)
    return np.rint(blocks.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)


def _pixels(image: Any, down: int, across: int) -> np.ndarray:
    """uint8 texels, made strip by strip: Pillow's own conversion would take four bytes for every texel."""
    has_alpha = image.has_transparency_data
    width, height = image.size[0] // across, image.size[1] // down
    pixels = np.empty((height, width, 4 if has_alpha else 3), np.uint8)
    rows = max(1, _STRIP // down)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image.crop((0, top * down, image.size[0], bottom * down))
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            strip = np.repeat(_grey(strip)[..., None], 3, axis=2)
        else:
            strip = np.asarray(strip.convert("RGBA" if has_alpha else "RGB"))
        pixels[top:bottom] = strip if down == across == 1 else reduced(strip, down, across)
    return pixels


def _grey(strip: Any) -> np.ndarray:
    """Grey of 16 bits; Pillow's own conversion would clip it to black and white."""
    values = np.asarray(strip, np.float64) * (255.0 if strip.mode == "F" else 1 / 257.0)
    return np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8)
