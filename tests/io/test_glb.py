"""GLB files that are written."""

import functools
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io import gltf
from sv3d_jax.io.gltf import write_glb
from sv3d_jax.io.gltf_data import split_glb
from sv3d_jax.render.interpolate import vertex_normals
from tests.io.test_meshes import COLORED, FACES, VERTICES
from tests.io.test_meshes import TEXTURED as ODD

# What the validator (npm: gltf-validator) said of the same bytes.
STORED = Path(__file__).with_name("glb_validator.json")
TEXTURED = Mesh(
    VERTICES, FACES, uv=ODD.uv, texture=ODD.texture[:2, :4]
)  # sides are powers of two, as by default
BOTH = Mesh(VERTICES, FACES, COLORED.vertex_colors, TEXTURED.uv, TEXTURED.texture)
PLAIN = Mesh(VERTICES, FACES)
MESHES = {"colored": COLORED, "textured": TEXTURED, "both": BOTH, "plain": PLAIN}
VALIDATE = """
const validator = require("gltf-validator");
validator.validateBytes(new Uint8Array(require("fs").readFileSync(0))).then((report) => console.log(JSON.stringify(
  { version: validator.version(), messages: report.issues.messages })));
"""


def written(folder, mesh, normals=None):
    """The document of a GLB, and its accessors as arrays by the names of the attributes."""
    write_glb(folder / "a.glb", mesh, normals)
    text, binary = split_glb((folder / "a.glb").read_bytes())
    document = json.loads(text)
    arrays = {}
    for name, number in document["meshes"][0]["primitives"][0]["attributes"].items():
        accessor = document["accessors"][number]
        view = document["bufferViews"][accessor["bufferView"]]
        dtype = {5123: "<u2", 5126: "<f4"}[accessor["componentType"]]
        data = binary[view["byteOffset"] :][: view["byteLength"]]
        arrays[name] = np.frombuffer(data, dtype).reshape(accessor["count"], int(accessor["type"][-1]))
    return document, arrays


def test_colors_are_linear_in_16_bits(tmp_path):
    levels = np.array([[0, 128, 255], [10, 188, 1], [64, 16, 7], [200, 100, 50]], np.float32)
    document, arrays = written(tmp_path, Mesh(VERTICES, FACES, levels / 255))
    # 65535 times ((x / 255 + 0.055) / 1.055) ** 2.4, or x / 255 / 12.92 up to 10: the sRGB curve.
    expected = [[0, 14146, 65535], [199, 32957, 20], [3360, 340, 139], [37852, 8352, 2090]]
    np.testing.assert_allclose(arrays["COLOR_0"][:, :3], expected, atol=1)
    assert (arrays["COLOR_0"][:, 3] == 65535).all()  # opaque
    number = document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]
    assert document["accessors"][number]["normalized"] is True


@pytest.mark.parametrize("name", MESHES)
def test_every_glb_has_a_material_that_does_not_shine(tmp_path, name):
    document, _ = written(tmp_path, MESHES[name])
    assert document["meshes"][0]["primitives"][0]["material"] == 0
    [material] = document["materials"]
    base = material["pbrMetallicRoughness"]
    assert (base["metallicFactor"], base["roughnessFactor"]) == (0.0, 1.0)
    assert ("baseColorTexture" in base) == (MESHES[name].texture is not None)


def test_normals_are_those_that_the_renderer_shades_with(tmp_path):
    _, arrays = written(tmp_path, PLAIN)
    shaded = vertex_normals(jnp.asarray(VERTICES, jnp.float32), jnp.asarray(FACES))
    np.testing.assert_allclose(arrays["NORMAL"], shaded, atol=1e-6)


def test_a_vertex_that_no_face_uses_has_a_unit_normal_too(tmp_path):
    vertices = np.concatenate([VERTICES, [[5.0, 5.0, 5.0]]])
    _, arrays = written(tmp_path, Mesh(vertices, FACES))
    np.testing.assert_allclose(np.linalg.norm(arrays["NORMAL"], axis=1), 1.0, atol=1e-6)


def test_pictures_end_at_their_edges(tmp_path):
    document, _ = written(tmp_path, TEXTURED)
    sampler = document["samplers"][document["textures"][0]["sampler"]]
    assert (sampler["wrapS"], sampler["wrapT"]) == (33071, 33071)  # CLAMP_TO_EDGE, as the renderer samples


@pytest.mark.parametrize("name", MESHES)
def test_the_validator_found_nothing_in_these_bytes(tmp_path, name, monkeypatch):
    picture = bytes.fromhex(json.loads(STORED.read_text())["picture"])  # encoders do not promise their bytes
    monkeypatch.setattr(gltf, "png", lambda pixels: picture)
    write_glb(tmp_path / "a.glb", MESHES[name])
    data = (tmp_path / "a.glb").read_bytes()
    assert json.loads(STORED.read_text())["found_nothing"][name] == hashlib.sha256(data).hexdigest(), (
        "the writer has changed: run this file where the validator is, and store what it says"
    )


@functools.cache
def validator() -> bool:
    command = ["node", "-e", 'require.resolve("gltf-validator")']
    return shutil.which("node") is not None and not subprocess.run(command, capture_output=True).returncode


@pytest.mark.parametrize("name", MESHES)
def test_the_validator_finds_nothing(tmp_path, name):
    if not validator():
        pytest.skip("needs node and the npm package gltf-validator (NODE_PATH)")
    write_glb(tmp_path / "a.glb", MESHES[name])
    with open(tmp_path / "a.glb", "rb") as file:
        done = subprocess.run(
            ["node", "-e", VALIDATE], stdin=file, capture_output=True, text=True, check=True
        )
    assert json.loads(done.stdout)["messages"] == []
