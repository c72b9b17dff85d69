"""Materials of OBJ files: libraries are found and read as viewers do; damaged ones are refused by name."""

import numpy as np
import pytest

from tests.io.obj_files import SQUARE, TRIANGLE, read, refused
from tests.io.picture_files import save_picture


def material(folder, lines, face="usemtl m\nf 1 2 3\n"):
    """The material of an MTL file with these lines, and the remarks."""
    (folder / "m.mtl").write_text("newmtl m\n" + lines)
    parts, remarks = read("mtllib m.mtl\n" + TRIANGLE + face, folder)
    assert len(parts) == 1
    return parts[0].material, remarks


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


def test_damage_of_a_library_is_named_by_its_line(folder):
    (folder / "m.mtl").write_text("newmtl m\nKd 1 red 0\n")
    assert refused(f"mtllib m.mtl\n{TRIANGLE}f 1 2 3\n", folder) == (
        "m.mtl is damaged: line 2 has red where a number is needed"
    )


def test_a_picture_that_is_damaged_is_refused_by_name(folder):
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "m.mtl").write_text("newmtl m\nmap_Kd bad.png\n")
    assert "bad.png" in refused(f"mtllib m.mtl\n{TRIANGLE}usemtl m\nf 1 2 3\n", folder)
