"""Views of a mesh."""

import numpy as np
import pytest

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.geometry.mesh import Mesh, to_world
from sv3d_jax.render.appearance import _remainder
from sv3d_jax.render.lighting import environment_light, random_sg_light, random_sh_light
from sv3d_jax.render.orbit import render_orbit
from sv3d_jax.train.data.figures import figure_mesh


def test_a_quarter_turn_of_the_object_shifts_an_orbit_of_quarter_turns_by_one_frame():
    mesh = to_world(figure_mesh(8))
    turned = Mesh(
        mesh.vertices @ [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], mesh.faces, mesh.vertex_colors
    )  # +90 degrees
    path = CameraPath([90.0, 180.0, 270.0, 0.0], [15.0] * 4)
    still, moved = (render_orbit(m, path, 32)[0].astype(int) for m in (mesh, turned))
    assert (np.abs(np.roll(still, 1, axis=0) - moved) > 2).mean() < 0.002  # a few points on edges


SQUARE = Mesh(
    vertices=np.array([[0.0, -0.3, -0.3], [0.0, 0.3, -0.3], [0.0, 0.3, 0.3], [0.0, -0.3, 0.3]]),
    faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
    vertex_colors=np.tile(np.float32([0.2, 0.4, 0.6]), (4, 1)),
)


FACING = CameraPath([0.0, 0.0], [0.0, 0.0])


def test_alpha_is_the_covered_share_of_a_pixel():
    _, alpha = render_orbit(SQUARE, FACING, 40, supersample=8)
    focal = 20 / np.tan(np.radians(16.9))
    np.testing.assert_allclose(alpha[0].sum() / 255, (0.6 * focal / 2) ** 2, rtol=0.02)  # 64 points a pixel


def test_transparent_background_keeps_the_object_color_at_its_border():
    images, alpha = render_orbit(SQUARE, FACING, 33, background="transparent")
    partly = (alpha > 0) & (alpha < 255)
    assert partly.any()
    assert np.array_equal(np.unique(images[partly], axis=0), [[51, 102, 153]])


def test_texture_appears_upright():
    texture = np.zeros((2, 2, 3), np.float32)
    texture[0, 0], texture[1, 1] = [1, 0, 0], [0, 0, 1]  # red at the top left, blue at the bottom right
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], np.float32)
    image = render_orbit(Mesh(SQUARE.vertices, SQUARE.faces, uv=uv, texture=texture), FACING, 40)[0][0]
    assert np.array_equal(image[11, 11], [255, 0, 0]) and np.array_equal(image[28, 28], [0, 0, 255])


def test_padding_a_textured_mesh_changes_no_texel():
    texture = np.random.default_rng(0).uniform(size=(5, 7, 3)).astype(np.float32)
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], np.float32)
    image = render_orbit(Mesh(SQUARE.vertices, SQUARE.faces, uv=uv, texture=texture), FACING, 256)[0][0]
    shown = (image != 255).any(-1)
    top, left = np.argwhere(shown).min(0)
    corners = image[[top + 2, top + 2], [left + 2, 255 - left - 2]] / 255.0
    np.testing.assert_allclose(corners, texture[0, [0, -1]], atol=0.003)  # rounding to uint8


@pytest.mark.parametrize(
    "light", [random_sg_light(1), random_sh_light(1), environment_light(np.ones((8, 16, 3)))]
)
def test_any_light_falls_on_an_orbit(light):
    lit, _ = render_orbit(SQUARE, FACING, 32, light)
    shade = np.broadcast_to(np.asarray(light.shade(np.float32([[1.0, 0.0, 0.0]]))).reshape(1, -1), (1, 3))[0]
    expected = 255 * np.minimum(shade * np.float32([0.2, 0.4, 0.6]), 1.0)
    np.testing.assert_allclose(lit[0, 16, 16], expected, atol=1.0)


def test_remainders_of_texel_numbers_are_those_of_integers():
    rng = np.random.default_rng(0)
    size = rng.integers(1, 5000, 20000).astype(np.int32)
    near = size * rng.integers(-3000, 3000, len(size)) + rng.integers(-1, 2, len(size))  # at multiples
    for index in (near, rng.integers(-(2**24), 2**24, len(size))):
        index = index.astype(np.int32)
        np.testing.assert_array_equal(_remainder(index, size), index % size)
    far = np.full(len(size), np.iinfo(np.int32).max)
    assert (np.asarray(_remainder(far, size)) < size).all()
