"""The verb `data objects`."""

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import static_orbit
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import to_world
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.progress import NullProgress
from sv3d_jax.render.lighting import soft_light
from sv3d_jax.render.orbit import render_orbit
from sv3d_jax.train.data.config import ObjectsConfig
from sv3d_jax.train.data.objects import FAMILIES, run_objects


def _run(folder, **settings):
    return run_objects(ObjectsConfig(output=folder, **settings), NullProgress())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_object_is_the_mesh_of_its_seed(tmp_path, family):
    _run(tmp_path, seed=41, count=2, family=family)
    assert sorted(path.name for path in tmp_path.glob("*.glb")) == ["41.glb", "42.glb"]
    expected = FAMILIES[family](42)
    mesh = read_mesh(tmp_path / "42.glb")
    np.testing.assert_allclose(mesh.vertices, expected.vertices, atol=1e-6)  # float32 in the file
    np.testing.assert_allclose(
        mesh.vertex_colors, expected.vertex_colors, atol=1.1e-4
    )  # 16 bits of linear light


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_looks_like_its_object(tmp_path, family):
    _run(tmp_path, seed=43, count=1, family=family)
    cameras, light = static_orbit(3, 10.0), soft_light(43)
    meshes = read_mesh(tmp_path / "43.glb"), FAMILIES[family](43)
    (seen, alpha), (expected, expected_alpha) = (
        render_orbit(to_world(m), cameras, 48, light) for m in meshes
    )
    assert np.abs(seen.astype(int) - expected).max() <= 1  # of 255
    np.testing.assert_array_equal(alpha, expected_alpha)


def test_an_object_does_not_depend_on_the_run_that_makes_it(tmp_path):
    _run(tmp_path / "a", seed=7, count=1)
    _run(tmp_path / "b", seed=6, count=2)
    assert (tmp_path / "a/7.glb").read_bytes() == (tmp_path / "b/7.glb").read_bytes()


def test_finished_folder_is_left_alone(tmp_path):
    _run(tmp_path, count=1)
    before = (tmp_path / "0.glb").stat().st_mtime_ns
    _run(tmp_path, count=1)
    assert (tmp_path / "0.glb").stat().st_mtime_ns == before


def test_dry_run_writes_nothing(tmp_path):
    _run(tmp_path / "a", dry_run=True)
    assert not (tmp_path / "a").exists()


def test_count_below_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="--count"):
        ObjectsConfig(output=tmp_path, count=0)
