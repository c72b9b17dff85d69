"""Meshes: their placement in the world, as other libraries have them, what notebooks show."""

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import OBJECT_RADIUS, Materials, Mesh, object_to_world, to_world
from sv3d_jax.train.data.figures import figure_mesh


def test_farthest_vertex_lies_on_the_object_ball():
    world = to_world(figure_mesh(3)).vertices
    np.testing.assert_allclose(np.linalg.norm(world, axis=1).max(), OBJECT_RADIUS)
    np.testing.assert_allclose(world.max(0), -world.min(0), atol=1e-12)


def test_unused_vertices_do_not_count_for_the_scale():
    mesh = figure_mesh(3)
    padded = Mesh(np.concatenate([mesh.vertices, [[99.0, 0.0, 0.0]]]), mesh.faces)
    assert np.array_equal(object_to_world(padded), object_to_world(mesh))


def textured_square() -> Mesh:
    """A square whose upper half is red, with a texture of two texels."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]], float)
    texture = np.array([[[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]], np.float32)
    return Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]], np.int32), uv=vertices[:, ::2], texture=texture)


def test_trimesh_gets_the_same_surface_and_texture():
    mesh = textured_square()
    made = mesh.to_trimesh()
    assert isinstance(made, trimesh.Trimesh)
    np.testing.assert_array_equal(made.vertices, mesh.vertices)
    np.testing.assert_array_equal(made.faces, mesh.faces)
    colors = made.visual.to_color().vertex_colors[:, :3]
    np.testing.assert_array_equal(colors, [[0, 0, 255], [0, 0, 255], [255, 0, 0], [255, 0, 0]])


def test_trimesh_gets_the_colours_of_vertices():
    mesh = figure_mesh(3)
    colors = mesh.to_trimesh().visual.vertex_colors[:, :3]
    np.testing.assert_allclose(colors / 255, mesh.vertex_colors, atol=0.5 / 255 + 1e-6)


def test_a_mesh_of_several_materials_is_no_trimesh():
    one = np.zeros(1, np.int32)
    materials = Materials(
        np.zeros(2, np.int32), np.zeros((1, 4)), np.zeros((1, 2)), one > 0, one - 1.0, one > 0
    )
    with pytest.raises(InputError, match="a mesh of 1 materials"):
        replace(textured_square(), materials=materials).to_trimesh()


def test_a_mesh_says_what_it_is():
    assert repr(textured_square()) == "Mesh(4 vertices, 2 faces, texture 1x2)"


def test_a_notebook_shows_a_mesh_as_it_turns():
    mesh = figure_mesh(3)
    views = mesh.turning(num_views=4, size=24)
    assert views.shape == (4, 24, 24, 3) and views.dtype == np.uint8
    assert (views[:, 0, 0] == 255).all() and (views[0] != views[1]).any()
    assert "data:image/webp;base64," in mesh._repr_html_() and repr(mesh) in mesh._repr_html_()
