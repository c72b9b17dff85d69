"""Triangles, normals and compressed attributes of glTF primitives."""

import sys

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import custom_orbit
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import to_world
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.render.orbit import render_orbit
from tests.io.gltf_files import (
    BLUE,
    CASES,
    GREEN,
    QUAD,
    QUAD_FACES,
    QUAD_UV,
    RED,
    YELLOW,
    Builder,
    corners,
    front,
    quad,
    textured,
)


def lit(path):
    from sv3d_jax.render.lighting import soft_light

    cameras = custom_orbit(None, 20.0, 3)
    return render_orbit(to_world(read_mesh(path)), cameras, 48, soft_light(3))[0].astype(int)


@pytest.mark.parametrize("name, like", [("smooth_split", "smooth_indexed"), ("flat_shared", "flat_split")])
def test_shading_follows_the_files_normals_or_the_faces(name, like):
    assert np.abs(lit(CASES / f"{name}.glb") - lit(CASES / f"{like}.glb")).max() <= 1
    assert np.ptp(lit(CASES / f"{like}.glb")) > 40


def test_points_and_lines_beside_faces_are_skipped_by_name(tmp_path):
    builder = Builder()
    point = builder.accessor(QUAD)
    primitives = [{"attributes": {"POSITION": point}, "mode": mode} for mode in (0, 1, 5)]
    mesh = read_mesh(builder.finish(primitives).write(tmp_path / "a.glb"))
    assert len(mesh.faces) == 2
    assert any("points" in r for r in mesh.remarks) and any("lines" in r for r in mesh.remarks)


def test_strips_alternate(tmp_path):
    builder = Builder()
    positions = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [2, 0, 0]], "<f4")[:, [1, 0, 2]]
    primitive = {"attributes": {"POSITION": builder.accessor(positions)}, "mode": 5}
    mesh = read_mesh(builder.finish([primitive]).write(tmp_path / "a.glb"), up="z")
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    assert len(normals) == 3 and (np.sign(normals[:, 2]) == np.sign(normals[0, 2])).all()


def test_primitives_over_one_buffer_share_its_vertices(tmp_path):
    builder = Builder()
    rng = np.random.default_rng(0)
    point = builder.accessor(rng.uniform(-1, 1, (300, 3)).astype("<f4"))
    builder.document["materials"] = [{}, {"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}]
    primitives = [
        {
            "attributes": {"POSITION": point},
            "indices": builder.accessor(np.arange(3 * i, 3 * i + 3, dtype="<u2")),
            "material": i % 2,
        }
        for i in range(100)
    ]
    mesh = read_mesh(builder.finish(primitives).write(tmp_path / "a.glb"))
    assert len(mesh.faces) == 100 and len(mesh.vertices) == 300


def draco_quad(tmp_path, damage=None):
    """The textured square, compressed by KHR_draco_mesh_compression."""
    import DracoPy

    builder = Builder()
    path = quad(textured(), tmp_path, builder=builder)
    uv = QUAD_UV.astype(np.float64)
    faces = QUAD_FACES.reshape(2, 3).astype(np.uint32)
    packed = DracoPy.encode(QUAD, faces=faces, tex_coord=uv, quantization_bits=16, preserve_order=True)
    ids = {0: "TEXCOORD_0", 1: "POSITION"}
    assert [a["unique_id"] for a in DracoPy.decode(packed).attributes] == list(ids)
    document = builder.document
    for accessor in document["accessors"]:
        del accessor["bufferView"]
    view = builder.view(packed[: damage and len(packed) // 2])
    extension = {"bufferView": view, "attributes": {name: key for key, name in ids.items()}}
    primitive = document["meshes"][0]["primitives"][0]
    primitive["extensions"] = {"KHR_draco_mesh_compression": extension}
    document["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    document["buffers"] = [{"byteLength": len(builder.binary)}]
    return builder.write(path)


def test_draco_is_decoded(tmp_path):
    assert corners(front(draco_quad(tmp_path))) == [RED, GREEN, BLUE, YELLOW]


def test_draco_that_cannot_be_decoded_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="KHR_draco_mesh_compression"):
        read_mesh(draco_quad(tmp_path, damage=True))


def test_draco_without_its_decoder_names_the_extra(tmp_path, monkeypatch):
    path = draco_quad(tmp_path)
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    with pytest.raises(InputError, match="KHR_draco_mesh_compression") as error:
        read_mesh(path)
    assert "sv3d_jax[draco]" in error.value.hint
