"""What `reconstruct` takes and returns, as Python code and notebooks see it."""

import re

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.errors import InputError
from sv3d_jax.io import inline
from sv3d_jax.recon.reconstruct import ReconstructResult, reconstruct
from sv3d_jax.train.data.figures import figure_mesh

RESULT = ReconstructResult(figure_mesh(3), None, None, [], {}, {"coarse": 1.5, "bake": 0.5})


def test_a_result_says_what_it_is():
    assert re.fullmatch(
        r"ReconstructResult\(Mesh\(\d+ vertices, \d+ faces, vertex colors\), in 2.0 s\)", repr(RESULT)
    )


def test_a_notebook_shows_a_result_as_it_turns():
    shown = RESULT._repr_html_()
    assert "data:image/webp;base64," in shown and repr(RESULT) in shown


def test_show_opens_a_sheet_of_views_where_there_is_no_notebook(monkeypatch):
    opened = []
    monkeypatch.setattr(inline.Image.Image, "show", lambda picture: opened.append(np.asarray(picture)))
    RESULT.show()
    assert len(opened) == 1 and (opened[0] < 128).any()


def test_trimesh_gets_the_mesh_of_a_result():
    np.testing.assert_array_equal(RESULT.to_trimesh().faces, RESULT.mesh.faces)


@pytest.mark.parametrize("orbit", [[Image.new("RGB", (64, 64))] * 3, np.zeros((3, 8, 8, 3)), None])
def test_what_is_no_orbit_is_refused(orbit):
    with pytest.raises(InputError, match="reconstruct takes an orbit, or a folder of one, got ") as caught:
        reconstruct(orbit)
    assert "OrbitFrames.from_views(images, cameras)" in caught.value.hint
