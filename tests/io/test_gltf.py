"""What glTF files show: the right value of every feature, known from the text of glTF 2.0 and from other programs.

Files of tests/cases/meshes are ours, a few lines each; colours are of 8 bits, display values.
"""

import base64
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.cameras.orbit import custom_orbit
from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import to_world
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.render.orbit import render_orbit

CASES = Path(__file__).parents[1] / "cases" / "meshes"


def views(path, size=48, frames=3, elevation=20.0):
    """Colours (f h w 3) without light, and alphas, from around."""
    cameras = custom_orbit(None, elevation, frames)
    images, alphas = render_orbit(to_world(read_mesh(path)), cameras, size, background="transparent")
    return images, alphas


def seen(path, **settings):
    """All colours (n 3) that are seen whole."""
    images, alphas = views(path, **settings)
    return images[alphas == 255]


def extents(path):
    """Sides of the box in the file's x, y, z."""
    mesh = read_mesh(path, up="z")
    return np.ptp(mesh.vertices[mesh.faces].reshape(-1, 3), axis=0)


FLAT = {
    "factor_linear": (188, 124, 63),
    "vertex_color_f4_3": (188, 124, 63),
    "vertex_color_u1_3": (188, 124, 63),
    "texture_times_factor": (146, 86, 41),
    "texture_control": (200, 120, 60),
    "texture_transform_used": (240, 220, 40),
    "wrap_clamp": (240, 220, 40),
    "texcoord1": (240, 220, 40),
    "uv_u16_normalized": (240, 220, 40),
    "texture_grey16": (100, 100, 100),
    "texture_grey8": (100, 100, 100),
    "texture_palette": (100, 150, 200),
    "texture_1bit": (255, 255, 255),
    "texture_webp": (200, 120, 60),
    "no_material": (255, 255, 255),
    "blender_vertex_colors_u16": (128, 64, 16),
    "blender_plain_color": (188, 137, 71),
    "report_factor": (128, 128, 128),
    "report_uv_u16": (255, 0, 0),
    "report_textransform_req": (255, 255, 0),
    "report_texcoord1": (255, 255, 0),
    "report_shell_blend": (255, 0, 0),
    "report_tex_grey16": (128, 128, 128),
    "report_tex_palette": (200, 100, 50),
    "report_unlit": (200, 100, 50),
}


@pytest.mark.parametrize("name", FLAT)
def test_every_point_has_the_files_colour(name):
    colors = seen(CASES / f"{name}.glb").astype(int)
    assert len(colors) > 500
    assert np.abs(colors - FLAT[name]).max() <= 3


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


def test_a_cutoff_makes_holes():
    covered = [(views(CASES / f"{name}.glb")[1] == 255).sum() for name in ("alpha_mask", "alpha_opaque")]
    assert covered[1] > 300
    assert covered[0] / covered[1] == pytest.approx(0.5, abs=0.04)  # of a strip's border, in pixels


def test_what_lies_under_the_cutoff_is_seen_through_and_never_drawn():
    images, alphas = views(CASES / "mask.glb")
    magenta = (images[..., 0] > 200) & (images[..., 1] < 60) & (images[..., 2] > 200)
    assert not (magenta & (alphas > 250)).any()
    assert (alphas == 255).any()


def test_emission_is_the_colour_where_the_base_is_black():
    colors = seen(CASES / "emissive.glb")
    assert (colors.max(axis=1) > 90).all()


def test_a_picture_is_repeated_without_copies_of_it():
    one, many = (read_mesh(CASES / f"repeat{n}.glb") for n in (1, 64))
    assert many.texture.shape == one.texture.shape
    for name in ("repeat1", "repeat64"):
        assert np.abs(seen(CASES / f"{name}.glb").mean(0) - 130).max() < 4


def test_a_textured_part_beside_one_with_vertex_colours():
    colors = seen(CASES / "mixed_parts.glb").astype(int)
    for expected in ((200, 120, 60), (255, 0, 0)):
        assert (np.abs(colors - expected).max(axis=1) <= 3).mean() > 0.2


def test_quantized_texture_coordinates_show_the_whole_picture():
    """As gltfpack writes them: whole numbers, and a texture transform that makes them small again."""
    mesh = read_mesh(CASES / "gltfpack_box.glb")
    assert mesh.texture.shape == (64, 64, 3)
    images, alphas = views(CASES / "gltfpack_box.glb")
    quarters = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    colors = images[alphas == 255].astype(int)
    shares = [(np.abs(colors - q).max(axis=1) < 60).mean() for q in quarters]
    assert min(shares) > 0.1


