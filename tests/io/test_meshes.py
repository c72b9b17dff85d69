"""Mesh files: what is read, what is written, and what is refused."""

import base64
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.colors import linear_from_srgb, srgb_from_linear
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io import gltf_data, gltf_scene
from sv3d_jax.io.gltf_data import parse_document, split_glb
from sv3d_jax.io.meshes import read_mesh, world_from_file, write_glb, write_obj, write_ply
from sv3d_jax.io.ply import stated_axes
from sv3d_jax.io.surfaces import Source
from sv3d_jax.render.appearance import appearance_of, seen_colors

CASES = Path(__file__).parents[1] / "cases" / "meshes"
VERTICES = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
COLORS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]], np.float32)
COLORED = Mesh(VERTICES, FACES, vertex_colors=COLORS)
TEXTURED = Mesh(
    VERTICES,
    FACES,
    uv=np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], np.float32),
    texture=np.round(np.random.default_rng(0).uniform(size=(4, 6, 3)) * 255).astype(np.float32) / 255,
)


@pytest.mark.parametrize("write, suffix", [(write_glb, "glb"), (write_ply, "ply"), (write_obj, "obj")])
def test_colored_mesh_comes_back_from_every_format(tmp_path, write, suffix):
    write(tmp_path / f"a.{suffix}", COLORED)
    mesh = read_mesh(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(mesh.vertices, VERTICES, atol=1e-6)  # float32 in files
    assert np.array_equal(mesh.faces, FACES)
    assert np.array_equal(mesh.vertex_colors, COLORS)


def test_textured_glb_comes_back(tmp_path):
    write_glb(tmp_path / "a.glb", TEXTURED)
    mesh = read_mesh(tmp_path / "a.glb")
    assert np.array_equal(mesh.texture / np.float32(255), TEXTURED.texture)
    np.testing.assert_allclose(mesh.uv, TEXTURED.uv, atol=1e-6)
    assert mesh.vertex_colors is None


@pytest.mark.parametrize("write, suffix", [(write_glb, "glb"), (write_ply, "ply"), (write_obj, "obj")])
def test_materials_that_a_file_would_lose_are_not_written(tmp_path, write, suffix):
    mesh = read_mesh(CASES / "repeat64.glb")
    assert mesh.materials is not None
    with pytest.raises(InputError, match="materials"):
        write(tmp_path / f"a.{suffix}", mesh)
    assert not list(tmp_path.iterdir())


def test_glb_is_byte_identical_when_written_again(tmp_path):
    for name in ("a.glb", "b.glb"):
        write_glb(tmp_path / name, TEXTURED)
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()


def test_glb_keeps_vertices_z_up_and_turns_them_at_the_root(tmp_path):
    write_glb(tmp_path / "a.glb", COLORED)
    document, binary = gltf_data.split_glb((tmp_path / "a.glb").read_bytes())
    document = json.loads(document)
    matrix = np.array(document["nodes"][-1]["matrix"]).reshape(4, 4).T
    assert np.array_equal(matrix @ [1.0, 2.0, 3.0, 1.0], [2.0, 3.0, 1.0, 1.0])
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert accessor["max"] == [1.0, 2.0, 3.0]


def test_glb_holds_linear_colours_in_16_bits_and_a_material_that_does_not_shine(tmp_path):
    grey = Mesh(VERTICES, FACES, vertex_colors=np.full((4, 3), 128 / 255, np.float32))
    write_glb(tmp_path / "a.glb", grey)
    document = parse_document(*split_glb((tmp_path / "a.glb").read_bytes()), Source(tmp_path / "a.glb"))
    primitive = document.json["meshes"][0]["primitives"][0]
    stored = document.accessor(primitive["attributes"]["COLOR_0"], "")
    np.testing.assert_allclose(stored[:, :3], 14146 / 65535, atol=1e-6)  # 0.2158605, as of display grey 128
    material = document.json["materials"][primitive["material"]]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0 and material["roughnessFactor"] == 1


def test_every_display_value_of_a_vertex_comes_back(tmp_path):
    levels = np.arange(256, dtype=np.float32)[:, None].repeat(3, 1)
    vertices = np.random.default_rng(0).uniform(size=(256, 3))
    faces = np.arange(255, dtype=np.int32).reshape(-1, 3)
    mesh = Mesh(vertices, np.concatenate([faces, [[253, 254, 255]]]), vertex_colors=levels / 255)
    write_glb(tmp_path / "a.glb", mesh)
    assert np.array_equal(np.rint(read_mesh(tmp_path / "a.glb").vertex_colors * 255), levels)


def test_glb_has_the_normals_it_is_given(tmp_path):
    import trimesh

    normals = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, 0.0, 0.8]])
    write_glb(tmp_path / "a.glb", COLORED, normals)
    [surface] = trimesh.load_scene(tmp_path / "a.glb", process=False).geometry.values()
    np.testing.assert_allclose(surface.vertex_normals, normals, atol=1e-6)


