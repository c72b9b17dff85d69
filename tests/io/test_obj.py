"""OBJ files are read as viewers show them; errors of damaged ones name the line."""

from pathlib import Path

import numpy as np
import pytest

from sv3d_jax.colors import linear_from_srgb, srgb_from_linear
from sv3d_jax.errors import InputError
from sv3d_jax.io.obj_reader import read_obj
from sv3d_jax.io.surfaces import Source

CASES = Path(__file__).parents[1] / "cases" / "meshes"
TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
# Two faces of a roof, 90 degrees apart, that share an edge along y; the right one is larger.
ROOF = "v -1 0 -1\nv 0 0 0\nv 0 1 0\nv -1 1 -1\nv 2 0 -2\nv 2 1 -2\n"
ROOF_FACES = "f 1 2 3 4\nf 2 5 6 3\n"


def read(text, folder=Path("nowhere")):
    """The parts of an OBJ file and the remarks."""
    source = Source(folder / "mesh.obj")
    return read_obj(text if isinstance(text, bytes) else text.encode(), source), source.remarks


def read_case(name):
    source = Source(CASES / name)
    return read_obj(source.path.read_bytes(), source), source.remarks


def refused(text, folder=Path("nowhere")):
    with pytest.raises(InputError) as caught:
        read(text, folder)
    return caught.value.message


