"""Nodes, skins and instances of glTF files put surfaces where glTF 2.0 says."""

import numpy as np
import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io import gltf_primitives, gltf_scene
from sv3d_jax.io.gltf_data import Document, known, parse_document, split_glb
from sv3d_jax.io.gltf_primitives import PrimitiveReader
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.io.surfaces import Source
from tests.io.gltf_files import CASES, Builder, extents, quad

EXTENTS = {
    "morph_default": (1, 3, 1),
    "skin_pose": (1, 3, 1),
    "sparse": (1, 3, 1),
    "second_scene": (1, 3, 1),
    "quantized": (3, 1, 1),
    "offset_1e6": (1, 1, 1),
    "huge_1e12": (1, 1, 1),
    "mirrored_copy": (3, 1, 1),
    "blender_shapekey": (1, 3, 1),
    "skin_prop": (5, 2, 2),
    "report_skinned": (1, 3, 1),
    "report_unindexed": (1, 1, 1),
}


@pytest.mark.parametrize("name", EXTENTS)
def test_surfaces_stand_where_the_file_puts_them(name):
    sides = extents(CASES / f"{name}.glb")
    np.testing.assert_allclose(sides / sides.min(), np.array(EXTENTS[name]) / min(EXTENTS[name]), rtol=1e-3)


def test_quantized_positions_are_scaled_by_their_node():
    mesh = read_mesh(CASES / "report_quantized.glb", up="z")
    used = mesh.vertices[mesh.faces].reshape(-1, 3)
    np.testing.assert_allclose([used.min(0), used.max(0)], [[-0.5] * 3, [2.5, 0.5, 0.5]], atol=1e-4)


def test_a_skin_and_a_prop_stand_side_by_side():
    mesh = read_mesh(CASES / "skin_prop.glb", up="z")
    np.testing.assert_allclose([mesh.vertices[:, 0].min(), mesh.vertices[:, 0].max()], [-1, 4], atol=1e-4)


@pytest.mark.parametrize("name, faces", [("instancing_used", 48), ("fan", 6), ("mirrored_copy", 24)])
def test_number_of_faces(name, faces):
    assert len(read_mesh(CASES / f"{name}.glb").faces) == faces


def test_a_chain_of_nodes_costs_no_more_than_its_length():
    assert len(read_mesh(CASES / "chain1600.glb").faces) == 1600


def test_hidden_nodes_and_what_hangs_on_them_are_not_drawn(tmp_path):
    nodes = [
        {"mesh": 0},
        {"children": [2], "extensions": {"KHR_node_visibility": {"visible": False}}},
        {"mesh": 0, "translation": [5, 0, 0]},
    ]
    path = quad(lambda b: {}, tmp_path, nodes=nodes, scenes=[{"nodes": [0, 1]}])
    assert len(read_mesh(path).faces) == 2


def test_a_skinned_meshs_own_node_does_not_move_it(tmp_path):
    builder = Builder()
    joints = builder.accessor(np.zeros((4, 4), "|u1"))
    weights = builder.accessor(np.tile([1, 0, 0, 0], (4, 1)).astype("<f4"))
    nodes = [{"mesh": 0, "skin": 0, "translation": [50, 0, 0]}, {"translation": [0, 7, 0]}]
    path = quad(lambda b: {}, tmp_path, builder=builder, nodes=nodes, skins=[{"joints": [1]}])
    attributes = builder.document["meshes"][0]["primitives"][0]["attributes"]
    attributes |= {"JOINTS_0": joints, "WEIGHTS_0": weights}
    mesh = read_mesh(builder.write(path), up="z")
    np.testing.assert_allclose(mesh.vertices[mesh.faces].reshape(-1, 3).mean(0)[:2], [0, 7], atol=0.5)


def test_too_many_instances_are_refused_before_they_are_made(tmp_path):
    builder = Builder()
    builder.document["accessors"].append({"componentType": 5126, "count": 9_000_000, "type": "VEC3"})
    instances = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 0}}}
    path = quad(lambda b: {}, tmp_path, builder=builder, nodes=[{"mesh": 0, "extensions": instances}])
    with pytest.raises(InputError, match="18000000 faces"):
        read_mesh(path)


def test_instances_are_turned_scaled_and_mirrored(tmp_path):
    builder = Builder()
    half = np.sqrt(0.5)
    attributes = {
        "TRANSLATION": builder.accessor(np.array([[0, 0, 0], [10, 0, 0], [0, 10, 0]], "<f4")),
        "ROTATION": builder.accessor(np.array([[0, 0, 0, 1], [half, 0, 0, half], [0, 0, 0, 1]], "<f4")),
        "SCALE": builder.accessor(np.array([[1, 1, 1], [2, 2, 2], [-1, 1, 1]], "<f4")),
    }
    nodes = [{"mesh": 0, "extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}}}]
    path = quad(lambda b: {}, tmp_path, builder=builder, nodes=nodes)
    mesh = read_mesh(path, up="z")
    corners = mesh.vertices[mesh.faces].reshape(3, 2, 3, 3)
    normals = np.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    np.testing.assert_allclose(normals[:, 0], [[0, 0, 4], [0, -16, 0], [0, 0, 4]], atol=1e-4)
    np.testing.assert_allclose(corners.mean((1, 2)), [[0, 0, 0], [10, 0, 0], [0, 10, 0]], atol=0.7)


@pytest.mark.parametrize("scale, words", [(1e200, "from the origin"), (1e-200, "in one point")])
def test_sizes_that_cannot_be_drawn_are_refused(tmp_path, scale, words):
    nodes = [{"mesh": 0, "scale": [scale] * 3}]
    with pytest.raises(InputError, match=words):
        read_mesh(quad(lambda b: {}, tmp_path, nodes=nodes))


def test_faces_are_counted_for_every_copy_before_any_data_are_read(tmp_path, monkeypatch):
    """Nodes, primitives and instances that share accessors count each time."""
    monkeypatch.setattr(gltf_scene, "MAX_FACES", 2000)
    monkeypatch.setattr(Document, "accessor", lambda *_: pytest.fail("an accessor is read"))
    builder = Builder()
    builder.document["accessors"].append({"componentType": 5126, "count": 100, "type": "VEC3"})
    instances = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 0}}}
    nodes = [{"mesh": 0, "extensions": instances}, *[{"mesh": 0}] * 5]
    path = quad(lambda b: {}, tmp_path, builder=builder, nodes=nodes)
    builder.document["meshes"][0]["primitives"] *= 10
    with pytest.raises(InputError, match="has 2100 faces with all its copies, more than 2000"):
        read_mesh(builder.write(path))


