"""The files of a reconstruction, as other programs read them."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.colors import linear_from_srgb, srgb_from_linear
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io import gltf_data, meshes
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.recon import export
from sv3d_jax.recon.bake import textured
from sv3d_jax.recon.export import (
    relit,
    render_shaded,
    show_normals,
    with_vertex_colors,
    write_mesh,
    write_meshes,
    write_results,
)
from sv3d_jax.render.lighting import SoftLight
from tests.geometry.test_decimate import ball, is_watertight
from tests.recon.scenes import ball_orbit

SIDE = 64


def colors_at(points, normals):
    return 0.5 + 0.05 * points  # within a ball of radius 9


@pytest.fixture(scope="module")
def baked() -> Mesh:
    return textured(ball(), colors_at, SIDE, max_faces=600)


@pytest.fixture(scope="module")
def folder(baked, tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh")
    for suffix in ("glb", "obj", "ply"):
        write_mesh(path / f"mesh.{suffix}", baked)
    return path


@pytest.fixture
def small(monkeypatch):
    """Videos that take little time."""
    monkeypatch.setattr(export, "MIN_VIDEO_SIDE", 32)
    monkeypatch.setattr(export, "TURNTABLE_FRAMES", 6)


def seen_from(direction, mesh: Mesh, shaders, size: int = 16) -> np.ndarray:
    """Pictures (shaders h w 3, in [0, 1]) of a mesh of radius 9, far away along an axis of the world."""
    from sv3d_jax.cameras.pose import look_at

    azimuth, elevation = direction
    pose = look_at(np.array([azimuth]), np.array([elevation]), 900.0)
    focal, middle = np.full((1, 2), 50.0 * size), np.full((1, 2), size / 2)
    return render_shaded(mesh, pose, focal, middle, size, size, shaders)[:, 0] / 255


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
def test_every_file_holds_one_watertight_surface(folder, suffix):
    mesh = read_mesh(folder / f"mesh.{suffix}")
    place = np.unique(mesh.vertices, axis=0, return_inverse=True)[1].reshape(-1)
    assert is_watertight(Mesh(mesh.vertices, place[mesh.faces]))


def test_glb_is_matt_and_carries_its_picture(folder, baked):
    text, binary = gltf_data.split_glb((folder / "mesh.glb").read_bytes())
    document = json.loads(text)
    [material] = document["materials"]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0.0
    assert material["pbrMetallicRoughness"]["roughnessFactor"] == 1.0
    assert document["images"][0]["mimeType"] == "image/png" and "uri" not in document["images"][0]
    assert np.array_equal(read_mesh(folder / "mesh.glb").texture, np.round(baked.texture * 255))


def test_glb_is_shaded_without_seams(folder):
    import trimesh

    [surface] = trimesh.load_scene(folder / "mesh.glb", process=False).geometry.values()
    outwards = surface.vertices / np.linalg.norm(surface.vertices, axis=1, keepdims=True)
    assert (surface.vertex_normals * outwards).sum(axis=1).min() > 0.99
    place = np.unique(surface.vertices, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(place, kind="stable")
    same = np.flatnonzero(np.diff(place[order]) == 0)
    assert len(same) > 20
    assert np.array_equal(surface.vertex_normals[order[same]], surface.vertex_normals[order[same + 1]])


def test_trimesh_reads_the_obj_with_its_picture(folder, baked):
    import trimesh

    mesh = trimesh.load(folder / "mesh.obj", process=False)
    assert np.array_equal(np.asarray(mesh.visual.material.image), np.round(baked.texture * 255))
    colors = mesh.visual.to_color().vertex_colors[:, :3] / 255
    world = mesh.vertices @ meshes.world_from_file("y")[:3, :3].T
    assert np.abs(colors - colors_at(world, None)).mean() < 0.02  # trimesh takes the nearest texel


def test_obj_has_every_vertex_once(folder, baked):
    lines = (folder / "mesh.obj").read_text().splitlines()
    assert sum(line.startswith("v ") for line in lines) == len(np.unique(baked.vertices, axis=0))
    assert sum(line.startswith("vt ") for line in lines) == len(baked.uv)


def test_obj_and_ply_are_smooth_across_the_seams_of_the_texture(folder):
    lines = (folder / "mesh.obj").read_text().splitlines()
    corners = {corner for line in lines if line.startswith("f ") for corner in line.split()[1:]}
    pairs = {(place, normal) for place, _, normal in (corner.split("/") for corner in corners)}
    assert len(pairs) == len({place for place, _ in pairs}) < len(corners)
    import trimesh

    ply = trimesh.load(folder / "mesh.ply", process=False)
    places = np.unique(ply.vertices, axis=0)
    assert (
        len(places)
        == len(np.unique(np.hstack([ply.vertices, ply.vertex_normals]), axis=0))
        < len(ply.vertices)
    )


def test_ply_alone_can_be_z_up(baked, tmp_path):
    for up in ("y", "z"):
        (tmp_path / up).mkdir()
        write_meshes(tmp_path / up, baked, ply_up=up)
    files = {up: {path.name: path.read_bytes() for path in (tmp_path / up).iterdir()} for up in ("y", "z")}
    assert {name for name in files["y"] if files["y"][name] != files["z"][name]} == {"mesh.ply"}
    assert b"+Z up" in files["z"]["mesh.ply"]


def test_the_mesh_stands_the_same_way_round_in_every_format(folder, baked, tmp_path):
    import trimesh
    from pxr import Usd, UsdGeom

    write_mesh(tmp_path / "mesh.usdz", baked)
    stage = Usd.Stage.Open(str(tmp_path / "mesh.usdz"))
    points = {"usdz": np.array(UsdGeom.Mesh.Get(stage, "/object/mesh").GetPointsAttr().Get())}
    for suffix in ("glb", "obj", "ply"):
        points[suffix] = trimesh.load_scene(folder / f"mesh.{suffix}", process=False).to_mesh().vertices
    front_is_z = baked.vertices[:, [1, 2, 0]]
    for suffix, places in points.items():
        distances = np.linalg.norm(places[:, None] - front_is_z, axis=2)
        assert max(distances.min(0).max(), distances.min(1).max()) < 1e-5, suffix


def test_ply_has_the_colours_of_the_texture(folder):
    mesh = read_mesh(folder / "mesh.ply")
    assert (
        np.abs(mesh.vertex_colors - colors_at(mesh.vertices, None)).max() < 0.06
    )  # a texel is 0.7, of slope 0.05


def test_a_texture_times_vertex_colors_is_the_colour_of_a_vertex(baked):
    from dataclasses import replace

    shade = np.full(baked.vertices.shape, 0.5, np.float32)
    both = with_vertex_colors(replace(baked, vertex_colors=shade)).vertex_colors
    alone = with_vertex_colors(baked).vertex_colors
    product = linear_from_srgb(shade) * linear_from_srgb(alone)  # of light
    np.testing.assert_allclose(both, srgb_from_linear(product), atol=1e-5)


def test_other_suffixes_are_refused_with_the_known_ones(baked, tmp_path):
    with pytest.raises(InputError, match="mesh.fbx") as caught:
        write_mesh(tmp_path / "mesh.fbx", baked)
    assert ".glb" in caught.value.hint


# USDZ


def test_usdz_without_the_extra_names_the_line_that_installs_it(baked, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(InputError, match="usd-core") as caught:
        write_mesh(tmp_path / "mesh.usdz", baked)
    assert caught.value.hint == 'pip install "sv3d_jax[usd]"'
    assert not (tmp_path / "mesh.usdz").exists()


def test_usdz_holds_the_surface_and_its_picture(baked, tmp_path):
    from pxr import Usd, UsdGeom, UsdShade

    write_mesh(tmp_path / "mesh.usdz", baked)
    stage = Usd.Stage.Open(str(tmp_path / "mesh.usdz"))
    surface = UsdGeom.Mesh.Get(stage, "/object/mesh")
    world = np.array(surface.GetPointsAttr().Get()) @ meshes.world_from_file("y")[:3, :3].T
    np.testing.assert_allclose(world, baked.vertices, atol=1e-6)
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    picture = UsdShade.Shader.Get(stage, "/object/material/texture").GetInput("file").Get().resolvedPath
    assert picture.endswith("[mesh.png]")


def test_usdz_passes_the_checks_of_its_makers(baked, tmp_path):
    from pxr import Usd, UsdGeom, UsdValidation

    write_mesh(tmp_path / "mesh.usdz", baked)
    stage = Usd.Stage.Open(str(tmp_path / "mesh.usdz"))
    checks = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    errors = UsdValidation.ValidationContext(checks).Validate(stage)
    assert len(checks) > 20 and [error.GetErrorAsString() for error in errors] == []
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    assert UsdGeom.Mesh.Get(stage, "/object/mesh").GetNormalsInterpolation() == UsdGeom.Tokens.vertex


def test_usdz_is_byte_identical_when_written_again(baked, tmp_path):
    for name in ("a.usdz", "b.usdz"):
        write_mesh(tmp_path / name, baked)
    assert (tmp_path / "a.usdz").read_bytes() == (tmp_path / "b.usdz").read_bytes()


# Pictures


@pytest.mark.parametrize(
    "direction, color",
    [((0.0, 0.0), [1, 0.5, 0.5]), ((90.0, 0.0), [0.5, 1, 0.5]), ((0.0, 90.0), [0.5, 0.5, 1])],
)
def test_normals_towards_the_viewer_have_the_colour_of_their_axis(baked, direction, color):
    [picture] = seen_from(direction, baked, [show_normals])
    np.testing.assert_allclose(
        picture[7:9, 7:9].mean((0, 1)), color, atol=0.03
    )  # faces are 1/13 of a turn wide


def test_a_texture_is_drawn_as_the_colours_it_holds(baked):
    shaders = [export.show_colors]
    texture = seen_from((30.0, 20.0), baked, shaders)
    vertices = seen_from((30.0, 20.0), with_vertex_colors(baked), shaders)
    assert np.abs(texture - vertices).mean() < 0.01


def test_light_goes_round_once_against_the_turn_of_the_views():
    light = SoftLight(np.array([1.0, 0.0, 0.0]), 0.0)
    look = relit(light, 4)
    axes = np.array([[[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]]])
    shades = [look(view, np.ones((1, 4, 3)), axes)[0, :, 0] for view in range(5)]
    expected = [[1, 0.5, 0, 0.5], [0.5, 0, 0.5, 1], [0, 0.5, 1, 0.5], [0.5, 1, 0.5, 0], [1, 0.5, 0, 0.5]]
    np.testing.assert_allclose(shades, expected, atol=1e-6)


def test_whatever_shades_can_light_a_video(baked):
    class Dark:
        def shade(self, normals):
            return np.zeros(normals.shape[:-1])

    [picture] = seen_from((0.0, 0.0), baked, [relit(Dark(), 8)])
    assert picture[7:9, 7:9].max() == 0.0 and picture[0, 0].min() == 1.0


def test_results_of_a_textured_mesh_are_all_there(baked, small, tmp_path):
    paths = write_results(tmp_path, baked, ball_orbit(size=32, num_frames=3))
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in paths} == {
        *(f"mesh.{suffix}" for suffix in ("glb", "obj", "mtl", "png", "ply")),
        *("turntable.mp4", "relit.mp4", "albedo.png", "normals.png", "comparison.png"),
    }


def test_the_same_mesh_gives_the_same_files_and_the_same_frames(baked, small, tmp_path, monkeypatch):
    videos = []
    monkeypatch.setattr(export, "write_video", lambda path, frames, fps: videos.append(frames))
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, baked, ball_orbit(size=32, num_frames=3))
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]  # without the videos: encoders do not promise their bytes
    assert all(np.array_equal(first, second) for first, second in zip(videos[:2], videos[2:], strict=True))


def test_sheets_show_six_views_each(baked, small, tmp_path):
    write_results(tmp_path, baked, ball_orbit(size=32, num_frames=3))
    albedo, normals = (np.asarray(Image.open(tmp_path / name)) for name in ("albedo.png", "normals.png"))
    assert albedo.shape == normals.shape
    assert (albedo != normals).any()


def test_results_without_a_texture_have_vertex_colors(small, tmp_path):
    mesh = ball(12, 4.0)
    colors = np.full(mesh.vertices.shape, 0.25, np.float32)
    paths = write_results(
        tmp_path, Mesh(mesh.vertices, mesh.faces, colors), ball_orbit(size=32, num_frames=3)
    )
    names = {path.name for path in paths}
    assert "mesh.obj" in names and not {"mesh.mtl", "mesh.png"} & names
    assert np.abs(read_mesh(tmp_path / "mesh.glb").vertex_colors - 0.25).max() < 1 / 255
