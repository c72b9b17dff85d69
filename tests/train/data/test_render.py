"""The verb `data render`."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cameras.orbit import dynamic_orbit
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh, to_world
from sv3d_jax.io.meshes import read_mesh, write_glb
from sv3d_jax.io.orbits import read_orbit
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.train.data import render as module
from sv3d_jax.train.data.config import RenderConfig
from sv3d_jax.train.data.figures import figure_mesh
from sv3d_jax.train.data.render import run_render


def test_object_to_world_follows_the_axes_that_a_ply_states(tmp_path):
    from sv3d_jax.io.ply import write_ply

    vertices = np.array([[0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 1.0]])
    mesh = Mesh(vertices, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32))
    in_world = []
    for up in ("y", "z"):
        write_ply(tmp_path / f"{up}.ply", mesh, up=up)
        config = RenderConfig(meshes=(tmp_path / f"{up}.ply",), output=tmp_path / up, size=16, frames=3)
        run_render(config, NullProgress())
        matrix = read_orbit(tmp_path / up).object_to_world
        rows = (tmp_path / f"{up}.ply").read_bytes().split(b"end_header\n")[1]
        stored = np.frombuffer(rows, "<f4", 24).reshape(4, 6)[:, :3]
        in_world.append(stored @ matrix[:3, :3].T + matrix[:3, 3])
    np.testing.assert_allclose(*in_world, atol=1e-6)


def _render(folder, *meshes, **settings):
    values = {"frames": 3, "size": 32, **settings}
    return run_render(RenderConfig(meshes=meshes, output=folder, **values), NullProgress())


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

    def test_frames_over_white_have_their_alphas_beside_them(self, tmp_path, mesh_file):
        for name in ("white", "transparent"):
            _render(tmp_path / name, mesh_file, background=name)
        white, transparent = (read_orbit(tmp_path / name) for name in ("white", "transparent"))
        np.testing.assert_array_equal(white.alphas, transparent.alphas)
        np.testing.assert_allclose(white.images, transparent.images, atol=2.1 / 255)  # rounded, truncated
        with Image.open(tmp_path / "white" / "frames/000.png") as frame:
            assert frame.mode == "RGB"
        assert not (tmp_path / "transparent" / "alphas").exists()

    def test_overwriting_with_transparent_frames_removes_the_alphas_beside(self, tmp_path, mesh_file):
        _render(tmp_path / "out", mesh_file)
        _render(tmp_path / "out", mesh_file, background="transparent", overwrite=True)
        assert not list(tmp_path.glob("out/alphas/*"))
        assert read_orbit(tmp_path / "out").alphas is not None

    def test_damaged_mesh_leaves_no_folder(self, tmp_path):
        (tmp_path / "bad.glb").write_bytes(b"glTF")
        with pytest.raises(InputError, match=r"bad\.glb"):
            _render(tmp_path / "out", tmp_path / "bad.glb")
        assert not (tmp_path / "out").exists()

    @pytest.fixture
    def mesh_folder(self, tmp_path):
        folder = tmp_path / "meshes"
        (folder / "deeper").mkdir(parents=True)
        write_glb(folder / "one.glb", figure_mesh(1))
        write_glb(folder / "deeper" / "two.glb", figure_mesh(2))
        (folder / "notes.md").write_text("not a mesh")
        return folder

    def test_a_folder_is_searched_at_any_depth(self, tmp_path, mesh_folder):
        _render(tmp_path / "out", mesh_folder)
        found = {
            path.parent.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/**/run.json")
        }
        assert found == {"one", "deeper/two"}

    def test_a_list_names_meshes_relative_to_itself(self, tmp_path, mesh_folder):
        (mesh_folder / "list.txt").write_text("one.glb\n\nabsent.glb\ndeeper/two.glb\n")
        result = _render(tmp_path / "out", mesh_folder / "list.txt")
        assert [entry["orbit"].name for entry in result["rendered"]] == ["one", "two"]
        assert len(result["left_out"]) == 1 and "absent.glb cannot be read" in result["left_out"][0]

    @pytest.mark.parametrize(
        "content, words",
        [
            (b"", "list.txt names no mesh"),
            (b" \n\r\n", "list.txt names no mesh"),
            (b"one.glb\ncaf\xe9.glb\n", "list.txt, line 2, is not UTF-8 text"),
            ("one.glb\n".encode("utf-16"), "list.txt, line 1, is not UTF-8 text"),
            (b"one.glb\n\na\0.glb\n", "list.txt, line 3, has a null byte"),
            (None, "list.txt does not exist"),
        ],
    )
    def test_a_bad_list_is_an_error_that_names_it(self, tmp_path, mesh_folder, content, words):
        if content is not None:
            (mesh_folder / "list.txt").write_bytes(content)
        with pytest.raises(InputError, match=words):
            _render(tmp_path / "out", mesh_folder / "list.txt")

    def test_a_list_may_begin_with_a_byte_order_mark_and_names_may_have_any_letters(self, tmp_path):
        path = tmp_path / "list.txt"
        path.write_text("café.glb\r\n", encoding="utf-8-sig")
        config = RenderConfig(meshes=(path,), output=tmp_path)
        assert [task.mesh.name for task in module._tasks(config)[0]] == ["café.glb"]

    def test_of_one_mesh_in_several_formats_a_folder_gives_the_first_known(
        self, tmp_path, mesh_folder, capsys
    ):
        (mesh_folder / "one.obj").write_text("never read")
        (mesh_folder / "deeper" / "two.PLY").write_text("never read")
        (mesh_folder / "deeper" / "one.ply").write_text("of another name: deeper/one")
        config = RenderConfig(meshes=(mesh_folder,), output=tmp_path / "out", frames=3, size=32)
        result = run_render(config, Progress())
        assert [entry["mesh"].name for entry in result["rendered"]] == ["two.glb", "one.glb"]
        expected = [
            f"{mesh_folder / 'deeper' / 'two.PLY'}: two.glb is rendered",
            f"{mesh_folder / 'one.obj'}: one.glb is rendered",
        ]
        assert result["left_out"][:2] == expected and "one.ply" in result["left_out"][2]
        said = capsys.readouterr().err
        assert all(f"left out: {reason}" in said for reason in expected)

    def test_formats_come_in_the_order_in_which_they_are_known(self, tmp_path):
        names = ["a.ply", "a.obj", "a.gltf", "b.ply", "b.obj", "c.ply", "c.glb", "c.gltf"]
        for name in names:
            (tmp_path / name).touch()
        tasks, left_out = module._tasks(RenderConfig(meshes=(tmp_path,), output=tmp_path / "out"))
        assert [task.mesh.name for task in tasks] == ["a.gltf", "b.obj", "c.glb"]
        assert len(left_out) == 5

    @pytest.mark.parametrize(
        "outer, inner",
        [("x.ply", "x/frames.ply"), ("a/x.glb", "a/x/alphas/c.ply"), ("x.ply", "x/frames/000.ply")],
    )  # fmt: skip
    def test_an_orbit_among_the_frames_of_another_is_refused_with_both_names(self, tmp_path, outer, inner):
        for name in (outer, inner):
            (tmp_path / "meshes" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "meshes" / name).touch()
        with pytest.raises(InputError, match="would lie among the frames of") as error:
            _render(tmp_path / "out", tmp_path / "meshes")
        assert all(str(tmp_path / "meshes" / name) in error.value.message for name in (outer, inner))
        assert not (tmp_path / "out").exists()

    def test_so_is_one_inside_that_of_a_mesh_given_by_itself(self, tmp_path):
        for name in ("x.ply", "meshes/x/frames.ply"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        with pytest.raises(InputError, match="would lie among the frames of"):
            _render(tmp_path / "out", tmp_path / "meshes", tmp_path / "x.ply")

    def test_folders_whose_names_begin_alike_lie_side_by_side(self, tmp_path):
        for name in ("x.ply", "xy.ply", "xy_/x.ply", "x/y.ply"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        tasks, left_out = module._tasks(RenderConfig(meshes=(tmp_path,), output=tmp_path / "out"))
        assert len(tasks) == 4 and not left_out

    def test_bad_meshes_of_a_folder_are_named_and_left_out(self, tmp_path, mesh_folder):
        (mesh_folder / "bad.glb").write_bytes(b"glTF")
        result = _render(tmp_path / "out", mesh_folder)
        assert len(result["rendered"]) == 2
        [reason] = result["left_out"]
        assert "bad.glb" in reason and not (tmp_path / "out" / "bad").exists()

    def test_a_folder_without_a_good_mesh_is_an_error(self, tmp_path):
        (tmp_path / "meshes").mkdir()
        for name in ("a.glb", "b.glb"):
            (tmp_path / "meshes" / name).write_bytes(b"glTF")
        with pytest.raises(InputError, match="none of 2 meshes"):
            _render(tmp_path / "out", tmp_path / "meshes")

    def test_a_second_run_renders_only_what_is_new(self, tmp_path, mesh_folder):
        _render(tmp_path / "out", mesh_folder)
        frame = tmp_path / "out" / "one" / "frames" / "000.png"
        before = frame.stat().st_mtime_ns
        write_glb(mesh_folder / "a_new_one.glb", figure_mesh(3))
        assert len(_render(tmp_path / "out", mesh_folder)["rendered"]) == 3
        assert frame.stat().st_mtime_ns == before

    def test_seeds_count_up_over_files_and_follow_names_in_folders(self, tmp_path, mesh_folder):
        def seeds(*meshes):
            config = RenderConfig(meshes=meshes, output=tmp_path, seed=5)
            return {task.mesh.stem: task.seed for task in module._tasks(config)[0]}

        one, two = mesh_folder / "one.glb", mesh_folder / "deeper" / "two.glb"
        assert seeds(one, two) == {"one": 5, "two": 6} and seeds(two) == {"two": 5}
        before = seeds(mesh_folder)
        write_glb(mesh_folder / "a_new_one.glb", figure_mesh(3))
        assert before.items() < seeds(mesh_folder).items()

    def test_worker_processes_render_the_same_bytes(self, tmp_path, mesh_folder):
        for workers in (0, 1):
            _render(tmp_path / str(workers), mesh_folder, workers=workers, compile_cache=False)
        pairs = [(tmp_path / n / "deeper/two/frames/001.png").read_bytes() for n in ("0", "1")]
        assert pairs[0] == pairs[1]

    def test_elevations_of_meshes_are_spread_between_two(self, tmp_path, mesh_folder):
        _render(tmp_path / "out", mesh_folder, orbit="static", elevation=-5.0, elevation_max=30.0)
        elevations = [read_orbit(tmp_path / "out" / name).elevations_deg[0] for name in ("one", "deeper/two")]
        assert elevations[0] != elevations[1] and all(-5.0 <= value <= 30.0 for value in elevations)

    def test_every_fourth_of_84_dynamic_views_is_the_orbit_of_21(self, tmp_path, mesh_file):
        _render(tmp_path / "84", mesh_file, orbit="dynamic", frames=84, size=16)
        orbit = read_orbit(tmp_path / "84")
        expected = dynamic_orbit(21)
        np.testing.assert_allclose(orbit.azimuths_deg[3::4], expected.azimuths_deg, atol=1e-9)
        np.testing.assert_allclose(orbit.elevations_deg[3::4], expected.elevations_deg, atol=1e-9)

    def test_an_hdr_file_takes_the_place_of_the_light(self, tmp_path, mesh_file):
        sky = tmp_path / "sky.hdr"
        sky.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n" + bytes([128, 0, 0, 129]))
        _render(tmp_path / "red", mesh_file, hdr=(sky,), background="transparent")
        orbit = read_orbit(tmp_path / "red")
        inside = orbit.images[orbit.alphas == 1.0]
        assert inside[:, 0].max() > 0.3 and inside[:, 1:].max() == 0.0

    def test_a_mesh_whose_name_would_lead_out_of_the_output_is_left_out(self, tmp_path, mesh_file):
        (tmp_path / "meshes").mkdir()
        for name in ("a.glb", "...glb"):  # without suffix: "a" and ".."
            (tmp_path / "meshes" / name).write_bytes(mesh_file.read_bytes())
        result = _render(tmp_path / "out", tmp_path / "meshes")
        assert len(result["left_out"]) == 1 and "no folder inside" in result["left_out"][0]
        assert {path.name for path in tmp_path.iterdir()} == {"meshes", "out"}
        assert (tmp_path / "out" / "a" / "run.json").is_file()

    def test_names_inside_a_mesh_name_no_output(self, tmp_path):
        name = "../../escaped"
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.obj").write_text(
            f"mtllib a.mtl\no {name}\ng {name}\nusemtl {name}\nv 0 0 0\nv 1 0 0\nv 0 1 1\nf 1 2 3\n"
        )
        (tmp_path / "in" / "a.mtl").write_text(f"newmtl {name}\nKd 1 0 0\n")
        _render(tmp_path / "out", tmp_path / "in" / "a.obj")
        written = {path.relative_to(tmp_path / "out").parts[0] for path in (tmp_path / "out").rglob("*")}
        expected = {"frames", "alphas", "cameras.json", "contact.png", "run.json", ".lock", ".stages.json"}
        assert written == expected and {path.name for path in tmp_path.iterdir()} == {"in", "out"}


@pytest.mark.filterwarnings("ignore:SV3D is trained")
def test_cameras_that_cannot_be_leave_no_folder_behind(tmp_path, mesh_file):
    """A folder with the settings of the wrong command would refuse the corrected one."""
    with pytest.raises(InputError, match="no dynamic orbit"):
        _render(tmp_path / "out", mesh_file, orbit="dynamic", elevation=90.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("command_line")
@pytest.mark.parametrize("values", [{"frames": 84, "size": 2048}, {"frames": 128, "size": 1251}])
def test_frames_that_could_not_be_read_again_are_refused(tmp_path, values):
    """Alphas in files of their own count as the reader counts them."""
    config = RenderConfig(meshes=(tmp_path / "a.glb",), output=tmp_path / "out", **values)
    with pytest.raises(InputError, match="is not read again") as refused:
        config.check_inputs()
    side = int(refused.value.hint.split()[1])
    dataclasses.replace(config, size=side).check_inputs()
    dataclasses.replace(config, background="transparent").check_inputs()


def test_a_mesh_among_the_frames_of_its_own_orbit_is_refused(tmp_path):
    (tmp_path / "frames").mkdir()
    write_glb(tmp_path / "frames" / "a.glb", figure_mesh(0))
    with pytest.raises(InputError, match="is an input of this run"):
        _render(tmp_path, tmp_path / "frames" / "a.glb")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["a.glb"]
