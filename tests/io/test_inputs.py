"""Which input files a run would overwrite."""

import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io.inputs import refuse_overwriting


@pytest.mark.parametrize(
    "name", ["frames/000.png", "frames/deeper/a.obj", "Alphas/0.png", "cameras.json", "orbit.gif"]
)
def test_inputs_in_the_places_of_results_are_refused_also_through_links(tmp_path, name):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).touch()
    (tmp_path / "picture.png").symlink_to(tmp_path / "out" / name)
    for given in ("out", "link"):
        for file in (tmp_path / given / name, tmp_path / "picture.png"):
            with pytest.raises(InputError, match="is an input of this run"):
                refuse_overwriting([file], [tmp_path / "other", tmp_path / "out"], ["orbit.*"])


def test_inputs_beside_results_and_in_other_orbits_are_read(tmp_path):
    files = ["photo.png", "train/frames/000.png", "contact.jpg", "orbit.png"]
    refuse_overwriting([tmp_path / file for file in files], [tmp_path, tmp_path / "out"])
