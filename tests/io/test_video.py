import os
import subprocess
import sys

import av
import numpy as np
import pytest
from av.codec.codec import UnknownCodecError
from PIL import Image

from sv3d_jax.errors import InputError
from sv3d_jax.io.video import available_format, contact_sheet, frame_labels, write_video
from tests.test_imports import ROOT

ROWS, COLUMNS = np.mgrid[:47, :65]
FRAMES = np.stack(
    [np.stack([COLUMNS * 3, ROWS * 5, np.full_like(ROWS, 40 * i)], axis=-1) for i in range(6)]
).astype(np.uint8)


def decode(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_mp4_holds_the_frames_in_their_colours(tmp_path):
    write_video(tmp_path / "orbit.mp4", FRAMES)
    decoded = np.stack(decode(tmp_path / "orbit.mp4"))[:, :47, :65]
    assert decoded.shape == FRAMES.shape
    assert np.abs(decoded.astype(int) - FRAMES).mean() < 3  # half-resolution colour and 8-bit YUV


def test_mp4_is_h264_yuv420p_with_even_sides_and_square_pixels(tmp_path):
    write_video(tmp_path / "orbit.mp4", FRAMES, fps=7)
    with av.open(str(tmp_path / "orbit.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (66, 48)
        assert stream.sample_aspect_ratio == 1 and stream.average_rate == 7


def test_mp4_names_no_program_and_no_settings(tmp_path):
    write_video(tmp_path / "orbit.mp4", FRAMES)
    data = (tmp_path / "orbit.mp4").read_bytes()
    assert not any(word in data for word in (b"x264", b"Lavf", b"Lavc"))


def test_mp4_can_be_played_before_it_is_loaded_whole(tmp_path):
    write_video(tmp_path / "orbit.mp4", FRAMES)
    data = (tmp_path / "orbit.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("name", ["orbit.gif", "orbit.webp"])
def test_animations_loop_and_hold_all_frames(tmp_path, name):
    write_video(tmp_path / name, FRAMES)
    with Image.open(tmp_path / name) as image:
        assert getattr(image, "n_frames", 1) == 6 and image.info["loop"] == 0
        image.seek(5)
        assert np.abs(np.asarray(image.convert("RGB"), int) - FRAMES[5]).mean() < 6


ENCODE = """
import ctypes, os, sys
from pathlib import Path
import numpy as np
import av
from sv3d_jax.io import video

if sys.argv[2] == "old processor":
    [library] = {line.split()[-1] for line in open("/proc/self/maps") if "libavutil" in line}
    ctypes.CDLL(library).av_force_cpu_flags(0)
    video.X264 += ":asm=0"
if sys.argv[2] == "one core":
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
rows, columns = np.mgrid[:95, :130]
noise = np.random.default_rng(0).normal(0, 20, (95, 130, 3))
turns = [columns * 2 * (index % 2) + rows + 15 * index for index in range(12)]
frames = np.stack([np.clip(turn[..., None] + np.roll(noise, turn[0, 1], 1), 0, 255) for turn in turns])
for name in ("orbit.mp4", "orbit.gif", "orbit.webp"):
    video.write_video(Path(sys.argv[1]) / name, frames.astype(np.uint8))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processors are changed by means of Linux")
def test_the_same_frames_give_the_same_files_whatever_the_processor_and_the_memory(tmp_path):
    files = []
    for case in ("as is", "one core", "old processor", "used memory"):
        folder = tmp_path / case
        folder.mkdir()
        environment = os.environ | ({"MALLOC_PERTURB_": "85"} if case == "used memory" else {})
        subprocess.run(
            [sys.executable, "-c", ENCODE, str(folder), case], env=environment, cwd=ROOT, check=True
        )
        files.append({file.name: file.read_bytes() for file in sorted(folder.iterdir())})
    for other in files[1:]:
        for name, content in files[0].items():
            assert other[name] == content, name


@pytest.mark.parametrize("name", ["orbit.mp4", "orbit.gif", "orbit.webp"])
def test_the_same_frames_give_the_same_file(tmp_path, name):
    for index in range(4):
        write_video(tmp_path / str(index) / name, FRAMES)
    assert len({(tmp_path / str(index) / name).read_bytes() for index in range(4)}) == 1


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(InputError, match=".mp4, .gif, .webp"):
        write_video(tmp_path / "orbit.avi", FRAMES)


def test_mp4_is_available_with_pyav():
    assert available_format("mp4") == "mp4"


def test_without_an_encoder_the_format_falls_back_to_gif_with_a_warning(monkeypatch):
    def no_codec(name, mode):
        raise UnknownCodecError(name)

    monkeypatch.setattr("av.codec.Codec", no_codec)
    with pytest.warns(UserWarning, match="no H.264 encoder"):
        assert available_format("mp4") == "gif"


def test_contact_sheet_shows_every_frame_in_order():
    colors = np.random.default_rng(0).integers(0, 200, (6, 1, 1, 3), np.uint8)
    sheet = contact_sheet(np.broadcast_to(colors, (6, 128, 128, 3)), [""] * 6, columns=3)
    cells = [
        sheet[row : row + 1, column] for row in (60, 60 + sheet.shape[0] // 2) for column in (60, 192, 324)
    ]
    np.testing.assert_array_equal(np.concatenate(cells), colors[:, 0, 0])


def test_contact_sheet_enlarges_small_frames_and_puts_21_in_three_rows():
    sheet = contact_sheet(np.zeros((21, 50, 50, 3), np.uint8), [""] * 21)
    assert 7 * 150 < sheet.shape[1] < 7 * 150 * 1.1


def test_contact_sheet_prints_the_labels():
    frames = np.full((2, 128, 128, 3), 255, np.uint8)
    blank, labelled = contact_sheet(frames, ["", ""]), contact_sheet(frames, frame_labels([17, 0], [10, 10]))
    assert (blank != labelled).any()


def test_labels_say_azimuth_and_elevation():
    assert frame_labels([17.14], [-9.6]) == ["az 17°  el -10°"]
