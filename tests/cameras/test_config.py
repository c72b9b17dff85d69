import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cameras.config import CamerasConfig, run_cameras
from sv3d_jax.cameras.orbit import make_orbit
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.cameras_file import read_camera_path
from sv3d_jax.progress import NullProgress


def run(**settings):
    return run_cameras(CamerasConfig(**settings), NullProgress())


def test_the_table_has_a_line_for_each_frame_and_marks_the_input_view(capsys):
    run(orbit="sine")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 21 + 1
    assert lines[21].split()[:2] == ["20", "0.00"] and lines[21].endswith("input view")


def test_the_written_file_is_the_path_that_was_asked_for(tmp_path):
    run(orbit="dynamic", seed=9, output=tmp_path / "run")
    path, expected = read_camera_path(tmp_path / "run"), make_orbit("dynamic", seed=9)
    np.testing.assert_allclose(path.azimuths_deg, expected.azimuths_deg, atol=1e-12)
    np.testing.assert_allclose(path.elevations_deg, expected.elevations_deg, atol=1e-12)


def test_output_may_name_the_file(tmp_path):
    document = run(output=tmp_path / "path.json")
    assert json.loads((tmp_path / "path.json").read_text()) == document


def test_the_plot_puts_the_input_view_below_and_in_red(tmp_path):
    run(plot=tmp_path / "path.png")
    with Image.open(tmp_path / "path.png") as image:
        red, green, blue = np.asarray(image.convert("RGB"), int).transpose(2, 0, 1)
    left_half = (red - np.maximum(green, blue) > 100)[:, :600]
    rows, columns = np.nonzero(left_half)
    assert rows.min() > 400 and abs(columns.mean() - 285) < 5


def test_an_existing_file_is_kept_without_overwrite(tmp_path):
    (tmp_path / "path.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists"):
        run(plot=tmp_path / "path.png")
    assert (tmp_path / "path.png").read_bytes() == b"mine"


def test_a_dry_run_writes_nothing(tmp_path):
    run(plot=tmp_path / "path.png", output=tmp_path, dry_run=True)
    assert not list(tmp_path.iterdir())


def test_a_plot_that_is_not_png_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"\.png"):
        run(plot=tmp_path / "path.svg")


def test_listed_elevations_need_one_value_per_frame():
    with pytest.raises(CameraError, match="num_frames=21 values, got 2"):
        run(elevation=(10.0, 20.0))


def test_the_verb_needs_no_jax():
    script = (
        "import sys; from sv3d_jax.cameras.config import *; from sv3d_jax.progress import NullProgress;"
        "run_cameras(CamerasConfig(orbit='dynamic'), NullProgress()); sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True).returncode == 0