def test_obj_writes_vertices_that_differ_in_uv_alone_once(tmp_path):
    corner = TEXTURED.faces.ravel()
    uv = np.random.default_rng(0).uniform(size=(12, 2)).astype(np.float32)
    split = Mesh(
        VERTICES[corner], np.arange(12, dtype=np.int32).reshape(4, 3), uv=uv, texture=TEXTURED.texture
    )
    write_obj(tmp_path / "a.obj", split)
    rows = [line.split() for line in (tmp_path / "a.obj").read_text().splitlines()]
    positions = np.array([row[1:] for row in rows if row[0] == "v"], float)
    places = np.array([row[1:] for row in rows if row[0] == "vt"], float)
    corners = np.array([[corner.split("/") for corner in row[1:]] for row in rows if row[0] == "f"], int) - 1
    assert len(positions) == 4
    np.testing.assert_array_equal(
        positions[corners[..., 0]] @ world_from_file("y")[:3, :3].T, split.vertices[split.faces]
    )
    np.testing.assert_allclose(places[corners[..., 1]], uv[split.faces], atol=1e-6)


NORMALS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, 0.0, 0.8]])


@pytest.mark.parametrize("mesh", [COLORED, TEXTURED])
def test_obj_has_the_normals_it_is_given(tmp_path, mesh):
    write_obj(tmp_path / "a.obj", mesh, NORMALS)
    rows = [line.split() for line in (tmp_path / "a.obj").read_text().splitlines()]
    normals = np.array([row[1:] for row in rows if row[0] == "vn"], float)
    corners = np.array([[corner.split("/")[2] for corner in row[1:]] for row in rows if row[0] == "f"], int)
    np.testing.assert_allclose(normals[corners - 1] @ world_from_file("y")[:3, :3].T, NORMALS[mesh.faces])


def test_without_normals_a_vertex_gets_those_of_its_faces_by_area(tmp_path):
    write_ply(tmp_path / "a.ply", COLORED)
    normals = _ply_rows(tmp_path / "a.ply")["normal"]
    corner = np.array([3.0, 1.5, 1.0])  # areas of the faces in the planes x = 0, y = 0 and z = 0
    np.testing.assert_allclose(normals[0], world_file(-corner / np.linalg.norm(corner)), atol=1e-6)


def world_file(vectors):
    return vectors @ world_from_file("y")[:3, :3]


