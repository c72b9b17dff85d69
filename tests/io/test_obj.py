"""OBJ files are read as viewers show them; errors of damaged ones name the line."""

from pathlib import Path

import numpy as np
import pytest

from sv3d_jax.colors import linear_from_srgb, srgb_from_linear
from sv3d_jax.errors import InputError
from sv3d_jax.io.obj_reader import read_obj
from sv3d_jax.io.surfaces import Source
from tests.io.obj_files import ROOF, ROOF_FACES, SQUARE, TRIANGLE, read, refused

CASES = Path(__file__).parents[1] / "cases" / "meshes"


def read_case(name):
    source = Source(CASES / name)
    return read_obj(source.path.read_bytes(), source), source.remarks


def area(part):
    a, b, c = np.moveaxis(part.vertices[part.faces], 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def display(colors):
    return np.rint(255 * srgb_from_linear(np.asarray(colors, np.float64))).tolist()


# Files


@pytest.mark.parametrize("name", ["mtl_colours.obj", "kd.obj"])
def test_colors_of_the_library_beside_the_file_are_display_values(name):
    parts, remarks = read_case(name)
    expected = {"mtl_colours.obj": [204, 26, 26], "kd.obj": [255, 0, 0]}[name]
    assert [display(part.material.color[:3]) for part in parts] == [expected]
    assert parts[0].colors is None and not remarks


def test_vertex_colors_are_display_values():
    parts, remarks = read_case("vertex_colors.obj")
    assert np.abs(np.array(display(parts[0].colors)) - [204, 51, 26]).max() <= 1
    assert not remarks


def test_bytes_that_are_not_utf8_do_not_matter_in_comments():
    parts, remarks = read_case("latin1_comment.obj")
    assert sum(len(part.faces) for part in parts) == 12
    assert remarks == ["has no colour: white is used"]


def test_a_concave_polygon_covers_no_more_than_itself():
    parts, _ = read_case("concave_ngon.obj")
    assert area(parts[0]) == pytest.approx(4.0)


# Lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "marked"])
def test_ends_of_lines_marks_tabs_comments_and_lines_that_go_on(end, start):
    text = "# C:\\folder\\\nv\t0 0 0 # first\n  v 1 0 \\\n0\n\nv +0. 1.e0 -0\nvt 1\nf 1/1 \\\n 2/1 \\\n\t3/1"
    parts, _ = read((start + text).replace("\n", end))
    assert parts[0].vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert parts[0].faces.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    "face",
    [
        "f 1 2 3",
        "f 1/1 2/2 3/3",
        "f 1//1 2//1 3//1",
        "f 1/1/1 2/2/1 3/3/1",
        "f 1/1/ 2/ 3//",
        "f -3/-3/-1 -2//-1 3",
    ],
)
def test_every_form_of_corners(face):
    text = TRIANGLE + "vt 0 0\nvt 1 0\nvt 0 1\nvn 0 0 2\n" + face + "\nv 9 9 9\nvn 0 1 0\n"
    parts, _ = read(text)
    part = parts[0]
    assert part.vertices[part.faces[0]].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    has_normal = np.array(
        ["//" in c and c[-1] != "/" or c.count("/") == 2 and c[-1] != "/" for c in face.split()[1:]]
    )
    assert np.array_equal(part.normals[part.faces[0]], np.outer(has_normal, [0, 0, 1]))


def test_relative_indices_count_from_their_own_line_also_over_a_million_lines():
    block = "v {0} 0 0\nv {0} 1 0\nv {0} 0 1\nf -3 -2 -1\n"
    text = "".join(block.format(i) for i in range(120_000))  # some chunks of the reader
    part = read(text)[0][0]
    corners = part.vertices[part.faces]
    assert (corners[:, :, 0] == np.arange(120_000)[:, None]).all()
    assert (corners[:, :, 1:] == [[0, 0], [1, 0], [0, 1]]).all()


def test_faces_of_any_size_may_come_before_their_vertices():
    parts, _ = read("f 1 2 3 4\nf 1 2 3\n" + SQUARE)
    assert parts[0].faces.shape == (3, 3) and area(parts[0]) == pytest.approx(1.5)


