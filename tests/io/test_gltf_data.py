"""Buffers, URIs and JSON of glTF files: what is read, and how damage is refused."""

import base64
import json

import numpy as np
import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io import gltf_data
from sv3d_jax.io.gltf_data import Document
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.io.surfaces import Source
from tests.io.gltf_files import BLUE, CASES, GREEN, RED, YELLOW, Builder, corners, front, quad, textured


@pytest.mark.parametrize(
    "name, words", [("ktx2_used", "KTX2"), ("draco_used_part", "KHR_draco_mesh_compression")]
)
def test_what_is_not_read_is_refused_by_name(name, words):
    with pytest.raises(InputError, match=words) as error:
        read_mesh(CASES / f"{name}.glb")
    assert f"{name}.glb" in error.value.message and error.value.hint


def test_a_gltf_reads_its_buffer_and_picture_beside_and_below(tmp_path):
    builder = Builder()
    quad(textured(), tmp_path, builder=builder)
    document = builder.document
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    start = view["byteOffset"]
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a b.png").write_bytes(builder.binary[start : start + view["byteLength"]])
    (tmp_path / "a.bin").write_bytes(builder.binary)
    document["images"] = [{"uri": "maps/a%20b.png"}]
    document["buffers"] = [{"uri": "a.bin", "byteLength": len(builder.binary)}]
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    assert corners(front(tmp_path / "a.gltf")) == [RED, GREEN, BLUE, YELLOW]


def test_data_uris_with_and_without_base64(tmp_path):
    builder = Builder()
    quad(textured(), tmp_path, builder=builder)
    document = builder.document
    plain = "".join(f"%{byte:02X}" for byte in builder.binary)
    packed = base64.b64encode(builder.binary).decode()
    for uri in (f"data:application/octet-stream,{plain}", f"data:;base64,{packed}"):
        document["buffers"] = [{"uri": uri, "byteLength": len(builder.binary)}]
        (tmp_path / "a.gltf").write_text(json.dumps(document))
        assert len(read_mesh(tmp_path / "a.gltf").faces) == 2


def test_a_compressed_view_without_a_fallback_is_refused_by_name(tmp_path):
    builder = Builder()
    path = quad(lambda b: {}, tmp_path, builder=builder)
    name = "EXT_meshopt_compression"
    builder.document["buffers"].append({"byteLength": 48, "extensions": {name: {"fallback": True}}})
    builder.document["bufferViews"][0] |= {"buffer": 1, "extensions": {name: {"buffer": 0}}}
    with pytest.raises(InputError, match=name):
        read_mesh(builder.write(path))


def test_remarks_and_refusals_never_quote_python(tmp_path):
    rng = np.random.default_rng(0)
    builder = Builder()
    path = quad(textured(alphaMode="MASK"), tmp_path, builder=builder)
    text = json.dumps(builder.document)
    numbers = [i for i, character in enumerate(text) if character.isdigit()]
    for _ in range(150):
        damaged = list(text)
        for place in rng.choice(numbers, 2):
            damaged[place] = str(rng.integers(10))
        try:
            builder.document = json.loads("".join(damaged))
        except ValueError:
            continue
        try:
            read_mesh(builder.write(path))
        except InputError as error:
            assert "quad.glb" in error.message
            assert not any(word in error.message for word in ("Error", "object", "subscript", "argument"))


WRONG = [None, True, -1, 1.5, 10**9, "x", [], {}, [None], [[]], {"a": {}}]


def test_any_value_of_a_wrong_type_is_an_input_error_that_names_the_file(tmp_path):
    """Values of wrong types in any field of a document raise InputError and nothing else."""
    builder = Builder()
    path = quad(textured(transform={"offset": [0.1, 0]}, sampler={"wrapS": 33071}), tmp_path, builder=builder)
    whole = json.dumps(builder.document)

    def places(value, found=()):
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, item in items:
            yield (*found, key)
            yield from places(item, (*found, key))

    for place in places(json.loads(whole)):
        for wrong in WRONG:
            document = parent = json.loads(whole)
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = wrong
            builder.document = document
            try:
                read_mesh(builder.write(path))
            except InputError as error:
                assert "quad.glb" in error.message, (place, wrong)
                assert "does not follow its format" not in error.message, (place, wrong, error.__cause__)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 29_000_000, "type": "MAT4"},  # zeros that no byte stands for
        {"count": 29_000_000},
    ],
)
def test_claims_without_data_are_refused_before_they_take_memory(tmp_path, changes):
    builder = Builder()
    path = quad(lambda b: {}, tmp_path, builder=builder)
    accessor = builder.document["accessors"][0] | changes
    del accessor["bufferView"]
    builder.document["accessors"][0] = accessor
    with pytest.raises(InputError, match="without data"):
        read_mesh(builder.write(path))


NO_CHANGE = {"count": 0, "indices": {"bufferView": 0, "componentType": 5121}, "values": {"bufferView": 0}}


@pytest.mark.parametrize("fields", [{"normalized": True}, {"sparse": NO_CHANGE}])
def test_accessors_that_share_bytes_count_each_time_before_they_are_copied(tmp_path, monkeypatch, fields):
    """A megabyte can be behind thousands of accessors, each of which would be converted to numbers of its own."""
    monkeypatch.setattr(gltf_data, "MAX_COPIED", 100)
    builder = Builder()
    builder.accessor(np.zeros((8, 4), "|u1"), **fields)
    builder.document["accessors"] *= 4
    builder.document["buffers"] = [{"byteLength": len(builder.binary)}]
    document = Document(builder.document, memoryview(builder.binary), Source(tmp_path / "a.glb"))
    assert all(len(document.accessor(index, "user")) == 8 for index in range(3))
    with pytest.raises(InputError, match="has 128 numbers that are normalized or sparse"):
        document.accessor(3, "user")


@pytest.mark.parametrize("stride", [3, 4, 8, 13, 18, 253, 256, 10**18])
def test_strides_that_elements_do_not_fit_into_are_refused(tmp_path, stride):
    builder = Builder()
    path = quad(lambda b: {}, tmp_path, builder=builder)
    builder.document["bufferViews"][0]["byteStride"] = stride
    with pytest.raises(InputError, match=r"bufferViews\[0\].byteStride is"):
        read_mesh(builder.write(path))


@pytest.mark.parametrize(
    "count, shown", [(10**18, "10+"), ("4", "'4'"), (True, "True"), (-1, "-1"), (4.5, "4.5")]
)
def test_a_count_that_is_none_is_shown_with_what_is_needed(tmp_path, count, shown):
    builder = Builder()
    path = quad(lambda b: {}, tmp_path, builder=builder)
    builder.document["accessors"][0]["count"] = count
    with pytest.raises(InputError, match=f"count is {shown}, a whole number from 0 to 2.53 is needed"):
        read_mesh(builder.write(path))
