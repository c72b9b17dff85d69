"""Reading environment maps in Radiance .hdr files."""

import re
from pathlib import Path

import numpy as np

from sv3d_jax.errors import InputError

MAX_BYTES = 1 << 30
MAX_SIDE = 1 << 15


def read_hdr(path: str | Path) -> np.ndarray:
    """Radiance, float32 (h w 3), of an RGBE file, plain or run-length encoded; top row first. Raises InputError."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    header = re.match(rb"#\?(?:RADIANCE|RGBE)\n.*?\n\n-Y (\d+) \+X (\d+)\n", data, re.S)
    if header is None or b"FORMAT=32-bit_rle_rgbe" not in header[0]:
        raise InputError(
            f"{path} is not a Radiance .hdr picture",
            hint="convert other formats first, for example with oiiotool",
        )
    height, width = int(header[1]), int(header[2])
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise InputError(f"{path} has {width}x{height} pixels, at most {MAX_SIDE} a side are read")
    try:
        rgbe = _pixels(np.frombuffer(data, np.uint8, offset=header.end()), height, width)
    except (IndexError, ValueError):
        raise InputError(f"{path} is damaged: its {width}x{height} pixels are not all there") from None
    # The bias of the exponent is 128, plus 8 bits of mantissa.
    scale = np.ldexp(1.0, rgbe[..., 3:].astype(np.int32) - 136)
    return (rgbe[..., :3] * np.where(rgbe[..., 3:] == 0, 0.0, scale)).astype(np.float32)


def _pixels(data: np.ndarray, height: int, width: int) -> np.ndarray:
    """RGBE bytes (h w 4)."""
    start = bytes([2, 2, width >> 8, width & 255])  # marker of a run-length encoded row
    if not (8 <= width < 1 << 15 and data[:4].tobytes() == start):
        if len(data) != height * width * 4:
            raise ValueError("neither plain pixels nor rows of runs")
        return data.reshape(height, width, 4)
    rows, place = np.empty((height, 4, width), np.uint8), 0
    for row in rows:
        if data[place : place + 4].tobytes() != start:
            raise ValueError("a row does not begin with its width")
        place += 4
        for channel in row:
            place = _unpack_runs(data, place, channel)
    return rows.transpose(0, 2, 1)


def _unpack_runs(data: np.ndarray, place: int, channel: np.ndarray) -> int:
    """Decode one channel of a row into `channel`; returns the offset after its bytes."""
    filled = 0
    while filled < len(channel):
        count = int(data[place])
        if count > 128:  # one byte repeated
            count -= 128
            values, used = data[place + 1], 2
        else:
            values, used = data[place + 1 : place + 1 + count], 1 + count
        if count == 0 or filled + count > len(channel) or place + used > len(data):
            raise ValueError("a run leaves its row or the file")
        channel[filled : filled + count] = values
        filled, place = filled + count, place + used
    return place
