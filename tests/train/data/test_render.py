"""Pictures of objects, and the verb `data render`."""

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.meshes import read_mesh, write_glb
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.progress import NullProgress
from sv3d_jax.render.lighting import soft_light
from sv3d_jax.train.data.config import RenderConfig
from sv3d_jax.train.data.figures import figure_mesh
from sv3d_jax.train.data.render import (
    OBJECT_RADIUS,
    object_to_world,
    render_figures,
    render_orbit,
    run_render,
    to_world,
)

AZIMUTHS = np.array([[90.0, 200.0, 0.0], [10.0, 350.0, 0.0]])
ELEVATIONS = np.full_like(AZIMUTHS, 20.0)


def test_farthest_vertex_lies_on_the_object_ball():
    world = to_world(figure_mesh(3)).vertices
    np.testing.assert_allclose(np.linalg.norm(world, axis=1).max(), OBJECT_RADIUS)
    np.testing.assert_allclose(world.max(0), -world.min(0), atol=1e-12)


def test_unused_vertices_do_not_count_for_the_scale():
    mesh = figure_mesh(3)
    padded = Mesh(np.concatenate([mesh.vertices, [[99.0, 0.0, 0.0]]]), mesh.faces)
    assert np.array_equal(object_to_world(padded), object_to_world(mesh))


def test_figures_fill_much_of_the_picture_and_never_touch_its_border():
    azimuths = np.tile(np.arange(6) * 60.0, (8, 1))
    pixels = np.asarray(render_figures(range(8), azimuths, np.full((8, 6), 20.0), 64))
    drawn = (pixels < 250).any(-1)
    assert drawn.mean() > 0.4
    assert not drawn[:, :, [0, -1]].any() and not drawn[:, :, :, [0, -1]].any()


def test_a_figure_does_not_depend_on_the_rest_of_its_batch():
    both = render_figures([5, 6], AZIMUTHS, ELEVATIONS, 32)
    alone = render_figures([6], AZIMUTHS[1:], ELEVATIONS[1:], 32)
    assert np.array_equal(both[1], alone[0])


def test_both_renderers_draw_the_same_figure():
    fast = render_figures([5], AZIMUTHS[:1], ELEVATIONS[:1], 32, supersample=2)[0]
    orbit, _ = render_orbit(
        to_world(figure_mesh(5)), CameraPath(AZIMUTHS[0], ELEVATIONS[0]), 32, soft_light(5), supersample=2
    )
    difference = np.abs(np.asarray(fast, int) - orbit)
    assert difference.max() <= 1  # rounding to uint8


def test_a_quarter_turn_of_the_object_shifts_an_orbit_of_quarter_turns_by_one_frame():
    mesh = to_world(figure_mesh(8))
    turned = Mesh(
        mesh.vertices @ [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], mesh.faces, mesh.vertex_colors
    )  # +90 degrees
    path = CameraPath([90.0, 180.0, 270.0, 0.0], [15.0] * 4)
    still, moved = (render_orbit(m, path, 32)[0].astype(int) for m in (mesh, turned))
    assert (np.abs(np.roll(still, 1, axis=0) - moved) > 2).mean() < 0.002  # a few points on edges


SQUARE = Mesh(
    vertices=np.array([[0.0, -0.3, -0.3], [0.0, 0.3, -0.3], [0.0, 0.3, 0.3], [0.0, -0.3, 0.3]]),
    faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
    vertex_colors=np.tile(np.float32([0.2, 0.4, 0.6]), (4, 1)),
)
FACING = CameraPath([0.0, 0.0], [0.0, 0.0])


def test_alpha_is_the_covered_share_of_a_pixel():
    _, alpha = render_orbit(SQUARE, FACING, 40, supersample=8)
    focal = 20 / np.tan(np.radians(16.9))
    np.testing.assert_allclose(alpha[0].sum() / 255, (0.6 * focal / 2) ** 2, rtol=0.02)  # 64 points a pixel


def test_transparent_background_keeps_the_object_color_at_its_border():
    images, alpha = render_orbit(SQUARE, FACING, 33, background="transparent")
    partly = (alpha > 0) & (alpha < 255)
    assert partly.any()
    assert np.array_equal(np.unique(images[partly], axis=0), [[51, 102, 153]])


def test_texture_appears_upright():
    texture = np.zeros((2, 2, 3), np.float32)
    texture[0, 0], texture[1, 1] = [1, 0, 0], [0, 0, 1]  # red at the top left, blue at the bottom right
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], np.float32)
    image = render_orbit(Mesh(SQUARE.vertices, SQUARE.faces, uv=uv, texture=texture), FACING, 40)[0][0]
    assert np.array_equal(image[11, 11], [255, 0, 0]) and np.array_equal(image[28, 28], [0, 0, 255])


def test_soft_light_never_leaves_its_range():
    normals = np.random.default_rng(0).normal(size=(500, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for seed in range(20):
        light = soft_light(seed)
        assert np.degrees(np.arccos(light.axis[2])) <= 12.0
        assert 0.6 <= light.ambient <= light.shade(normals).min() <= light.shade(normals).max() <= 1.0


def _render(folder, *meshes, **settings):
    return run_render(
        RenderConfig(meshes=meshes, output=folder, frames=3, size=32, **settings), NullProgress()
    )


@pytest.fixture(scope="module")
def mesh_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh") / "fig.glb"
    write_glb(path, figure_mesh(4))
    return path


@pytest.mark.filterwarnings("ignore:SV3D is trained")
class TestVerb:
    def test_orbit_folder_reads_back_with_the_way_from_file_to_world(self, tmp_path, mesh_file):
        _render(tmp_path, mesh_file)
        orbit = read_orbit(tmp_path)
        assert orbit.images.shape == (3, 32, 32, 3) and orbit.input_frame == 2
        assert (tmp_path / "contact.png").is_file()
        scene = read_mesh(mesh_file, "z").vertices  # coordinates as in the file, y up
        world = scene @ orbit.object_to_world[:3, :3].T + orbit.object_to_world[:3, 3]
        np.testing.assert_allclose(world, to_world(read_mesh(mesh_file)).vertices, atol=1e-12)

    def test_same_command_gives_the_same_bytes(self, tmp_path, mesh_file):
        for name in ("a", "b"):
            _render(tmp_path / name, mesh_file)
        files = [(tmp_path / name / "frames/001.png").read_bytes() for name in ("a", "b")]
        assert files[0] == files[1]

    def test_several_meshes_go_to_a_folder_each(self, tmp_path, mesh_file):
        other = tmp_path / "other.glb"
        write_glb(other, figure_mesh(5))
        _render(tmp_path / "out", mesh_file, other)
        assert all((tmp_path / "out" / name / "cameras.json").is_file() for name in ("fig", "other"))

    def test_meshes_of_one_name_are_refused(self, tmp_path, mesh_file):
        with pytest.raises(InputError, match="several meshes are called fig"):
            _render(tmp_path / "out", mesh_file, mesh_file)

    def test_transparent_frames_have_an_alpha(self, tmp_path, mesh_file):
        _render(tmp_path, mesh_file, background="transparent")
        alphas = read_orbit(tmp_path).alphas
        assert alphas is not None and 0.2 < alphas.mean() < 0.8

    def test_damaged_mesh_leaves_no_folder(self, tmp_path):
        (tmp_path / "bad.glb").write_bytes(b"glTF")
        with pytest.raises(InputError, match=r"bad\.glb"):
            _render(tmp_path / "out", tmp_path / "bad.glb")
        assert not (tmp_path / "out").exists()
