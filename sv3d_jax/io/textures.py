"""Textures of mesh files, decoded as they are stored: colour profiles and EXIF orientation are ignored."""

import io
import warnings
from typing import Any

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.io.reading import reading
from sv3d_jax.io.surfaces import Source

MAX_DECODED_PIXELS, MAX_DECODED_SIDE = 8192**2, 16384
MAX_KEPT_PIXELS, MAX_KEPT_SIDE = 4096**2, 8192  # of one texture; larger ones are downscaled
MAX_ATLAS_PIXELS = 4 * MAX_KEPT_PIXELS  # of all textures of a file together
MAX_DECODED_IN_ALL = 32 * MAX_DECODED_PIXELS  # of all textures of a file: minutes, most of them JPEG or PNG
_STRIP = 256  # rows converted at a time

# Formats that are not supported, by their first bytes.
_FOREIGN = (
    (b"\xabKTX 20\xbb\r\n\x1a\n", "KTX2"),
    (b"\xabKTX 11\xbb\r\n\x1a\n", "KTX"),
    (b"DDS ", "DDS"),
    (b"sB", "Basis Universal"),
)
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "TGA", "PPM")


def decode_picture(data: bytes, name: str, source: Source, among: int = 1) -> np.ndarray:
    """Decode a texture to uint8 (h w 3), or (h w 4) if it has an alpha; large ones are downscaled with a remark.

    At most 4096x4096 texels are kept, or, of more than four textures (`among`), an equal share of four times as many;
    at most 8192 along a side. `name` is for messages. Raises InputError for data that is no supported picture, and for
    more than 8192x8192 texels or 16384 along a side, and for more than 32 times as many in all textures of a file.
    """
    from PIL import Image

    for start, form in _FOREIGN:
        if data.startswith(start):
            raise InputError(f"{name} is a {form} picture, which is not read", hint="use PNG, JPEG or WebP")
    with warnings.catch_warnings(), reading(name, "is no picture that can be read", "use PNG, JPEG or WebP"):
        warnings.simplefilter("ignore")  # the limit below is lower than that of Pillow's warnings
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as cause:
            raise InputError(f"{name} has more than {MAX_DECODED_PIXELS} pixels") from cause
    with image:
        width, height = image.size
        if width * height > MAX_DECODED_PIXELS or max(width, height) > MAX_DECODED_SIDE:
            limits = f"{MAX_DECODED_PIXELS} in all or {MAX_DECODED_SIDE} along a side"
            raise InputError(f"{name} has {width}x{height} pixels, more than {limits}")
        source.decoded_pixels += width * height
        if source.decoded_pixels > MAX_DECODED_IN_ALL:
            raise InputError(
                f"its textures have {source.decoded_pixels} pixels up to {name}, more than {MAX_DECODED_IN_ALL}",
                hint="make the textures smaller",
            )
        kept = min(MAX_KEPT_PIXELS, MAX_ATLAS_PIXELS // among)
        factor = int(np.ceil(np.sqrt(width * height / kept)))
        down, across = (min(max(factor, -(-side // MAX_KEPT_SIDE)), side) for side in (height, width))
        if max(down, across) > 1:
            smaller = f"{width // across}x{height // down}"
            source.remark(f"{name}: {width}x{height} texels are downscaled to {smaller}")
        with reading(name, f"is a {image.format} picture that is damaged"):
            # JPEG can be decoded at 1/2 to 1/8 of its size.
            image.draft("RGB", (width // across, height // down))
            image.load()
            scale = image.size[0] / width
            return _pixels(image, *(max(1, round(factor * scale)) for factor in (down, across)))


def reduced(picture: np.ndarray, down: int, across: int) -> np.ndarray:
    """Means over blocks of `down` x `across` texels; incomplete blocks at the right and bottom are dropped."""
    height, width = picture.shape[0] // down, picture.shape[1] // across
    cut = picture[: height * down, : width * across]
    blocks = cut.reshape(height, down, width, across, -1)
    return np.rint(blocks.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)


def _pixels(image: Any, down: int, across: int) -> np.ndarray:
    """uint8 texels, downscaled. Converted strip by strip, because Pillow takes four bytes per texel for the whole."""
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
    """8-bit levels of 16-bit or float grey, which Pillow's own conversion would clip."""
    values = np.asarray(strip, np.float64) * (255.0 if strip.mode == "F" else 1 / 257.0)
    return np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8)
