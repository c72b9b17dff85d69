"""Links inside folders of input: one rule for orbits, scenes and meshes."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import make_orbit
from sv3d_jax.errors import InputError
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.io.orbits import read_orbit, write_orbit
from sv3d_jax.io.scenes import read_views
from sv3d_jax.train.data.check import orbit_defects
from tests.io.scene_files import write_colmap, write_transforms

pytestmark = [pytest.mark.filterwarnings("ignore::sv3d_jax.cameras.orbit.CameraWarning")]

POSES = np.tile(np.eye(4), (3, 1, 1))
POSES[:, 2, 3] = [2, 3, 4]
OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nmtllib textures/m.mtl\nusemtl m\nf 1/1 2/1 3/1\n"


def orbit(folder: Path) -> Path:
    write_orbit(folder, np.zeros((2, 40, 40, 3), np.uint8), make_orbit("static", 2, 10.0))
    return folder


def transforms(folder: Path) -> Path:
    return write_transforms(folder, {"camera_angle_x": 0.6})


def colmap(folder: Path) -> Path:
    write_transforms(folder, {"camera_angle_x": 0.6})  # for its pictures
    (folder / "transforms.json").unlink()
    return write_colmap(folder, POSES, names=[f"{index}.png" for index in range(3)])


def mesh(folder: Path) -> Path:
    (folder / "textures").mkdir(parents=True)
    (folder / "a.obj").write_text(OBJ)
    (folder / "textures" / "m.mtl").write_text("newmtl m\nKd 1 0 0\n")
    return folder


def read_an_orbit(folder: Path) -> None:
    read_orbit(folder)
    if defects := [*orbit_defects(folder)]:
        raise InputError(defects[0])


def read_a_mesh(folder: Path) -> None:
    read_mesh(folder / "a.obj")


KINDS = {
    "orbit": (orbit, "frames", read_an_orbit),
    "transforms": (transforms, "images", read_views),
    "colmap": (colmap, "images", read_views),
    "mesh": (mesh, "textures", read_a_mesh),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    write, part, read = KINDS[request.param]
    return write(tmp_path / "scenes" / "one"), part, read


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_a_link_that_leads_out_is_refused(kind, tmp_path, whole):
    folder, part, read = kind
    read(folder)
    moved = folder / part if whole else sorted((folder / part).iterdir())[0]
    elsewhere = tmp_path / "elsewhere"
    shutil.move(moved, elsewhere)
    moved.symlink_to(elsewhere)
    with pytest.raises(InputError, match="a link that leads out of") as error:
        read(folder)
    assert str(folder.name) in error.value.message


def test_a_link_that_stays_inside_is_followed(kind):
    folder, part, read = kind
    shutil.move(folder / part, folder / "kept")
    (folder / part).symlink_to("kept")
    read(folder)


def test_the_folder_that_a_user_names_may_be_a_link(kind, tmp_path):
    folder, _, read = kind
    link = tmp_path / "link"
    link.symlink_to(folder)
    read(link)


def test_pictures_beside_the_folder_of_a_transforms_file_are_read(tmp_path):
    folder = transforms(tmp_path / "scene" / "cameras")
    shutil.move(folder / "images", folder.parent / "images")
    file = folder / "transforms.json"
    file.write_text(file.read_text().replace("images/", "../images/"))
    read_views(folder)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_frames_outside_are_refused_by_reading_and_by_checking(tmp_path, name):
    folder = orbit(tmp_path / "orbit")
    file = folder / "cameras.json"
    file.write_text(file.read_text().replace("frames/000.png", name))
    with pytest.raises(InputError, match="outside the folder"):
        read_orbit(folder)
    assert any("outside the folder" in defect for defect in orbit_defects(folder))