def test_a_mesh_is_sorted_once_however_many_nodes_share_it(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(gltf_primitives, "known", lambda *given: calls.append(given) or known(*given))
    read_mesh(quad(lambda b: {}, tmp_path, nodes=[{"mesh": 0} for _ in range(50)]))
    assert len(calls) == 1


@pytest.mark.parametrize("mode, faces", [(4, 2), (5, 4), (6, 4)])
def test_declared_faces_are_those_that_are_read(tmp_path, mode, faces):
    builder = Builder()
    quad(lambda b: {}, tmp_path, builder=builder)
    builder.document["meshes"][0]["primitives"][0]["mode"] = mode
    path = builder.write(tmp_path / "quad.glb")
    reader = PrimitiveReader(parse_document(*split_glb(path.read_bytes()), Source(path)))
    assert reader.declared_faces(builder.document["meshes"][0], 0) == len(read_mesh(path).faces) == faces


def test_attributes_that_do_not_show_are_not_read(tmp_path, monkeypatch):
    """Hundreds of sets of texture coordinates may share one accessor, and each would take memory of its own."""
    builder, read = Builder(), []
    path = quad(lambda b: {}, tmp_path, builder=builder)
    attributes = builder.document["meshes"][0]["primitives"][0]["attributes"]
    attributes |= {f"TEXCOORD_{n}": attributes["POSITION"] for n in range(1, 300)}
    attributes |= {f"JOINTS_{n}": attributes["POSITION"] for n in range(300)}
    accessor = Document.accessor
    monkeypatch.setattr(
        Document, "accessor", lambda self, index, user: read.append(user) or accessor(self, index, user)
    )
    assert len(read_mesh(builder.write(path)).faces) == 2
    assert len(read) <= 4


def test_skins_are_blended_a_part_of_the_vertices_at_a_time(tmp_path, monkeypatch):
    path, pose = CASES / "skin_pose.glb", read_mesh(CASES / "skin_pose.glb")
    monkeypatch.setattr(gltf_primitives, "_SKINNED_AT_ONCE", 5)
    np.testing.assert_array_equal(read_mesh(path).vertices, pose.vertices)
    np.testing.assert_array_equal(read_mesh(path).normals, pose.normals)


def test_nodes_nested_as_deep_as_the_limit_are_placed_without_recursion(tmp_path):
    depth = 5000
    nodes: list[dict] = [{"children": [n + 1], "translation": [0, 0, 1]} for n in range(depth - 1)]
    path = quad(lambda b: {}, tmp_path, nodes=[*nodes, {"mesh": 0}], scene=0, scenes=[{"nodes": [0]}])
    assert read_mesh(path, up="z").vertices[:, 2].mean() == pytest.approx(depth - 1)


PROJECTION = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, -0.5, 0, 0, 0, 1]


@pytest.mark.parametrize(
    "node, text",
    [
        ({"matrix": PROJECTION}, "matrix must end with the row 0 0 0 1"),
        ({"matrix": [*PROJECTION[:11], 0, 0, 0, 0, 2]}, "matrix must end with the row 0 0 0 1"),
        ({"rotation": [0, 0, 0, 0]}, r"a rotation of nodes\[0\] is no quaternion"),
        ({"rotation": [0, 0, 0, 1e200]}, r"a rotation of nodes\[0\] is no quaternion"),
    ],
)
def test_transforms_that_a_node_cannot_have_are_refused(tmp_path, node, text):
    path = quad(lambda b: {}, tmp_path, nodes=[{"mesh": 0, **node}])
    with pytest.raises(InputError, match=text):
        read_mesh(path)


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"asset": {"version": "1.0"}}, "asset.version '1.0', only version 2.0 is read"),
        ({"asset": {"version": 3}}, "asset.version 3,"),
        ({"asset": {}}, "asset.version None,"),
        ({"asset": None}, "asset is not an object"),
        ({"asset": {"version": "2.1", "minVersion": "2.1"}}, "minVersion '2.1'"),
        ({"extensionsRequired": "KHR_draco_mesh_compression"}, "extensionsRequired is 'KHR.*a list of names"),
        ({"extensionsRequired": [3]}, "extensionsRequired is .3., a list of names"),
    ],
)
def test_other_versions_and_unreadable_requirements_are_refused(tmp_path, fields, text):
    with pytest.raises(InputError, match=text):
        read_mesh(quad(lambda b: {}, tmp_path, **fields))
