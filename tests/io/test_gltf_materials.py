"""Colours, textures and transparency of glTF materials, against glTF 2.0's text and other programs."""

import numpy as np
import pytest

from sv3d_jax.io.meshes import read_mesh
from tests.io.gltf_files import (
    BLUE,
    CASES,
    FOUR,
    GREEN,
    QUAD,
    QUAD_UV,
    RED,
    YELLOW,
    Builder,
    both_sides,
    corners,
    front,
    layers,
    quad,
    seen,
    square,
    textured,
    views,
)

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
    """As gltfpack writes them: integers, and a texture transform that scales them back."""
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


def test_large_pictures_are_kept_once_reduced_and_said():
    mesh = read_mesh(CASES / "glb_64MP_textures.glb")
    assert mesh.texture.shape == (4000, 4000, 3)
    assert len(mesh.remarks) == 1 and "8000x8000" in mesh.remarks[0]


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
        shown[two_sided] = [int(side[16, 16, 3]) for side in both_sides(path, 32)]
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


def test_both_sides_are_drawn_whatever_the_file_says(tmp_path):
    for two_sided in (False, True):
        path = quad(lambda b, two=two_sided: {"doubleSided": two}, tmp_path)
        front_side, back_side = both_sides(path, 32)
        assert (back_side[..., 3] == 255).sum() == (front_side[..., 3] == 255).sum() > 100


def test_a_ktx2_picture_beside_a_plain_one_is_not_needed(tmp_path):
    def material(builder):
        info = textured()(builder)
        builder.document["textures"][0]["extensions"] = {"KHR_texture_basisu": {"source": 9}}
        return info

    assert corners(front(quad(material, tmp_path))) == [RED, GREEN, BLUE, YELLOW]


def test_cutoffs_at_either_end(tmp_path):
    """Opaque texels pass a cutoff of 1, transparent ones a cutoff of 0, half transparent ones their own alpha."""
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
    mesh = read_mesh(layers(builder, tmp_path))
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
    assert read_mesh(layers(builder, tmp_path)).texture.shape == (16, 16, 3)