def test_vertices_are_parted_only_where_their_corners_differ(folder):
    (folder / "m.mtl").write_text("newmtl m\nmap_Kd red green.png\n")
    text = (
        "mtllib m.mtl\nusemtl m\n"
        + SQUARE
        + "vt 0 0\nvt 1 1\nvn 0 0 1\nf 1/1/1 2/1/1 3/1/1\nf 1/2/1 3/1/1 4/1/1\n"
    )
    part = read(text, folder)[0][0]
    assert len(part.vertices) == 5
    assert part.uv[part.faces].tolist() == [[[0, 0]] * 3, [[1, 1], [0, 0], [0, 0]]]


@pytest.mark.parametrize("line, what", [("l 1 2", "lines"), ("p 1 2", "points"), ("curv 0 1 1 2", "curves")])
def test_what_is_not_drawn_is_named(line, what):
    parts, remarks = read(TRIANGLE + f"{line}\nf 1 2 3\n")
    assert len(parts[0].faces) == 1 and any(what in remark for remark in remarks)


def test_small_faces_and_foreign_lines_are_skipped_by_name():
    _, remarks = read(TRIANGLE + "f 1 2\n<html>\nf 1 2 3\n")
    assert any("line 4" in remark and "three corners" in remark for remark in remarks)
    assert any("line 5" in remark and "<html>" in remark for remark in remarks)


# Colours of vertices


def test_vertices_without_a_color_are_white_and_a_weight_is_none():
    parts, _ = read("v 0 0 0 1 0 0\nv 1 0 0\nv 0 1 0 1\nf 1 2 3\n")
    assert parts[0].colors.tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert read(TRIANGLE.replace("0\n", "0 1\n") + "f 1 2 3")[0][0].colors is None


def test_vertex_colors_are_multiplied_with_the_material(folder):
    (folder / "m.mtl").write_text("newmtl m\nKd 1 0.5 1\n")
    text = "mtllib m.mtl\nusemtl m\nv 0 0 0 .5 1 1\nv 1 0 0 .5 1 1\nv 0 1 0 .5 1 1\nf 1 2 3\n"
    part = read(text, folder)[0][0]
    half = float(linear_from_srgb(np.float64(0.5)))
    assert part.colors[0] == pytest.approx([half, 1, 1]) and part.material.color == pytest.approx(
        (1, half, 1, 1)
    )


def test_vertex_colors_up_to_255_are_told():
    parts, remarks = read("v 0 0 0 255 0 51\nv 1 0 0 0 0 0\nv 0 1 0 0 0 0\nf 1 2 3\n")
    assert display(parts[0].colors[0]) == [255, 0, 51]
    assert remarks == ["colours of vertices are taken as 0 to 255"]


# Normals


def test_faces_without_normals_are_flat_unless_smoothing_is_on():
    for switch in ("", "s off\n", "s 0\n", "s 1\ns off\n"):
        part = read(ROOF + switch + ROOF_FACES)[0][0]
        assert len(part.vertices) == 6 and not part.normals.any()


def test_smooth_faces_share_normals_weighted_by_area():
    part = read(ROOF + "s 1\n" + ROOF_FACES)[0][0]
    edge = part.vertices[:, 0] == 0
    expected = np.array([-1.0, 0, 1]) + 2 * np.array([1.0, 0, 1])  # areas 1.41 and 2.83
    assert len(part.vertices) == 6
    assert part.normals[edge] == pytest.approx(np.tile(expected / np.linalg.norm(expected), (2, 1)))
    assert part.normals[part.vertices[:, 0] == 2] == pytest.approx(np.tile([0.5**0.5, 0, 0.5**0.5], (2, 1)))


def test_groups_do_not_smooth_each_other():
    part = read(ROOF + "s 1\nf 1 2 3 4\ns 2\nf 2 5 6 3\n")[0][0]
    assert len(part.vertices) == 8
    for faces, normal in ((part.faces[:2], [-1, 0, 1]), (part.faces[2:], [1, 0, 1])):
        assert part.normals[faces].reshape(-1, 3) == pytest.approx(np.tile(np.array(normal) / 2**0.5, (6, 1)))


def test_a_group_is_smooth_across_materials():
    parts, _ = read(ROOF + "s 1\nusemtl a\nf 1 2 3 4\nusemtl b\nf 2 5 6 3\n")
    joined = np.concatenate([part.normals[part.vertices[:, 0] == 0] for part in parts])
    assert np.ptp(joined, axis=0).max() < 1e-12 and len(joined) == 4 - 2 * (len(parts) == 1)


