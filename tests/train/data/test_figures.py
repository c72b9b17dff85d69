"""The figures family: what every figure must have for the small model to be able to learn it."""

import numpy as np
import pytest

from sv3d_jax.train.data.figures import MAX_TRIANGLES, figure_mesh

SEEDS = range(16)


def test_same_seed_gives_the_same_figure():
    first, second = figure_mesh(7), figure_mesh(7)
    assert np.array_equal(first.vertices, second.vertices)
    assert np.array_equal(first.vertex_colors, second.vertex_colors)


def test_seeds_differ():
    assert not np.array_equal(figure_mesh(1).vertex_colors[0], figure_mesh(2).vertex_colors[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_are_closed_and_face_outwards(seed):
    mesh = figure_mesh(seed)
    assert len(mesh.faces) <= MAX_TRIANGLES
    corners = mesh.vertices[mesh.faces]
    area_vector = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).sum(0)
    np.testing.assert_allclose(area_vector, 0.0, atol=1e-12)  # a closed surface's area vectors cancel
    assert np.linalg.det(corners).sum() > 0  # six times the enclosed volume


@pytest.mark.parametrize("seed", SEEDS)
def test_hat_shares_its_colour_with_the_left_side_and_feet_with_the_right(seed):
    mesh = figure_mesh(seed)
    centers = mesh.vertices[mesh.faces].mean(1)
    colors = mesh.vertex_colors[mesh.faces[:, 0]]
    front = colors[np.argmax(centers[:, 2])]  # the knob
    pale = 0.45 + 0.55 * front
    nose = np.abs(colors - pale).max(1) < 1e-5
    ahead = centers[nose][:, :2].mean(0)
    cross = ahead[0] * centers[:, 1] - ahead[1] * centers[:, 0]
    cross /= np.linalg.norm(centers[:, :2], axis=1)  # greatest straight to the figure's left
    waist = (centers[:, 2] > 0.3) & (centers[:, 2] < 0.6)
    hat = colors[np.flatnonzero((centers[:, 2] > 0.85) & (np.abs(colors - front).max(1) > 1e-5))[0]]
    foot = colors[np.argmin(centers[:, 2])]
    np.testing.assert_allclose(colors[waist][np.argmax(cross[waist])], hat, atol=1e-6)
    np.testing.assert_allclose(colors[waist][np.argmin(cross[waist])], foot, atol=1e-6)
