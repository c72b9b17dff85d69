"""Reading environment maps, in Radiance .hdr files or OpenEXR."""

from pathlib import Path

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.io.hdr import MAX_PIXELS, read_hdr
from sv3d_jax.io.reading import open_file, reading

EXR_START = bytes([0x76, 0x2F, 0x31, 0x01])
_DAMAGED = "is damaged: it cannot be read as an environment map"
REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""Chromaticities x, y of the primaries of sRGB, which OpenEXR files have if they do not name others."""


def read_environment(path: str | Path) -> np.ndarray:
    """Linear radiance, finite float32 (h w 3), top row first, of a Radiance .hdr or OpenEXR file.

    The format is told by the first bytes. Raises InputError for files that cannot be read rightly, and for OpenEXR
    where the optional package OpenEXR is not installed.
    """
    path = Path(path)
    with reading(path, _DAMAGED), open_file(path) as file:
        start = file.read(len(EXR_START))
    return _read_exr(path) if start == EXR_START else read_hdr(path)


def _read_exr(path: Path) -> np.ndarray:
    try:
        import OpenEXR
    except ImportError:
        raise InputError(
            f"{path} is an OpenEXR picture, which needs the package OpenEXR",
            hint='pip install "sv3d_jax[exr]", or convert it to .hdr, for example with oiiotool',
        ) from None
    with reading(path, _DAMAGED):
        file = OpenEXR.File(str(path), header_only=True)
        header, parts = file.header(), len(file.parts)
        windows = [np.asarray(header[name], np.int64) for name in ("dataWindow", "displayWindow")]
        primaries = np.asarray(header.get("chromaticities", REC709), np.float64).ravel()[:6]
    _check_header(path, windows, primaries, parts)
    with reading(path, _DAMAGED):
        channels = OpenEXR.File(str(path), separate_channels=True).channels()
        pixels = {name: channels[name].pixels for name in "RGB" if name in channels}
    if len(pixels) < 3:
        raise InputError(f"{path} has the channels {', '.join(channels)}; R, G and B are needed")
    planes = list(pixels.values())
    if len({plane.shape for plane in planes}) > 1 or any(plane.dtype.kind != "f" for plane in planes):
        raise InputError(
            f"{path} has channels of integers or of different sizes, floats of one size are read"
        )
    radiance = np.stack(planes, axis=-1).astype(np.float32)
    if not np.isfinite(radiance).all():
        raise InputError(f"{path} has values that are not finite")
    return radiance


def _check_header(path: Path, windows: list[np.ndarray], primaries: np.ndarray, parts: int) -> None:
    """Raise InputError for pictures that would be read wrongly; the windows (2 2) are first and last pixel x, y."""
    data, display = windows
    width, height = (int(side) for side in data[1] - data[0] + 1)
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise InputError(f"{path} has {width}x{height} pixels, at most {MAX_PIXELS} in all are read")
    if parts != 1 or (data != display).any():
        raise InputError(
            f"{path} has several parts, or is a crop of its picture", hint="save it as one whole picture"
        )
    if len(primaries) < 6 or not np.abs(primaries - REC709).max() <= 0.01:
        raise InputError(f"{path} has other primaries than sRGB", hint="convert it to linear sRGB")
