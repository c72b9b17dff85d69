"""PLY files: all variants that scanners, MeshLab and others write, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from sv3d_jax.colors import linear_from_srgb, srgb_from_linear
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io import ply_data
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.io.ply import write_ply
from sv3d_jax.io.ply_reader import read_ply
from sv3d_jax.io.surfaces import Source
from tests.io.picture_files import save_picture

CASES = Path(__file__).parents[1] / "cases" / "meshes"
SQUARE = [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]


def parts_of(text, tmp_path, name="a.ply"):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(data)
    source = Source(tmp_path / name)
    return read_ply(data, source), source.remarks


def ascii_ply(
    vertex_properties, vertices, faces, face_properties="list uchar int vertex_indices", comments=()
):
    lines = ["ply", "format ascii 1.0", *comments, f"element vertex {len(vertices)}"]
    lines += [f"property {name}" for name in vertex_properties.split(", ")]
    lines += [f"element face {len(faces)}", *(f"property {name}" for name in face_properties.split(", "))]
    rows = [" ".join(map(str, row)) for row in [*vertices, *faces]]
    return "\n".join([*lines, "end_header", *rows, ""])


XYZ = "float x, float y, float z"


def triangles(part):
    return part.vertices[part.faces]


def test_colours_of_vertices_are_display_values():
    mesh = read_mesh(CASES / "vertex_colors_255.ply")
    assert np.abs(mesh.vertex_colors * 255 - [204, 51, 26]).max() < 0.5


def test_a_picture_beside_the_file_is_its_texture():
    mesh = read_mesh(CASES / "texture_file.ply")
    assert np.abs(mesh.texture.reshape(-1, 3).astype(int) - [200, 120, 60]).max() <= 1
    assert mesh.remarks == ()


def encoded(order, vertices, faces, count="u1", index="i4"):
    """A binary PLY with positions as doubles and faces of any size."""
    names = {"u1": "uchar", "i4": "int", "u2": "ushort", "i2": "short", "u4": "uint", "f4": "float"}
    form = "binary_little_endian" if order == "<" else "binary_big_endian"
    header = ["ply", f"format {form} 1.0", f"element vertex {len(vertices)}"]
    header += [f"property double {axis}" for axis in "xyz"]
    header += [f"element face {len(faces)}", f"property list {names[count]} {names[index]} vertex_index"]
    body = np.asarray(vertices, order + "f8").tobytes()
    for face in faces:
        body += np.array([len(face)], order + count).tobytes() + np.array(face, order + index).tobytes()
    return "\n".join([*header, "end_header", ""]).encode() + body


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("count, index", [("u1", "i4"), ("u2", "u4"), ("i4", "i2"), ("u1", "u1")])
@pytest.mark.parametrize(
    "faces", [[(0, 1, 2), (0, 2, 3)], [(0, 1, 2, 3)], [(0, 1, 2), (0, 1, 2, 3), (3, 2, 1)]]
)
def test_binary_files_of_either_order_and_any_types(tmp_path, order, count, index, faces):
    [part], remarks = parts_of(encoded(order, SQUARE, faces, count, index), tmp_path)
    corners = triangles(part)
    area = (
        np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
        / 2
    )
    assert area == pytest.approx({2: 4, 1: 4, 3: 8}[len(faces)])
    assert remarks == ["has no colour: white is used"]
    assert part.normals is None


def test_concave_polygons_keep_their_area(tmp_path):
    text = ascii_ply(XYZ, [(2, -1, 0), (0, 2, 0), (-2, -1, 0), (0, 0, 0)], [(4, 0, 1, 2, 3)])
    [part], _ = parts_of(text, tmp_path)
    corners = triangles(part)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.abs(cross[:, 2]).sum() / 2 == pytest.approx(4)


@pytest.mark.parametrize(
    "kinds, color",
    [
        ("uchar red, uchar green, uchar blue", (204, 51, 26)),
        ("uchar red, uchar green, uchar blue, uchar alpha", (204, 51, 26, 128)),
        ("ushort red, ushort green, ushort blue", (52428, 13107, 6682)),
        ("float red, float green, float blue", (0.8, 0.2, 0.10196)),
        ("float red, float green, float blue", (204.0, 51.0, 26.0)),
        ("uchar diffuse_red, uchar diffuse_green, uchar diffuse_blue", (204, 51, 26)),
        ("uint8 r, uint8 g, uint8 b", (204, 51, 26)),
        ("int red, int green, int blue", (204, 51, 26)),
        ("short red, short green, short blue", (204, 51, 26)),
    ],
)
def test_vertex_colours_of_every_name_and_type(tmp_path, kinds, color):
    text = ascii_ply(f"{XYZ}, {kinds}", [(*point, *color) for point in SQUARE], [(4, 0, 1, 2, 3)])
    [part], remarks = parts_of(text, tmp_path)
    assert np.abs(srgb_from_linear(part.colors) * 255 - [204, 51, 26]).max() < 0.1
    assert remarks == []


def test_colours_of_faces_meet_at_sharp_edges(tmp_path):
    properties = "list uchar int vertex_indices, uchar red, uchar green, uchar blue"
    text = ascii_ply(XYZ, SQUARE, [(3, 0, 1, 2, 255, 0, 0), (3, 0, 2, 3, 0, 0, 255)], properties)
    [part], _ = parts_of(text, tmp_path)
    assert np.array_equal(part.colors[part.faces], [[[1, 0, 0]] * 3, [[0, 0, 1]] * 3])
    assert np.array_equal(np.abs(part.normals), np.tile([0, 0, 1], (6, 1)))  # still smooth over the edge


def test_normals_of_the_file_are_kept(tmp_path):
    rows = [(*point, 0.6, 0, 0.8) for point in SQUARE]
    text = ascii_ply(f"{XYZ}, float nx, float ny, float nz", rows, [(4, 0, 1, 2, 3)])
    [part], _ = parts_of(text, tmp_path)
    np.testing.assert_allclose(part.normals, np.tile([0.6, 0, 0.8], (4, 1)))


@pytest.mark.parametrize("names", ["s, t", "u, v", "texture_u, texture_v"])
def test_texture_coordinates_of_vertices(tmp_path, names):
    save_picture(tmp_path / "maps" / "my picture.png", [[[1, 2, 3]]])
    kinds = ", ".join(f"float {name}" for name in names.split(", "))
    text = ascii_ply(
        f"{XYZ}, {kinds}",
        [(*point, 0.25, 0.75) for point in SQUARE],
        [(4, 0, 1, 2, 3)],
        comments=["comment TextureFile maps/my picture.png"],
    )
    [part], _ = parts_of(text, tmp_path)
    assert (part.material.picture == [1, 2, 3]).all()
    np.testing.assert_allclose(part.uv, np.tile([0.25, 0.75], (4, 1)))


def test_texture_coordinates_of_corners_and_several_pictures(tmp_path):
    for name, color in (("a.png", (10, 0, 0)), ("b.png", (0, 20, 0))):
        save_picture(tmp_path / name, [[color]])
    uv = (0, 0, 1, 0, 1, 1)
    faces = [(3, 0, 1, 2, 6, *uv, 0), (3, 0, 2, 3, 6, *uv[::-1], 1), (3, 0, 1, 3, 0, 0)]
    text = ascii_ply(
        XYZ,
        SQUARE,
        faces,
        "list uchar int vertex_indices, list uchar float texcoord, int texnumber",
        comments=["comment TextureFile a.png", "comment TextureFile b.png"],
    )
    parts, _ = parts_of(text, tmp_path)
    colors = {tuple(part.material.picture[0, 0]): part for part in parts}
    assert set(colors) == {(10, 0, 0), (0, 20, 0)}
    second = colors[0, 20, 0]
    np.testing.assert_allclose(second.uv[second.faces[0]], np.reshape(uv[::-1], (3, 2)))
    assert len(colors[10, 0, 0].faces) == 2


@pytest.mark.parametrize(
    "name, words",
    [
        ("absent.png", "absent.png, which is not beside it"),
        ("../secret.png", "another place"),
        ("/etc/hosts", "another place"),
        ("http://a.b/c.png", "another place"),
    ],
)
def test_a_picture_that_is_missing_or_elsewhere_is_refused_by_name(tmp_path, name, words):
    rows = [(*point, 0, 0) for point in SQUARE]
    comments = [f"comment TextureFile {name}"]
    text = ascii_ply(f"{XYZ}, float s, float t", rows, [(4, 0, 1, 2, 3)], comments=comments)
    with pytest.raises(InputError, match=words) as error:
        parts_of(text, tmp_path)
    assert name in error.value.message


def test_strips_alternate_and_begin_anew(tmp_path):
    points = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 2, 0)]
    lines = ["ply", "format ascii 1.0", "element vertex 5", *(f"property float {axis}" for axis in "xyz")]
    lines += ["element tristrips 1", "property list int int vertex_indices", "end_header"]
    lines += [" ".join(map(str, point)) for point in points] + ["9 0 1 2 3 4 -1 0 1 3"]
    [part], _ = parts_of("\n".join([*lines, ""]), tmp_path)
    corners = triangles(part)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert len(corners) == 4 and (cross[:, 2] > 0).all()


def test_other_elements_and_properties_are_skipped_in_any_order(tmp_path):
    lines = [
        "ply",
        "format ascii 1.0",
        "obj_info made by hand",
        "element camera 2",
        "property list uchar float pose",
    ]
    lines += ["property int id", "element face 1", "property uchar flags"]
    lines += ["property list uchar int vertex_indices", "property list uchar float weights"]
    lines += ["element vertex 4", "property float confidence", *(f"property double {a}" for a in "xyz")]
    lines += ["element edge 1", "property int vertex1", "property int vertex2", "end_header"]
    lines += ["2 0.5 0.5 7", "0 8", "3 4 0 1 2 3 1 0.5"]
    lines += [f"0.9 {x} {y} {z}" for x, y, z in SQUARE] + ["0 1"]
    for ending in ("\n", "\r\n"):
        [part], _ = parts_of(ending.join([*lines, ""]), tmp_path)
        assert len(part.faces) == 2
        np.testing.assert_allclose(part.vertices, SQUARE)


def test_what_follows_the_data_is_ignored(tmp_path):
    text = ascii_ply(XYZ, SQUARE, [(3, 0, 1, 2)]) + "the end\n"
    assert len(parts_of(text, tmp_path)[0][0].faces) == 1
    data = encoded("<", SQUARE, [(0, 1, 2)])
    assert len(parts_of(data + b"anything", tmp_path)[0][0].faces) == 1


def test_a_written_file_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    colors = np.round(rng.uniform(size=(4, 3)) * 255).astype(np.float32) / 255
    mesh = Mesh(np.array(SQUARE, float), np.array([[0, 1, 2], [0, 2, 3]], np.int32), vertex_colors=colors)
    write_ply(tmp_path / "a.ply", mesh)
    back = read_mesh(tmp_path / "a.ply")
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-6)
    assert np.array_equal(np.rint(back.vertex_colors * 255), np.rint(colors * 255))


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_the_same_surface_as_trimesh_reads(tmp_path, kind):
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=2)
    encoding = "ascii" if kind == "ascii" else "binary"
    data = trimesh.exchange.ply.export_ply(ball, encoding=encoding, vertex_normal=False)
    if kind == "binary_big_endian":
        data = encoded(">", ball.vertices, ball.faces.tolist())
    [part], _ = parts_of(data, tmp_path)
    np.testing.assert_allclose(triangles(part), ball.triangles, atol=1e-5)


@pytest.mark.parametrize(
    "text, words",
    [
        ("plx\n", "does not begin with ply"),
        ("plyfoo\nformat ascii 1.0\nend_header\n", "does not begin with ply"),
        ("ply\nformat ascii 1.0\nelement vertex 0\nelement vertex 0\nend_header\n", "two elements vertex"),
        (ascii_ply(f"{XYZ}, float x", [(0, 0, 0, 0)], []), "two properties x"),
        (ascii_ply(XYZ, SQUARE, [], "list float int vertex_indices"), "list float int"),
        ("ply\nformat ascii 1.0\nelement vertex 3\n", "header has no end"),
        ("ply\nformat ebcdic 1.0\nend_header\n", "no known format"),
        ("ply\nformat ascii 1.0\nelement vertex many\nend_header\n", "element vertex many"),
        ("ply\nformat ascii 1.0\nelement vertex 999999\nproperty float x\nend_header\n", "999999"),
        ("ply\nformat ascii 1.0\nelement vertex 1\nproperty complex x\nend_header\n", "complex"),
        (ascii_ply(XYZ, SQUARE, [(3, 0, 1, 9)]), "vertex 9 of 4"),
        (ascii_ply(XYZ, SQUARE, [(3, 0, 1, -2)]), "vertex -2 of 4"),
        (ascii_ply(XYZ, [*SQUARE[:3], ("a", "b", "c")], [(3, 0, 1, 2)]), "no number"),
        (ascii_ply(XYZ, SQUARE, [(3, 0, 1)]), "truncated"),
        (ascii_ply(XYZ, SQUARE, [(3, 0, 1, 2.5)], "list uchar float vertex_indices"), "not integers"),
        (ascii_ply("float x, float y", [(0, 0)] * 3, [(3, 0, 1, 2)]), "no x, y and z"),
        (ascii_ply(XYZ, SQUARE, [(-3, 0, 1, 2)]), "list of -3"),
    ],
)
def test_damage_is_named(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        parts_of(text, tmp_path)


def test_a_file_without_faces_says_so(tmp_path):
    (tmp_path / "a.ply").write_text(ascii_ply(XYZ, SQUARE, []))
    with pytest.raises(InputError, match=r"a\.ply: has no faces"):
        read_mesh(tmp_path / "a.ply")


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_never_escape_as_another_error(tmp_path, seed):
    rng = np.random.default_rng(seed)
    whole = [
        encoded("<", SQUARE, [(0, 1, 2), (0, 1, 2, 3)]),
        encoded(">", SQUARE, [(0, 1, 2), (0, 2, 3)]),
        ascii_ply(f"{XYZ}, float s, float t", [(*p, 0, 0) for p in SQUARE], [(4, 0, 1, 2, 3)]).encode(),
    ]
    for data in whole:
        for attempt in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                damaged[place] = rng.integers(256)
            damaged = bytes(damaged[: rng.integers(1, len(data))] if attempt % 3 == 0 else damaged)
            (tmp_path / "b.ply").write_bytes(damaged)
            try:
                read_mesh(tmp_path / "b.ply")
            except InputError as error:
                assert "does not follow its format" not in error.message, (damaged, error.__cause__)


def test_colours_of_faces_stand_in_for_those_of_vertices(tmp_path):
    grey = "uchar red, uchar green, uchar blue"
    rows = [(*point, 128, 128, 128) for point in SQUARE]
    text = ascii_ply(
        f"{XYZ}, {grey}", rows, [(3, 0, 1, 2, 128, 255, 0)], f"list uchar int vertex_indices, {grey}"
    )
    [part], _ = parts_of(text, tmp_path)
    half = linear_from_srgb(np.array(128 / 255))
    np.testing.assert_allclose(part.colors, np.tile([half, 1, 0], (3, 1)), atol=1e-6)


def test_real_colours_a_little_over_one_are_cut(tmp_path):
    rows = [(*point, 1.0000001, 0.5, 0) for point in SQUARE]
    [part], _ = parts_of(
        ascii_ply(f"{XYZ}, float red, float green, float blue", rows, [(3, 0, 1, 2)]), tmp_path
    )
    np.testing.assert_allclose(srgb_from_linear(part.colors), np.tile([1, 0.5, 0], (3, 1)), atol=1e-6)


@pytest.mark.parametrize("after", [" ", "\t", "\r"])
def test_the_data_begin_after_the_headers_line(tmp_path, after):
    data = encoded("<", SQUARE, [(0, 1, 2)]).replace(b"end_header\n", b"end_header" + after.encode() + b"\n")
    np.testing.assert_allclose(parts_of(data, tmp_path)[0][0].vertices, SQUARE[:3])


def test_strips_beside_faces_are_drawn_too(tmp_path):
    lines = [
        "ply",
        "format ascii 1.0",
        "comment end_header is below",
        "comment TextureFile",
        "element vertex 4",
    ]
    lines += [*(f"property float {axis}" for axis in "xyz"), "element face 1"]
    lines += ["property list uchar int vertex_indices", "element tristrips 1"]
    lines += ["property list int int vertex_indices", "end_header", *(f"{x} {y} {z}" for x, y, z in SQUARE)]
    parts, _ = parts_of("\n".join([*lines, "3 0 1 2", "3 0 2 3", ""]), tmp_path)
    assert sum(len(part.faces) for part in parts) == 2


@pytest.mark.parametrize("element", ["vertex", "face", "edge"])
def test_more_elements_than_can_be_held_are_refused_by_the_header(element, monkeypatch):
    monkeypatch.setattr(ply_data, "MAX_FACES", 5)
    monkeypatch.setattr(ply_data, "MAX_VERTICES", 5)
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement {element} 6\nproperty list uchar int x\nend_header\n"
    )
    with pytest.raises(InputError, match=f"has 6 elements of {element}, more than 5"):
        ply_data.parse_header(header.encode())