def _ply_rows(path):
    """Positions, normals and colours of a PLY's vertices."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    count = int(header.split(b"element vertex ")[1].split()[0])
    names = [
        line.split()[2].decode()
        for line in header.splitlines()
        if line.startswith((b"property f", b"property u"))
    ]
    assert names == ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue"]
    return np.frombuffer(body, [("position", "<f4", 3), ("normal", "<f4", 3), ("color", "u1", 3)], count)


# What Blender makes of glTF's axes: the world's +x, the front, is -y there.
@pytest.mark.parametrize("up, x, z", [("y", [0, 0, 1], [0, 1, 0]), ("z", [0, -1, 0], [0, 0, 1])])
def test_ply_has_the_axes_that_its_comment_states(tmp_path, up, x, z):
    write_ply(tmp_path / "a.ply", COLORED, NORMALS, up)
    data, rows = (tmp_path / "a.ply").read_bytes(), _ply_rows(tmp_path / "a.ply")
    assert np.array_equal(rows["position"][[1, 3]], [x, np.multiply(3, z)])
    assert np.array_equal(rows["normal"][[0, 2]], [x, z])
    world_from_ply = stated_axes(data)[:3, :3]
    np.testing.assert_array_equal(rows["position"] @ world_from_ply.T, VERTICES)
    axes = {"y": b"+Y up, +Z front", "z": b"+Z up, -Y front"}[up]
    assert b"\ncomment axes: " + axes + b"\n" in data


@pytest.mark.parametrize("comment", ["", "comment axes: +X up\n", "comment made by hand\n"])
def test_other_ply_files_state_no_axes(comment):
    header = f"ply\nformat ascii 1.0\n{comment}element vertex 1\nproperty float x\nend_header\n"
    assert stated_axes(header.encode() + b"comment axes: +Z up, -Y front\n") is None


def test_obj_names_a_material_and_picture_that_are_there(tmp_path):
    write_obj(tmp_path / "a.obj", TEXTURED)
    assert "mtllib a.mtl" in (tmp_path / "a.obj").read_text()
    assert "map_Kd a.png" in (tmp_path / "a.mtl").read_text()
    picture = np.asarray(Image.open(tmp_path / "a.png"), np.float32) / 255
    assert np.array_equal(picture, TEXTURED.texture)


def test_y_up_file_is_turned_to_z_up(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 1 0\nv 1 1 0\nv 0 1 1\nf 1 2 3\n")
    up_y, up_z = (read_mesh(tmp_path / "a.obj", up).vertices for up in ("y", "z"))
    assert np.array_equal(up_y[:, 2], [1.0, 1.0, 1.0])
    np.testing.assert_array_equal(up_z @ world_from_file("y")[:3, :3].T, up_y)


def _document(**changes):
    """A minimal valid glTF of one red triangle, with embedded data."""
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4").tobytes()
    document = {
        "asset": {"version": "2.0"},
        "buffers": [{"uri": _data_uri(positions), "byteLength": 36}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "materials": [{"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "material": 0}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    return document | changes


def _data_uri(data):
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


def _png(width, height):
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def _read(tmp_path, document):
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    return read_mesh(tmp_path / "a.gltf")


def test_material_color_reaches_the_vertices(tmp_path):
    np.testing.assert_allclose(_read(tmp_path, _document()).vertex_colors, [[1, 0, 0]] * 3, atol=1e-6)


def test_node_transforms_of_all_ancestors_apply(tmp_path):
    nodes = [{"children": [1], "translation": [0, 0, 5]}, {"mesh": 0, "scale": [2, 2, 2]}]
    mesh = _read(tmp_path, _document(nodes=nodes))
    np.testing.assert_allclose(mesh.vertices, [[5, 0, 0], [5, 2, 0], [5, 0, 2]], atol=1e-12)


def test_mirroring_node_keeps_faces_outwards(tmp_path):
    nodes = [{"mesh": 0}, {"mesh": 0, "scale": [1, 1, -1]}]
    mesh = _read(tmp_path, _document(nodes=nodes, scenes=[{"nodes": [0, 1]}]))
    assert len(mesh.faces) == 2
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(normals[0], -normals[1])  # the mirror plane holds the triangle


def test_several_textures_become_one_with_repeats_and_plain_parts(tmp_path):
    import trimesh

    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8)) for _ in range(2)]
    uvs = [rng.uniform(0.2, 0.8, (4, 2)), rng.uniform(-1.0, 2.5, (4, 2))]  # the second repeats its picture
    scene = trimesh.Scene()
    for picture, uv in zip(pictures, uvs, strict=True):
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
        visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        scene.add_geometry(trimesh.Trimesh(VERTICES, FACES, visual=visual, process=False))
    scene.add_geometry(trimesh.Trimesh(VERTICES, FACES, vertex_colors=COLORS, process=False))
    (tmp_path / "a.glb").write_bytes(scene.export(file_type="glb"))

    mesh = read_mesh(tmp_path / "a.glb")
    assert mesh.texture.shape[0] * mesh.texture.shape[1] <= 3 * 5 * 4  # no copies of what is repeated
    corner = np.argsort(mesh.faces.ravel(), kind="stable")[
        np.unique(np.sort(mesh.faces.ravel()), return_index=True)[1]
    ]
    weights = np.eye(3, dtype=np.float32)[corner % 3]
    seen, _ = seen_colors(appearance_of(mesh), mesh.faces, corner // 3, weights)
    expected = [_repeated_bilinear(np.asarray(p) / 255, uv) for p, uv in zip(pictures, uvs, strict=True)]
    expected = np.concatenate([*expected, srgb_from_linear(COLORS.astype(np.float64))])
    np.testing.assert_allclose(seen, expected, atol=1e-4)  # float32 uv


def _repeated_bilinear(texture, uv):
    size = np.array(texture.shape[1::-1])
    texel = np.stack([uv[:, 0], 1 - uv[:, 1]], 1) * size - 0.5
    low = np.floor(texel).astype(int)
    share = texel - low
    out = 0
    for dx, dy in np.ndindex(2, 2):
        column, row = (low + [dx, dy]).T % size[:, None]
        weight = np.where([dx, dy], share, 1 - share).prod(1)
        out = out + weight[:, None] * linear_from_srgb(texture[row, column])
    return srgb_from_linear(out)


@pytest.mark.parametrize(
    "uri", ["../out.bin", "/etc/passwd", "../secret.bin", "file:///etc/passwd", "http://localhost:1/a.bin"]
)
@pytest.mark.parametrize("kind", ["buffers", "images"])
def test_references_to_other_places_are_refused_by_name(tmp_path, kind, uri):
    texture = dict(textures=[{"source": 0}], materials=[_material(baseColorTexture={"index": 0})])
    texture = texture if kind == "images" else {}
    with pytest.raises(InputError, match="refers to another place") as error:
        _read(tmp_path, _document(**texture, **{kind: [{"uri": uri, "byteLength": 36}]}))
    assert uri in error.value.message and "a.gltf" in error.value.message


def _material(**values):
    return {"pbrMetallicRoughness": values}


def test_an_obj_reads_its_materials_beside_it_and_not_elsewhere(tmp_path):
    text = "mtllib {}red.mtl\nusemtl m\nv 0 1 0\nv 1 1 0\nv 0 1 1\nf 1 2 3\n"
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        (folder / "red.mtl").write_text("newmtl m\nKd 1 0 0\n")
        (folder / "a.obj").write_text(text.format(""))
        np.testing.assert_allclose(read_mesh(folder / "a.obj").vertex_colors, [[1, 0, 0]] * 3, atol=1e-6)
    (tmp_path / "below" / "a.obj").write_text(text.format("../"))
    with pytest.raises(InputError, match=r"a\.obj: .*\.\./red\.mtl"):
        read_mesh(tmp_path / "below" / "a.obj")


def _textured(image):
    """Changes that give the triangle a texture."""
    return dict(
        images=[image], textures=[{"source": 0}], materials=[_material(baseColorTexture={"index": 0})]
    )


ACCESSOR = {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}
DAMAGED = {
    "huge count": dict(accessors=[ACCESSOR | {"count": 10**12}]),
    "huge count without data": dict(accessors=[{"componentType": 5126, "count": 10**12, "type": "VEC3"}]),
    "negative count": dict(accessors=[ACCESSOR | {"count": -3}]),
    "cyclic nodes": dict(nodes=[{"children": [1]}, {"children": [0], "mesh": 0}]),
    "node that is its own child": dict(nodes=[{"children": [0], "mesh": 0}]),
    "cycle that no scene reaches": dict(nodes=[{"mesh": 0}, {"children": [2]}, {"children": [1]}]),
    "node with two parents": dict(nodes=[{"children": [1, 2]}, {"children": [2]}, {"mesh": 0}]),
    "missing child": dict(nodes=[{"mesh": 0, "children": [7]}]),
    "NaN vertices": dict(buffers=[{"uri": _data_uri(np.full(9, np.nan, "<f4").tobytes()), "byteLength": 36}]),
    "all vertices in a point": dict(buffers=[{"uri": _data_uri(bytes(36)), "byteLength": 36}]),
    "no faces": dict(meshes=[], nodes=[{}]),
    "points only": dict(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 0}]}]),
    "unknown extension": dict(extensionsRequired=["KHR_of_the_future"]),
    "texture bomb": _textured({"uri": _data_uri(_png(20000, 20000))}),
    "image that is none": _textured({"uri": _data_uri(b"not a picture")}),
    "data URI that is not base64": _textured({"uri": "data:image/png;base64,%%%"}),
    "texture without a picture": _textured({}),
    "no accessors": dict(accessors=[]),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_gltf_is_an_input_error_that_names_the_file(tmp_path, name):
    with pytest.raises(InputError) as error:
        _read(tmp_path, _document(**DAMAGED[name]))
    assert "a.gltf" in error.value.message


def test_a_glb_cut_anywhere_is_an_input_error(tmp_path):
    write_glb(tmp_path / "a.glb", COLORED)
    data = (tmp_path / "a.glb").read_bytes()
    for length in [0, 3, 12, 19, 40, len(data) // 2, len(data) - 1]:
        (tmp_path / "cut.glb").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.glb"):
            read_mesh(tmp_path / "cut.glb")


def test_deeply_nested_json_is_an_input_error(tmp_path):
    (tmp_path / "a.gltf").write_text("[" * 200_000)
    with pytest.raises(InputError, match=r"a\.gltf"):
        read_mesh(tmp_path / "a.gltf")


def test_random_bytes_in_a_glb_never_escape_as_another_error(tmp_path):
    write_glb(tmp_path / "a.glb", TEXTURED)
    data = (tmp_path / "a.glb").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(12, len(data), 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "b.glb").write_bytes(damaged)
        try:
            assert np.isfinite(read_mesh(tmp_path / "b.glb").vertices).any()
        except InputError:
            pass


def test_instances_count_towards_the_limit_of_faces(tmp_path, monkeypatch):
    monkeypatch.setattr(gltf_scene, "MAX_FACES", 10)
    nodes = [{"mesh": 0} for _ in range(11)]
    with pytest.raises(InputError, match="11 faces"):
        _read(tmp_path, _document(nodes=nodes, scenes=[{"nodes": list(range(11))}]))


def test_ply_that_claims_more_than_it_holds_is_refused(tmp_path):
    header = (
        "ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\nproperty float x\nend_header\n"
    )
    (tmp_path / "a.ply").write_text(header)
    with pytest.raises(InputError, match="99999999999"):
        read_mesh(tmp_path / "a.ply")


@pytest.mark.parametrize("face", ["1 2 9", "1 2 x"])
def test_obj_with_bad_faces_is_an_input_error(tmp_path, face):
    (tmp_path / "a.obj").write_text(f"v 0 0 0\nv 1 0 0\nv 0 1 0\nf {face}\n")
    with pytest.raises(InputError, match=r"a\.obj"):
        read_mesh(tmp_path / "a.obj")


def test_other_suffixes_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError) as error:
        read_mesh(tmp_path / "a.fbx")
    assert ".glb" in error.value.hint


def test_glb_of_version_1_is_refused(tmp_path):
    (tmp_path / "a.glb").write_bytes(struct.pack("<4sIIII", b"glTF", 1, 20, 0, 0))
    with pytest.raises(InputError, match="version 1"):
        read_mesh(tmp_path / "a.glb")