def test_a_required_texture_transform_shows_its_quarter_alone():
    colors = seen(CASES / "blender_mapping_node.glb").astype(int)
    assert ((colors[:, 2] > 150) & (colors[:, 0] < 140) & (colors[:, 1] < 40)).mean() > 0.97  # the lower left


def lit(path):
    from sv3d_jax.render.lighting import soft_light

    cameras = custom_orbit(None, 20.0, 3)
    return render_orbit(to_world(read_mesh(path)), cameras, 48, soft_light(3))[0].astype(int)


@pytest.mark.parametrize("name, like", [("smooth_split", "smooth_indexed"), ("flat_shared", "flat_split")])
def test_shading_follows_the_files_normals_or_the_faces(name, like):
    assert np.abs(lit(CASES / f"{name}.glb") - lit(CASES / f"{like}.glb")).max() <= 1
    assert np.ptp(lit(CASES / f"{like}.glb")) > 40


@pytest.mark.parametrize(
    "name, words", [("ktx2_used", "KTX2"), ("draco_used_part", "KHR_draco_mesh_compression")]
)
def test_what_is_not_read_is_refused_by_name(name, words):
    with pytest.raises(InputError, match=words) as error:
        read_mesh(CASES / f"{name}.glb")
    assert f"{name}.glb" in error.value.message and error.value.hint


def test_a_chain_of_nodes_costs_no_more_than_its_length():
    assert len(read_mesh(CASES / "chain1600.glb").faces) == 1600


def test_large_pictures_are_kept_once_reduced_and_said():
    mesh = read_mesh(CASES / "glb_64MP_textures.glb")
    assert mesh.texture.shape == (4000, 4000, 3)
    assert len(mesh.remarks) == 1 and "8000x8000" in mesh.remarks[0]


class Builder:
    """A GLB of one mesh, put together by arrays."""

    def __init__(self):
        self.document = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": []}
        self.binary = b""

    def view(self, data):
        self.binary += bytes(-len(self.binary) % 4)
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)}
        )
        self.binary += data
        return len(self.document["bufferViews"]) - 1

    def accessor(self, array, **fields):
        array = np.ascontiguousarray(array)
        kinds = {"<i1": 5120, "|i1": 5120, "|u1": 5121, "<i2": 5122, "<u2": 5123, "<u4": 5125, "<f4": 5126}
        widths = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
        width = 1 if array.ndim == 1 else array.shape[1]
        self.document["accessors"].append(
            {
                "bufferView": self.view(array.tobytes()),
                "componentType": kinds[array.dtype.str],
                "count": len(array),
                "type": widths[width],
                **fields,
            }
        )
        return len(self.document["accessors"]) - 1

    def picture(self, pixels):
        import io

        buffer = io.BytesIO()
        Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
        images = self.document.setdefault("images", [])
        images.append({"bufferView": self.view(buffer.getvalue()), "mimeType": "image/png"})
        textures = self.document.setdefault("textures", [])
        textures.append({"source": len(images) - 1})
        return len(textures) - 1

    def finish(self, primitives, nodes=None, **fields):
        self.document |= {
            "meshes": [{"primitives": primitives}],
            "nodes": nodes or [{"mesh": 0}],
            "scenes": [{"nodes": list(range(len(nodes or [0])))}],
            "scene": 0,
        } | fields
        self.document["buffers"] = [{"byteLength": len(self.binary)}]
        return self

    def write(self, path):
        text = json.dumps(self.document).encode()
        text += b" " * (-len(text) % 4)
        binary = self.binary + bytes(-len(self.binary) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
        chunks += struct.pack("<II", len(binary), 0x004E4942) + binary
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path


QUAD = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], "<f4")
QUAD_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], "<f4")
QUAD_FACES = np.array([0, 1, 2, 0, 2, 3], "<u2")


def quad(material, tmp_path, uv=QUAD_UV, positions=QUAD, colors=None, builder=None, **fields):
    """The path of a square with a material that `material` makes of the builder."""
    builder = builder or Builder()
    attributes = {"POSITION": builder.accessor(positions), "TEXCOORD_0": builder.accessor(uv)}
    if colors is not None:
        attributes["COLOR_0"] = builder.accessor(colors, normalized=colors.dtype.kind in "iu")
    primitive = {"attributes": attributes, "indices": builder.accessor(QUAD_FACES), "material": 0}
    builder.document["materials"] = [material(builder)]
    return builder.finish([primitive], **fields).write(tmp_path / "quad.glb")