def test_a_corner_with_a_normal_keeps_it_in_a_group():
    part = read(ROOF + "vn 0 3 0\ns 1\nf 1//1 2//1 3 4\nf 2 5 6 3\n")[0][0]
    assert part.normals[part.faces[0, 0]].tolist() == [0, 1, 0]
    assert part.normals[part.faces[3, 0]] == pytest.approx(part.normals[part.faces[1, 1]])


# Damage


@pytest.mark.parametrize(
    "text, message",
    [
        ("v 0 0\n", "is damaged: line 1 has too few numbers for a vertex"),
        (TRIANGLE + "\nv 0 zero 0\nf 1 2 3\n", "is damaged: line 5 has zero where a number is needed"),
        (TRIANGLE + "vn 0 0\n", "is damaged: line 4 has too few numbers for a normal"),
        (TRIANGLE + "v 1-2 0\n", "is damaged: line 4 has 1-2 where a number is needed"),
        (TRIANGLE + "v 1 \\\n 2 x\n", "is damaged: line 5 has x where a number is needed"),
        (TRIANGLE + "f 1 2 4\n", "is damaged: line 4 names vertex 4 of 3"),
        (TRIANGLE + "f 1/1 2/1 3/1\n", "is damaged: line 4 names texture coordinate 1 of 0"),
        (TRIANGLE + "f 1//2 2//1 3//1\nvn 0 0 1\n", "is damaged: line 4 names normal 2 of 1"),
        (
            TRIANGLE + "f 1 2 -4\nv 0 0 0\n",
            "is damaged: line 4 names vertex -4 relative to its line, but fewer come before it",
        ),
        (TRIANGLE + "f 0 1 2\n", "is damaged: line 4 has 0 where the corner of a face is needed"),
        (TRIANGLE + "f 1 2 3.5\n", "is damaged: line 4 has 3.5 where the corner of a face is needed"),
        (TRIANGLE + "f 1/2/3/4 2 3\n", "is damaged: line 4 has 1/2/3/4 where the corner of a face is needed"),
        (TRIANGLE + "f /1 2 3\n", "is damaged: line 4 has /1 where the corner of a face is needed"),
        (TRIANGLE, "has no faces"),
        ("", "has no faces"),
    ],
)
def test_damage_is_named_by_its_line(text, message):
    assert refused(text) == message


def test_indices_beyond_any_number_are_refused():
    assert "line 4 names vertex" in refused(TRIANGLE + "f 1 2 99999999999999999999999\n")
    assert "line 4 names vertex" in refused(TRIANGLE + "f 1 2 4294967297\n")


def test_too_many_faces_are_refused(monkeypatch):
    monkeypatch.setattr("sv3d_jax.io.obj_data.MAX_FACES", 3)
    assert refused(SQUARE + "f 1 2 3 4\nf 1 2 3 4\n") == "has more than 3 faces"


def test_too_many_materials_are_refused(monkeypatch):
    monkeypatch.setattr("sv3d_jax.io.obj_data.MAX_NAMES", 3)
    text = TRIANGLE + "".join(f"usemtl {name}\nf 1 2 3\n" for name in "abcd")
    assert refused(text) == "names more than 3 materials or libraries"


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused_or_read_but_nothing_else(folder, seed):
    rng = np.random.default_rng(seed)
    (folder / "m.mtl").write_text("newmtl m\nKd 1 0 0\nmap_Kd -o .5 0 red green.png\nd 0.5\n")
    text = (
        "mtllib m.mtl\nusemtl m\n"
        + ROOF
        + "vt 0 0\nvn 0 0 1\ns 1\n"
        + ROOF_FACES
        + "f 1/1/1 2//1 3 4 5 6 \\\n 1\nl 1 2\n"
    )
    alphabet = np.frombuffer(b" \n\\/#-.0123456789eEvtnfs\x00\xff\r\t\"'", np.uint8)
    library = (folder / "m.mtl").read_bytes()
    for _ in range(150):
        damaged = [bytearray(text.encode()), bytearray(library)]
        for data in damaged:
            for at in rng.integers(0, len(data), rng.integers(0, 6)):
                data[at] = rng.choice(alphabet)
        (folder / "m.mtl").write_bytes(damaged[1])
        data = bytes(damaged[0][: rng.integers(1, len(damaged[0]) + 1)])
        try:
            for part in read(data, folder)[0]:
                assert part.faces.max() < len(part.vertices)
        except InputError:
            pass
