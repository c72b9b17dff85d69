"""The placement of meshes in the world."""

import numpy as np

from sv3d_jax.geometry.mesh import OBJECT_RADIUS, Mesh, object_to_world, to_world
from sv3d_jax.train.data.figures import figure_mesh


def test_farthest_vertex_lies_on_the_object_ball():
    world = to_world(figure_mesh(3)).vertices
    np.testing.assert_allclose(np.linalg.norm(world, axis=1).max(), OBJECT_RADIUS)
    np.testing.assert_allclose(world.max(0), -world.min(0), atol=1e-12)


def test_unused_vertices_do_not_count_for_the_scale():
    mesh = figure_mesh(3)
    padded = Mesh(np.concatenate([mesh.vertices, [[99.0, 0.0, 0.0]]]), mesh.faces)
    assert np.array_equal(object_to_world(padded), object_to_world(mesh))
