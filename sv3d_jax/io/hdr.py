"""Reading environment maps in Radiance .hdr files."""

import re
from pathlib import Path

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.io.reading import read_file, reading

MAX_BYTES = 1 << 30
MAX_HEADER = 1 << 16
MAX_SIDE = 1 << 15
MAX_PIXELS = 1 << 27  # 16384 x 8192
RUN_LENGTHS = range(8, 1 << 15)
"""Lengths of the lines that can be run-length encoded by channel."""
REPEAT = bytes([1, 1, 1])
"""Mantissas of the pixel that repeats the one before it, in the older run-length encoding."""
_RESOLUTION = re.compile(r"([+-])([XY]) +([0-9]{1,9}) +([+-])(?!\2)([XY]) +([0-9]{1,9})\s*", re.A)


def read_hdr(path: str | Path) -> np.ndarray:
    """Radiance, float32 (h w 3), of an RGBE file: top row first, finite, of at most 2e38.

    Lines may be plain or in either run-length encoding, and in any order of the axes. EXPOSURE, a factor of the whole
    picture, is not divided out. Raises InputError for files that are damaged, or not in RGB.
    """
    path = Path(path)
    with reading(path, "is no picture"):
        data = read_file(path, MAX_BYTES)
    header = re.match(rb"#\?(?:RADIANCE|RGBE)[^\n]*\n(?:[^\n]*\n)*?\r?\n([^\n]*)\n", data[:MAX_HEADER])
    if header is None:
        raise InputError(
            f"{path} is neither a Radiance .hdr picture nor OpenEXR",
            hint="convert other formats first, for example with oiiotool",
        )
    _check_variables(path, header[0].decode("latin-1"))
    resolution = _RESOLUTION.fullmatch(header[1].decode("latin-1"))
    if resolution is None:
        raise InputError(f"{path} is damaged: its header must end in a line like -Y 512 +X 1024")
    first_sign, first, lines, second_sign, _, length = resolution.groups()
    lines, length = int(lines), int(length)
    if not (1 <= lines <= MAX_SIDE and 1 <= length <= MAX_SIDE and lines * length <= MAX_PIXELS):
        raise InputError(
            f"{path} has {lines} lines of {length} pixels",
            hint=f"1 to {MAX_SIDE} of each and {MAX_PIXELS} pixels in all are read",
        )
    try:
        rgbe = _pixels(data, header.end(), lines, length)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    signs = {first: first_sign, "XY"[first == "X"]: second_sign}
    if first == "X":
        rgbe = rgbe.swapaxes(0, 1)
    return _radiance(rgbe[:: -1 if signs["Y"] == "+" else 1, :: -1 if signs["X"] == "-" else 1])


def _check_variables(path: Path, header: str) -> None:
    """Raise InputError if the header says that the pixels are not plain RGB."""
    for name, value in re.findall(r"^(FORMAT|COLORCORR)=[ \t]*(.*?)\s*$", header, re.M):
        if name == "FORMAT" and value != "32-bit_rle_rgbe":
            raise InputError(
                f"{path} is in the format {value!r}, 32-bit_rle_rgbe is read",
                hint="ra_xyze -r of Radiance converts XYZ to RGB" if "xyze" in value else None,
            )
        if name == "COLORCORR" and not re.fullmatch(r"(1(\.0*)?(e[+-]?0+)?\s*){3}", value):
            raise InputError(f"{path} has a colour correction (COLORCORR={value}), which is not read")


def _radiance(rgbe: np.ndarray) -> np.ndarray:
    # The bias of the exponent is 128, plus 8 bits of mantissa.
    exponents = np.where(rgbe[..., 3:] == 0, -1000, rgbe[..., 3:].astype(np.int32) - 136)
    return np.ldexp(rgbe[..., :3].astype(np.float32), exponents)


def _pixels(data: bytes, place: int, lines: int, length: int) -> np.ndarray:
    """RGBE bytes (lines, length, 4) from `place` to the end. Raises ValueError if they are not these lines."""
    rgbe = np.empty((lines, length, 4), np.uint8)
    for line in rgbe:
        place = _read_line(data, place, line)
    if place != len(data):
        raise ValueError(f"{len(data) - place} bytes follow {lines} lines of {length} pixels")
    return rgbe


def _read_line(data: bytes, place: int, line: np.ndarray) -> int:
    """Decode one line into `line` (length 4); returns the offset after it."""
    start = data[place : place + 4]
    # Such a pixel would be denormalized, so no plain line begins with it.
    if len(line) in RUN_LENGTHS and start[:2] == bytes([2, 2]) and len(start) == 4 and start[2] < 128:
        if int.from_bytes(start[2:]) != len(line):
            raise ValueError(f"a line is of {int.from_bytes(start[2:])} pixels, not of {len(line)}")
        place += 4
        for channel in range(4):
            values, place = _unpack_runs(data, place, len(line))
            line[:, channel] = np.frombuffer(values, np.uint8)
        return place
    plain = np.frombuffer(data[place : place + 4 * len(line)], np.uint8)
    if plain.size == line.size and not (plain.reshape(line.shape)[:, :3] == 1).all(axis=1).any():
        line[:] = plain.reshape(line.shape)
        return place + line.size
    return _unpack_repeats(data, place, line)


def _unpack_runs(data: bytes, place: int, length: int) -> tuple[bytearray, int]:
    """One channel of a line, and the offset after its bytes."""
    values = bytearray()
    while len(values) < length and place + 1 < len(data):
        count = data[place]
        if count > 128:  # one byte repeated
            values += data[place + 1 : place + 2] * (count - 128)
            place += 2
        elif count:
            values += data[place + 1 : place + 1 + count]
            place += 1 + count
        else:
            raise ValueError("a run has no pixels")
    if len(values) != length or place > len(data):
        raise ValueError("a run ends outside its line or the file")
    return values, place


def _unpack_repeats(data: bytes, place: int, line: np.ndarray) -> int:
    """Decode a line of pixels and numbers of repeats into `line`; returns the offset after it."""
    filled, shift = 0, 0
    while filled < len(line):
        pixel = data[place : place + 4]
        if len(pixel) < 4:
            raise ValueError("its pixels are not all there")
        place += 4
        if pixel[:3] != REPEAT:
            line[filled] = np.frombuffer(pixel, np.uint8)
            filled, shift = filled + 1, 0
            continue
        count = pixel[3] << shift  # repeats in a row are the bytes of one number, the lowest first
        if filled == 0 or filled + count > len(line):
            raise ValueError("a pixel is repeated outside its line")
        line[filled : filled + count] = line[filled - 1]
        filled, shift = filled + count, shift + 8
    return place
