"""Losses against their definitions."""

import numpy as np
import pytest

from sv3d_jax.recon.losses import distortion_loss, mask_loss


def test_distortion_is_the_mean_distance_of_pairs():
    """Of all places along the ray, weighted; within a sample the mean distance is a third of its length."""
    rng = np.random.default_rng(0)
    weights, lengths = rng.random((3, 5)), rng.random((3, 5))
    depths = np.cumsum(lengths, axis=1) - lengths / 2
    apart = np.abs(depths[:, :, None] - depths[:, None, :])
    expected = np.einsum("ni,nj,nij->n", weights, weights, apart) + (weights**2 * lengths / 3).sum(1)
    assert float(distortion_loss(weights, depths, lengths)) == pytest.approx(expected.mean(), rel=1e-5)


def test_pixels_of_unknown_coverage_do_not_count():
    opacity, mask = np.array([1.0, 0.0]), np.array([0.0, 0.5])
    assert float(mask_loss(opacity, mask, np.array([0.0, 1.0]))) == pytest.approx(0.125)
