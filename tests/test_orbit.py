"""Orbits as values: what they say of themselves, their frames, and folders of them."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cameras.orbit import CameraPath, sine_orbit, static_orbit
from sv3d_jax.cli import main
from sv3d_jax.errors import InputError
from sv3d_jax.io import inline
from sv3d_jax.orbit import Orbit


def an_orbit(cameras: CameraPath | None = None, **changes) -> Orbit:
    cameras = cameras or static_orbit(4)
    frames = np.random.default_rng(0).integers(0, 255, (len(cameras), 8, 8, 3), np.uint8)
    fields = {
        "frames": [Image.fromarray(frame) for frame in frames],
        "cameras": cameras,
        "latents": np.zeros((len(cameras), 1, 1, 4)),
        "seed": 23,
        "timings": {},
        "picture": frames[cameras.input_frame],
    }
    return Orbit(**fields | changes)


@pytest.mark.parametrize(
    ("orbit", "says"),
    [
        (an_orbit(), "Orbit(4 frames of 8x8, elevation 10°, seed 23)"),
        (an_orbit(sine_orbit(4)), "Orbit(4 frames of 8x8, elevations -20° to 40°, seed 23)"),
        (
            an_orbit(CameraPath([9, 90, 0], [0, 0, 0])),
            "Orbit(3 frames of 8x8, elevation 0°, uneven azimuths, seed 23)",
        ),
        (
            an_orbit(frames=np.zeros((4, 1, 1, 4))),
            "Orbit(4 latents of frames of 8x8, elevation 10°, seed 23)",
        ),
        (static_orbit(4), "CameraPath(4 views, elevation 10°)"),
        (static_orbit(4).with_input("first"), "CameraPath(4 views, elevation 10°, input frame 0)"),
    ],
)
def test_an_orbit_says_what_it_is_in_a_line(orbit, says):
    assert repr(orbit) == says


def test_frames_are_counted_indexed_and_gone_through():
    orbit = an_orbit()
    assert len(orbit) == 4 and orbit[-1] is orbit.frames[3] and orbit[1:3] == orbit.frames[1:3]
    assert list(orbit) == orbit.frames


def test_a_notebook_shows_all_views():
    shown = an_orbit()._repr_html_()
    content = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", shown)[1])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), an_orbit().contact_sheet())
    assert "<figcaption>Orbit(4 frames of 8x8" in shown
    assert an_orbit(frames=np.zeros((4, 1, 1, 4)))._repr_html_() is None


def test_show_opens_the_sheet_where_there_is_no_notebook(monkeypatch):
    opened = []
    monkeypatch.setattr(inline.Image.Image, "show", lambda picture: opened.append(np.asarray(picture)))
    an_orbit().show()
    np.testing.assert_array_equal(opened, [an_orbit().contact_sheet()])


@pytest.mark.parametrize("cameras", [sine_orbit(5), static_orbit(4).with_input("first")])
def test_a_saved_orbit_is_loaded_with_the_same_frames_and_cameras(cameras, tmp_path):
    saved = an_orbit(cameras)
    saved.save(tmp_path, video="png")
    loaded = Orbit.load(tmp_path)
    np.testing.assert_array_equal(loaded.frames_uint8(), saved.frames_uint8())
    np.testing.assert_array_equal(loaded.picture, saved.picture)
    np.testing.assert_allclose(loaded.cameras.camera_to_world, cameras.camera_to_world, atol=1e-12)
    assert (loaded.cameras.fov_deg, loaded.cameras.input_frame) == (cameras.fov_deg, cameras.input_frame)
    assert (loaded.latents, loaded.seed, loaded.timings) == (None, None, {})


def test_an_orbit_of_the_command_is_loaded_with_its_seed(tmp_path):
    words = ["orbit", "examples/figure.png", "--seed", "5", "--num-steps", "1", "--format", "png", "-q"]
    assert main([*words, "-o", str(tmp_path / "orbit")]) == 0
    assert Orbit.load(tmp_path / "orbit").seed == 5


def test_a_folder_without_an_orbit_is_not_loaded(tmp_path):
    with pytest.raises(InputError, match="cameras.json does not exist"):
        Orbit.load(tmp_path)