def front(path, size=64):
    """The square as the camera in front of its +z side sees it: RGBA."""
    cameras = custom_orbit([0.0, 180.0, 0.0], 0.0, 3)
    images, alphas = render_orbit(to_world(read_mesh(path)), cameras, size, background="transparent")
    return np.dstack([images[-1], alphas[-1]]).astype(int)


def square(pixels, margin=4):
    """The part of a picture that the object covers, less its border."""
    rows, columns = np.nonzero(pixels[..., 3] == 255)
    return pixels[rows.min() + margin : rows.max() - margin, columns.min() + margin : columns.max() - margin]


FOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]]).repeat(8, 0).repeat(8, 1)


def textured(pixels=FOUR, transform=None, sampler=None, **fields):
    def material(builder):
        info = {"index": builder.picture(pixels)}
        if transform:
            info["extensions"] = {"KHR_texture_transform": transform}
        if sampler:
            builder.document["samplers"] = [sampler]
            builder.document["textures"][-1]["sampler"] = 0
        return {"pbrMetallicRoughness": {"baseColorTexture": info}, **fields}

    return material


def corners(pixels):
    """Colours near the four corners: upper left, upper right, lower left, lower right."""
    part = square(pixels)[..., :3]
    h, w = part.shape[:2]
    return [tuple(int(c > 127) for c in part[r, c]) for r in (h // 8, -h // 8) for c in (w // 8, -w // 8)]


RED, GREEN, BLUE, YELLOW = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)


def test_a_picture_stands_upright_and_is_not_mirrored(tmp_path):
    assert corners(front(quad(textured(), tmp_path))) == [RED, GREEN, BLUE, YELLOW]


@pytest.mark.parametrize(
    "transform, expected",
    [
        ({"offset": [0.5, 0]}, [GREEN, RED, YELLOW, BLUE]),
        ({"scale": [0.5, 0.5]}, [RED] * 4),
        ({"scale": [0.5, 0.5], "offset": [0.5, 0.5]}, [YELLOW] * 4),
        # By the specification's matrix: (u, v) = (1, 0), the upper right, is looked up at (cos, -sin) = (0, -1).
        ({"rotation": np.pi / 2}, [BLUE, RED, YELLOW, GREEN]),
        ({"texCoord": 1}, [YELLOW] * 4),
    ],
)
def test_texture_transforms(tmp_path, transform, expected):
    builder = Builder()
    second = builder.accessor(np.full((4, 2), 0.75, "<f4"))
    path = quad(textured(transform=transform), tmp_path, builder=builder)
    document = builder.document
    document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_1"] = second
    assert corners(front(builder.write(path))) == expected


@pytest.mark.parametrize(
    "wrap, expected",
    [
        (10497, [RED, RED, RED, RED]),
        (33071, [YELLOW, YELLOW, YELLOW, YELLOW]),
        (33648, [YELLOW, YELLOW, YELLOW, YELLOW]),
    ],
)
def test_wrap_modes_beyond_the_edge(tmp_path, wrap, expected):
    uv = np.array([[1.1, 1.4], [1.4, 1.4], [1.4, 1.1], [1.1, 1.1]], "<f4")
    sampler = {"wrapS": wrap, "wrapT": wrap}
    assert corners(front(quad(textured(sampler=sampler), tmp_path, uv))) == expected


def test_wrap_modes_differ_along_u_and_v(tmp_path):
    uv = np.array([[1.1, 1.4], [1.4, 1.4], [1.4, 1.1], [1.1, 1.1]], "<f4")
    path = quad(textured(sampler={"wrapS": 33071, "wrapT": 10497}), tmp_path, uv)
    assert corners(front(path)) == [GREEN] * 4


def test_mirrored_repeats_run_back(tmp_path):
    uv = np.array([[1, 2], [2, 2], [2, 1], [1, 1]], "<f4")
    path = quad(textured(sampler={"wrapS": 33648, "wrapT": 33648}), tmp_path, uv)
    assert corners(front(path)) == [YELLOW, BLUE, GREEN, RED]


def test_coordinates_far_away_are_as_sharp_as_near_ones(tmp_path):
    near, far = (front(quad(textured(), tmp_path, QUAD_UV + np.float32(move))) for move in (0, 4096))
    assert np.abs(near - far).max() <= 2


def test_nearest_texels_have_hard_edges(tmp_path):
    pixels = np.array([[[0] * 3, [255] * 3]]).repeat(2, 0)
    values = {}
    for name, filter_ in (("nearest", 9728), ("linear", 9729)):
        part = square(front(quad(textured(pixels, sampler={"magFilter": filter_}), tmp_path)))
        values[name] = ((part[..., 0] > 20) & (part[..., 0] < 235)).mean()
    assert values["nearest"] < 0.1 < 0.3 < values["linear"]


@pytest.mark.parametrize(
    "dtype, width", [("|u1", 3), ("|u1", 4), ("<u2", 3), ("<u2", 4), ("<f4", 3), ("<f4", 4)]
)
def test_vertex_colours_of_every_type_are_linear(tmp_path, dtype, width):
    scale = {"|u1": 255, "<u2": 65535, "<f4": 1}[dtype]
    colors = (np.tile([0.5, 0.2, 0.05, 1.0], (4, 1)) * scale)[:, :width]
    colors = (np.rint(colors) if scale > 1 else colors).astype(dtype)
    pixels = square(front(quad(lambda b: {}, tmp_path, colors=colors)))
    assert np.abs(pixels[..., :3] - [188, 124, 63]).max() <= 1


def test_vertex_colours_are_interpolated_in_linear_light(tmp_path):
    colors = np.array([[0] * 3, [1] * 3, [1] * 3, [0] * 3], "<f4")
    part = square(front(quad(lambda b: {}, tmp_path, colors=colors)), 0)
    assert abs(part[10, part.shape[1] // 2, 0] - 188) < 6  # half the light


def test_half_transparent_surfaces_show_what_is_behind(tmp_path):
    builder = Builder()
    positions = np.concatenate([QUAD, QUAD - [0, 0, 0.5]]).astype("<f4")
    faces = np.array([0, 1, 2, 0, 2, 3], "<u2")
    point = builder.accessor(positions)
    front_faces, back_faces = builder.accessor(faces), builder.accessor(faces + np.uint16(4))
    builder.document["materials"] = [
        {"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0.5]}, "alphaMode": "BLEND"},
        {"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 1, 1]}},
    ]
    primitives = [
        {"attributes": {"POSITION": point}, "indices": index, "material": number}
        for number, index in enumerate((front_faces, back_faces))
    ]
    path = builder.finish(primitives).write(tmp_path / "a.glb")
    middle = front(path)[32, 32]
    assert np.abs(middle - [128, 0, 128, 255]).max() <= 1


def test_shells_that_shine_through_are_seen_from_their_front_alone_if_the_file_says_so(tmp_path):
    shown = {}
    for two_sided in (False, True):
        material = {"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0.5]}}
        material |= {"alphaMode": "BLEND", "doubleSided": two_sided}
        path = quad(lambda b, material=material: material, tmp_path)
        cameras = custom_orbit([0.0, 180.0, 0.0], 0.0, 3)
        alphas = render_orbit(to_world(read_mesh(path)), cameras, 32)[1]
        shown[two_sided] = [int(alphas[view, 16, 16]) for view in (0, 1)]  # front, back
    assert shown == {False: [128, 0], True: [128, 128]}


def test_an_opaque_material_ignores_its_alpha(tmp_path):
    path = quad(lambda b: {"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0.2]}}, tmp_path)
    assert (front(path)[32, 32] == [255, 0, 0, 255]).all()


def test_a_blended_material_without_transparency_is_opaque(tmp_path):
    path = quad(textured(alphaMode="BLEND"), tmp_path)
    assert read_mesh(path).materials is None or (read_mesh(path).materials.cutoff == -1).all()


def test_the_cutoff_counts_vertex_alpha_and_factor(tmp_path):
    colors = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]], "<f4")

    def material(builder):
        factor = {"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 0.8]}}
        return factor | {"alphaMode": "MASK", "alphaCutoff": 0.6}

    pixels = front(quad(material, tmp_path, colors=colors))
    whole = front(quad(lambda b: {}, tmp_path, colors=colors))
    assert (pixels[..., 3] == 255).sum() / (whole[..., 3] == 255).sum() == pytest.approx(0.25, abs=0.03)


def test_the_diffuse_colour_of_specular_glossiness_is_the_colour(tmp_path):
    def material(builder):
        values = {"diffuseFactor": [0.5, 0.2, 0.05, 1], "glossinessFactor": 0.1}
        return {"extensions": {"KHR_materials_pbrSpecularGlossiness": values}}

    pixels = square(front(quad(material, tmp_path)))
    assert np.abs(pixels[..., :3] - [188, 124, 63]).max() <= 1


def test_emission_beside_a_base_colour_is_left_out_and_said(tmp_path):
    path = quad(lambda b: {"emissiveFactor": [1, 1, 1]}, tmp_path)
    assert any("emission" in remark for remark in read_mesh(path).remarks)


def test_emission_fills_the_black_texels_of_the_base(tmp_path):
    glow = np.array([[[0] * 3, [0, 128, 0]]]).repeat(8, 0).repeat(8, 1).repeat(2, 1)
    base = np.array([[[255, 0, 0], [0] * 3]]).repeat(8, 0).repeat(8, 1).repeat(2, 1)

    def material(builder):
        texture, emission = ({"index": builder.picture(picture)} for picture in (base, glow))
        plain = {"pbrMetallicRoughness": {"baseColorTexture": texture}}
        return plain | {"emissiveTexture": emission, "emissiveFactor": [1, 1, 1]}

    part = square(front(quad(material, tmp_path)))
    assert np.abs(part[10, 5, :3] - [255, 0, 0]).max() <= 2
    assert np.abs(part[10, -5, :3] - [0, 128, 0]).max() <= 2


def test_what_light_passes_through_is_drawn_opaque_and_said(tmp_path):
    glass = {"KHR_materials_transmission": {"transmissionFactor": 1}}
    [remark] = read_mesh(quad(lambda b: {"extensions": glass}, tmp_path)).remarks
    assert "KHR_materials_transmission" in remark


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


def test_both_sides_are_drawn_whatever_the_file_says(tmp_path):
    for two_sided in (False, True):
        path = quad(lambda b, two=two_sided: {"doubleSided": two}, tmp_path)
        cameras = custom_orbit([0.0, 180.0, 0.0], 0.0, 3)
        alphas = render_orbit(to_world(read_mesh(path)), cameras, 32)[1]
        assert (alphas[1] == 255).sum() == (alphas[2] == 255).sum() > 100


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


def draco_quad(tmp_path, damage=None):
    """The square with its picture, packed by KHR_draco_mesh_compression."""
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


def test_a_ktx2_picture_beside_a_plain_one_is_not_needed(tmp_path):
    def material(builder):
        info = textured()(builder)
        builder.document["textures"][0]["extensions"] = {"KHR_texture_basisu": {"source": 9}}
        return info

    assert corners(front(quad(material, tmp_path))) == [RED, GREEN, BLUE, YELLOW]


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
    """Every field of a document in turn takes values of other types; nothing but an InputError comes of it."""
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


def test_cutoffs_at_either_end(tmp_path):
    """Opaque texels pass a cutoff of 1, clear ones one of 0, half clear ones their own."""
    for level, cutoff in ((255, 1.0), (0, 0.0), (128, 128 / 255)):
        pixels = np.full((7, 5, 4), 200)
        pixels[..., 3] = level
        path = quad(textured(pixels, alphaMode="MASK", alphaCutoff=cutoff), tmp_path)
        assert (square(front(path), 2)[..., 3] == 255).all(), (level, cutoff)


def test_long_thin_pictures_take_no_more_room_than_square_ones(tmp_path):
    builder = Builder()
    builder.document["materials"] = [
        {"pbrMetallicRoughness": {"baseColorTexture": {"index": builder.picture(np.zeros(shape))}}}
        for shape in ((1, 16000, 3), (16000, 1, 3))
    ]
    attributes = {"POSITION": builder.accessor(QUAD), "TEXCOORD_0": builder.accessor(QUAD_UV)}
    primitives = [{"attributes": attributes, "material": number} for number in (0, 1)]
    mesh = read_mesh(builder.finish(primitives).write(tmp_path / "a.glb"))
    assert mesh.texture.size < 3 * 2 * 4 * 4096**2
    assert len(mesh.remarks) == 2


def test_pictures_of_the_same_bytes_are_kept_once(tmp_path):
    builder = Builder()
    builder.picture(FOUR)
    view = builder.document["bufferViews"][0]
    builder.document["bufferViews"] += [dict(view) for _ in range(3)]
    builder.document["images"] += [{"bufferView": number} for number in range(1, 4)]
    builder.document["textures"] += [{"source": number} for number in range(1, 4)]
    builder.document["materials"] = [
        {"pbrMetallicRoughness": {"baseColorTexture": {"index": number}}} for number in range(4)
    ]
    attributes = {"POSITION": builder.accessor(QUAD), "TEXCOORD_0": builder.accessor(QUAD_UV)}
    primitives = [{"attributes": attributes, "material": number} for number in range(4)]
    assert read_mesh(builder.finish(primitives).write(tmp_path / "a.glb")).texture.shape == (16, 16, 3)


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