def area(part):
    a, b, c = np.moveaxis(part.vertices[part.faces], 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def display(colors):
    return np.rint(255 * srgb_from_linear(np.asarray(colors, np.float64))).tolist()


def save_picture(path, pixels):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def material(folder, lines, face="usemtl m\nf 1 2 3\n"):
    """The material of an MTL file with these lines, and the remarks."""
    (folder / "m.mtl").write_text("newmtl m\n" + lines)
    parts, remarks = read("mtllib m.mtl\n" + TRIANGLE + face, folder)
    assert len(parts) == 1
    return parts[0].material, remarks


@pytest.fixture
def folder(tmp_path):
    """A folder with a texture of 2x1 texels, red and green, and one with an alpha."""
    save_picture(tmp_path / "red green.png", [[[255, 0, 0], [0, 255, 0]]])
    save_picture(tmp_path / "clear.png", [[[9, 9, 9, 0], [9, 9, 9, 255]]])
    save_picture(tmp_path / "grey.png", [[0, 100]])
    return tmp_path


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


# Materials


def test_one_part_for_each_material_in_the_order_of_the_file(folder):
    (folder / "a b.mtl").write_text("newmtl red one\nKd 1 0 0\n")
    (folder / "c.MTL").write_text("newmtl blue\nKd 0 0 1\n")
    text = (
        "mtllib a b.mtl c.mtl\n"
        + SQUARE
        + "usemtl red one\nf 1 2 3\nusemtl BLUE\nf 1 3 4\nusemtl red one\nf 2 3 4\n"
    )
    parts, remarks = read(text, folder)
    assert [len(part.faces) for part in parts] == [2, 1]
    assert [part.material.color for part in parts] == [(1, 0, 0, 1), (0, 0, 1, 1)]
    assert not remarks


@pytest.mark.parametrize(
    "name", ["m.mtl", '"m.mtl"', ".\\m.mtl", "M.MTL", "./sub/../m.mtl", "m.mtl # with a word"]
)
def test_names_of_libraries(folder, name):
    (folder / "m.mtl").write_bytes(b"\xef\xbb\xbfnewmtl m\r\nKd 1 0 0 \\\r\n\r\n")
    parts, _ = read(f"mtllib {name}\n{TRIANGLE}usemtl m\nf 1 2 3\n", folder)
    assert parts[0].material.color == (1, 0, 0, 1)


def test_the_library_of_the_same_name_is_read_where_none_is_named(folder):
    (folder / "mesh.mtl").write_text("newmtl m\nKd 1 0 0\n")
    parts, remarks = read(TRIANGLE + "usemtl m\nf 1 2 3\n", folder)
    assert parts[0].material.color == (1, 0, 0, 1) and not remarks


def test_what_is_missing_is_remarked_by_name(folder):
    (folder / "m.mtl").write_text("newmtl m\nKd 1 0 0\nmap_Kd lost.png\n")
    text = "mtllib gone.mtl m.mtl\n" + SQUARE + "usemtl m\nf 1 2 3\nusemtl unknown\nf 1 3 4\n"
    parts, remarks = read(text, folder)
    assert [part.material.color for part in parts] == [(1, 0, 0, 1), (1, 1, 1, 1)]
    for name in ("gone.mtl", "lost.png", "unknown"):
        assert any(name in remark for remark in remarks)
    assert "1 of its triangles have no colour: white is used" in remarks


@pytest.mark.parametrize(
    "name", ["../m.mtl", "/etc/m.mtl", "C:\\m.mtl", "https://example.org/m.mtl", "a/../../m.mtl"]
)
def test_references_that_leave_the_folder_are_refused_by_name(folder, name):
    assert name in refused(f"mtllib {name}\n{TRIANGLE}f 1 2 3\n", folder)
    (folder / "m.mtl").write_text(f"newmtl m\nmap_Kd {name}\n")
    assert name in refused(f"mtllib m.mtl\n{TRIANGLE}usemtl m\nf 1 2 3\n", folder)


def test_links_that_leave_the_folder_are_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    save_picture(outside / "p.png", [[[1, 2, 3]]])
    (folder / "link").symlink_to(outside)
    (folder / "m.mtl").write_text("newmtl m\nmap_Kd link/p.png\n")
    assert "link/p.png" in refused(f"mtllib m.mtl\n{TRIANGLE}usemtl m\nf 1 2 3\n", folder)


def test_pictures_are_named_from_the_folder_of_their_library(folder):
    save_picture(folder / "sub" / "p.png", [[[1, 2, 3]]])
    (folder / "sub" / "m.mtl").write_text("newmtl m\nmap_Kd p.png\nnewmtl n\nmap_Kd ../red green.png\n")
    text = "mtllib sub/m.mtl\n" + SQUARE + "usemtl m\nf 1 2 3\nusemtl n\nf 1 3 4\n"
    parts, _ = read(text, folder)
    assert [part.material.picture.shape for part in parts] == [(1, 1, 3), (1, 2, 3)]


@pytest.mark.parametrize("kd", ["", "Kd 1 1 1\n", "Kd 0 0 0\n", "Kd 0.8 0.8 0.8\n", "Kd 1 0 0\n"])
def test_a_picture_alone_is_the_color_and_another_kd_is_remarked(folder, kd):
    look, remarks = material(folder, kd + "map_Kd red green.png\n")
    assert look.color == (1, 1, 1, 1) and look.picture.tolist() == [[[255, 0, 0], [0, 255, 0]]]
    assert any("Kd is ignored" in remark for remark in remarks) == (kd not in ("", "Kd 1 1 1\n"))


def test_materials_share_a_picture(folder):
    (folder / "m.mtl").write_text("newmtl a\nmap_Kd red green.png\nnewmtl b\nmap_Kd .\\RED GREEN.PNG\n")
    parts, _ = read("mtllib m.mtl\n" + SQUARE + "usemtl a\nf 1 2 3\nusemtl b\nf 1 3 4\n", folder)
    assert parts[0].material.picture is parts[1].material.picture


@pytest.mark.parametrize(
    "options, scale, offset, wrap",
    [
        ("", (1, 1), (0, 0), "repeat"),
        ("-s 2 3 1 -o 0.5 .25 0", (2, 3), (0.5, 0.25), "repeat"),
        ("-o 0.5 -s 4", (4, 1), (0.5, 0), "repeat"),
        ("-clamp on", (1, 1), (0, 0), "clamp"),
        (
            "-blendu on -blendv off -cc on -mm 0 1 -t 0 0 0 -texres 512 -bm 1 -imfchan l -clamp off",
            (1, 1),
            (0, 0),
            "repeat",
        ),
    ],
)
@pytest.mark.parametrize(
    "name", ["red green.png", '"red green.png"', "Red_Green.PNG", "textures\\red green.png"]
)
def test_options_of_pictures(folder, options, scale, offset, wrap, name):
    (folder / "m.mtl").write_text(f"newmtl m\nmap_kd {options} {name}\n")
    text = "mtllib m.mtl\n" + TRIANGLE + "vt 1 1\nvt 0 0\nvt .5 .25\nusemtl m\nf 1/1 2/2 3/3\n"
    part = read(text, folder)[0][0]
    assert part.material.picture is not None and part.material.wrap == (wrap, wrap)
    expected = np.array([[1, 1], [0, 0], [0.5, 0.25]]) * scale + offset
    assert part.uv[part.faces[0]] == pytest.approx(expected)


def test_a_picture_without_texture_coordinates_is_told(folder):
    (folder / "m.mtl").write_text("newmtl m\nmap_Kd red green.png\n")
    parts, remarks = read("mtllib m.mtl\n" + TRIANGLE + "usemtl m\nf 1 2 3\n", folder)
    assert not parts[0].uv.any() and any("texture coordinates" in remark for remark in remarks)


@pytest.mark.parametrize(
    "lines, alpha, kind",
    [
        ("d 1\n", 1, "opaque"),
        ("d 0.25\n", 0.25, "blend"),
        ("d -halo 0.5\n", 0.5, "blend"),
        ("Tr 0.25\n", 0.75, "blend"),
        ("Tr 0\n", 1, "opaque"),
        ("d 1\nTr 1\n", 1, "opaque"),
        ("Tr 1\n", 1, "opaque"),
    ],
)
def test_alpha_of_materials(folder, lines, alpha, kind):
    look, remarks = material(folder, "Kd 1 0 0\n" + lines)
    assert look.color == (1, 0, 0, alpha) and look.alpha == kind
    assert any("Tr 1" in remark for remark in remarks) == (lines == "Tr 1\n")


@pytest.mark.parametrize("name, alphas", [("clear.png", [0, 255]), ("grey.png", [0, 100])])
def test_alpha_of_a_picture_is_its_own_else_its_brightness(folder, name, alphas):
    look, _ = material(folder, f"d 0.5\nmap_Kd red green.png\nmap_d {name}\n")
    assert look.picture.tolist() == [[[255, 0, 0, alphas[0]], [0, 255, 0, alphas[1]]]]
    assert look.color == (1, 1, 1, 0.5) and look.alpha == "blend"
    look, _ = material(folder, f"Kd 1 0 0\nmap_d {name}\n")
    assert look.picture.tolist() == [[[255, 255, 255, alpha] for alpha in alphas]]
    assert look.color == (1, 0, 0, 1)


def test_the_alpha_of_a_picture_counts_for_nothing_where_the_material_is_opaque(folder):
    look, _ = material(folder, "map_Kd clear.png\n")
    assert look.alpha == "opaque"


@pytest.mark.parametrize(
    "lines, expected", [("Kd 0 0 0\nKe 0 1 0\n", (0, 1, 0)), ("Kd 1 0 0\nKe 0 1 0\n", (1, 0, 0))]
)
def test_what_a_black_material_emits_is_its_color(folder, lines, expected):
    look, remarks = material(folder, lines)
    assert look.color[:3] == expected
    assert bool(remarks) == (expected == (1, 0, 0))


def test_a_black_material_that_emits_a_picture_shows_it(folder):
    look, _ = material(folder, "Kd 0 0 0\nmap_Ke red green.png\n")
    assert look.picture.shape == (1, 2, 3) and look.color == (1, 1, 1, 1)


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


def test_damage_of_a_library_is_named_by_its_line(folder):
    (folder / "m.mtl").write_text("newmtl m\nKd 1 red 0\n")
    assert refused(f"mtllib m.mtl\n{TRIANGLE}f 1 2 3\n", folder) == (
        "m.mtl is damaged: line 2 has red where a number is needed"
    )


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


def test_a_picture_that_is_damaged_is_refused_by_name(folder):
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "m.mtl").write_text("newmtl m\nmap_Kd bad.png\n")
    assert "bad.png" in refused(f"mtllib m.mtl\n{TRIANGLE}usemtl m\nf 1 2 3\n", folder)
