"""Orbit videos and contact sheets from 8-bit frames."""

import io
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sv3d_jax.errors import InputError
from sv3d_jax.io.outputs import write_atomic

VIDEO_FORMATS = ("mp4", "gif", "webp")
FRAMES_PER_SECOND = 7  # one turn of 21 frames in three seconds
X264 = "cpu-independent=1"
"""Without this, and without exact rounding of colours, the bytes depend on the instructions that a processor has."""
_BT709 = 1  # FFmpeg's number for it as matrix, primaries and transfer


def available_format(wanted: str = "mp4") -> str:
    """The wanted video format if it can be encoded here, else gif with a warning. To be called before sampling.

    Raises InputError for unknown formats.
    """
    if wanted not in VIDEO_FORMATS:
        raise InputError(f"video format must be one of {', '.join(VIDEO_FORMATS)}, got {wanted!r}")
    if wanted == "mp4" and not _has_h264():
        warnings.warn("no H.264 encoder is installed, the video is written as gif", stacklevel=2)
        return "gif"
    return wanted


def write_video(path: str | Path, frames_uint8: np.ndarray, fps: float = FRAMES_PER_SECOND) -> None:
    """Write frames (f, h, w, 3) as a video in the format of the suffix, atomically.

    mp4 is H.264 in yuv420p, padded to even sides, with square pixels and without metadata; gif and webp loop. The same
    frames give the same bytes with the same version of the encoder (PyAV, Pillow). Raises InputError for other suffixes
    and for frames that are not uint8.
    """
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in VIDEO_FORMATS:
        raise InputError(f"{path} must end in .{', .'.join(VIDEO_FORMATS)}")
    frames = np.asarray(frames_uint8)
    if frames.dtype != np.uint8:
        raise InputError(f"{path}: frames are written from uint8, got {frames.dtype}")
    write_atomic(path, encode_video(frames, fps, suffix))


def encode_video(frames: np.ndarray, fps: float, video_format: str) -> bytes:
    """Frames (f, h, w, 3), uint8, as a file in one of the VIDEO_FORMATS; see `write_video`."""
    return (_mp4 if video_format == "mp4" else _animation)(frames, fps, video_format)


def frame_labels(azimuths_deg: Sequence[float], elevations_deg: Sequence[float]) -> list[str]:
    """Captions of a contact sheet, one per view."""
    return [f"az {a:.0f}°  el {e:.0f}°" for a, e in zip(azimuths_deg, elevations_deg, strict=True)]


def contact_sheet(
    frames_uint8: np.ndarray, labels: Sequence[str], columns: int | None = None, min_cell: int = 128
) -> np.ndarray:
    """All frames (f, h, w, 3) in one picture, row by row, each with its label below.

    Frames narrower than `min_cell` are enlarged by an integer factor, so that labels stay readable.
    """
    if len(frames_uint8) != len(labels):
        raise InputError(f"got {len(frames_uint8)} frames and {len(labels)} labels")
    scale = -(-min_cell // frames_uint8.shape[2])
    cells = frames_uint8.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = cells.shape[:3]
    per_row = min(count, columns or _columns(count))
    gap, text_height = max(2, width // 64), max(14, width // 9)
    rows = -(-count // per_row)
    pitch_x, pitch_y = width + gap, height + text_height + gap
    sheet = Image.new("RGB", (per_row * pitch_x + gap, rows * pitch_y + gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=0.75 * text_height)
    for index, (cell, label) in enumerate(zip(cells, labels, strict=True)):
        x, y = gap + index % per_row * pitch_x, gap + index // per_row * pitch_y
        sheet.paste(Image.fromarray(cell), (x, y))
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline="#dddddd")
        draw.text(
            (x + width / 2, y + height + text_height / 2), label, fill="#444444", font=font, anchor="mm"
        )
    return np.asarray(sheet)


def _columns(count: int) -> int:
    """Number of columns for a landscape layout, a divisor of `count` if possible: 7 for 21 frames."""
    ideal = max(1, round((count * 2) ** 0.5))
    divisors = [n for n in range(ideal, 2 * ideal) if count % n == 0]
    return divisors[0] if divisors else ideal


def _has_h264() -> bool:
    try:
        from av.codec import Codec

        Codec("libx264", "w")
    except (ImportError, ValueError):  # PyAV's UnknownCodecError is a ValueError
        return False
    return True


def _mp4(frames: np.ndarray, fps: float, suffix: str) -> bytes:
    import av

    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    # +faststart reads the file again, so a memory buffer does not work.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video.{suffix}"
        with av.open(str(path), "w", options=options) as container:
            _encode_h264(container, frames, fps)
        return path.read_bytes()


def _encode_h264(container: Any, frames: np.ndarray, fps: float) -> None:
    import av
    from av.bitstream import BitStreamFilterContext
    from av.video.reformatter import Interpolation

    stream = container.add_stream("libx264", rate=round(fps))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": "17", "preset": "medium", "threads": "1", "x264-params": X264}
    context = stream.codec_context
    context.sample_aspect_ratio = 1
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    # x264 writes its version and settings into units of type 6; without them files are reproducible.
    strip_settings = BitStreamFilterContext("filter_units=remove_types=6", stream)
    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT

    def mux(packets):
        for packet in packets:
            container.mux(strip_settings.filter(packet))

    for pixels in frames:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", interpolation=exact, threads=1)
        mux(stream.encode(frame))
    mux(stream.encode())
    container.mux(strip_settings.filter(None))


def _animation(frames: np.ndarray, fps: float, suffix: str) -> bytes:
    images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    if suffix == "gif":
        images = [image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
    options = {"quality": 90} if suffix == "webp" else {}
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        suffix.upper(),
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
        **options,
    )
    return buffer.getvalue()
