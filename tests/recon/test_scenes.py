"""Scenes of other programs as the reconstruction sees them."""

import numpy as np
import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io.scenes import read_views
from sv3d_jax.progress import NullProgress
from sv3d_jax.recon.config import ReconstructConfig, ReconstructVerbConfig
from sv3d_jax.recon.nerf.occupancy import visual_hull
from sv3d_jax.recon.reconstruct import reconstruct, run_reconstruct
from sv3d_jax.recon.views import BOX_HALF_SIZE, prepare_views, usable_frames
from sv3d_jax.train.data.config import ImportConfig
from sv3d_jax.train.data.scenes import run_import
from tests.io.scene_files import copy_case

# Of the object of `plain` when its cameras stand at distance 2; low and high x, y, z.
BOUNDS = np.array([[-0.436, -0.438, -0.457], [0.437, 0.438, 0.379]])
MOVED = (-4, 4)  # pixels down and right between the pictures of `plain` and those of `cxcy`


def hull_bounds(folder) -> np.ndarray:
    views, box = prepare_views(usable_frames(read_views(folder)))
    hull = np.asarray(visual_hull(views, 64, 0.05))
    cells = np.argwhere(hull)
    cell = 2 * BOX_HALF_SIZE / 64
    return box.to_world(np.stack([cells.min(0) * cell, (cells.max(0) + 1) * cell]) - BOX_HALF_SIZE)


def test_an_off_centre_principal_point_moves_no_part_of_the_object(tmp_path):
    """The pictures are those of `plain`, moved by whole pixels, as the principal point is."""
    plain = hull_bounds(copy_case("reports/plain", tmp_path))
    moved = hull_bounds(copy_case("reports/cxcy", tmp_path, MOVED))
    np.testing.assert_allclose(moved, plain, atol=1e-6)
    np.testing.assert_allclose(plain / 2, BOUNDS, atol=0.08)  # cells, and what no view carves; at distance 4


def test_a_stale_angle_makes_no_larger_object(tmp_path):
    with pytest.warns(UserWarning, match="33.8"):
        bounds = hull_bounds(copy_case("reports/perframe_over", tmp_path))
    np.testing.assert_allclose(bounds / 2, BOUNDS, atol=0.08)


@pytest.mark.slow
def test_the_mesh_of_an_imported_off_centre_orbit_has_the_bounds_of_the_object(tmp_path):
    scene = copy_case("reports/cxcy", tmp_path, MOVED)
    run_import(ImportConfig(orbits=(scene,), output=tmp_path / "orbit"), NullProgress())
    mesh = reconstruct(tmp_path / "orbit", ReconstructConfig(preset="preview")).mesh
    found = np.stack([mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)])
    np.testing.assert_allclose(found, BOUNDS, atol=0.015)


@pytest.mark.parametrize("file", ["", "transforms_test.json"])
def test_the_verb_takes_a_folder_or_a_file(tmp_path, file):
    scene = copy_case("reports/split", tmp_path)
    config = ReconstructVerbConfig(orbit_dir=scene / file, output=tmp_path / "out", dry_run=True)
    with pytest.warns(UserWarning, match="is read; .* can be given instead"):
        assert run_reconstruct(config, NullProgress())["frames"] == 21


@pytest.mark.parametrize("axes", ["away", "opencv"])
def test_cameras_that_look_away_are_refused_before_any_fit(tmp_path, axes):
    config = ReconstructVerbConfig(
        orbit_dir=copy_case(f"reports/{axes}", tmp_path), output=tmp_path / "out", dry_run=True
    )
    with pytest.raises(InputError, match="look away"):
        run_reconstruct(config, NullProgress())
