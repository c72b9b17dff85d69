"""Losses against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from sv3d_jax.errors import InputError
from sv3d_jax.metrics.images import ssim
from sv3d_jax.recon.losses import (
    albedo_smoothness_loss,
    bilateral_loss,
    chromaticity_loss,
    depth_smoothness_loss,
    distortion_loss,
    eroded,
    evenness_loss,
    illumination_loss,
    laplacian_loss,
    mask_loss,
    nearby_points,
    nearness_loss,
    normal_consistency_loss,
    normal_loss,
    normals_in_camera,
    opaque_loss,
    orientation_loss,
    paint_pairs,
    perceptual_loss,
    same_chromaticity_probability,
    sdf_sign_loss,
)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def pictures(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def mask(seed: int, *shape: int) -> np.ndarray:
    return (pictures(seed, *shape) < 0.6).astype(np.float32)


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


def test_eroded_mask_is_the_least_of_the_neighbourhood():
    coverage = pictures(0, 2, 9, 7)
    expected = [ndimage.minimum_filter(frame, 3, mode="nearest") for frame in coverage]
    np.testing.assert_array_equal(eroded(coverage), expected)


def test_depth_steps_count_where_both_pixels_are_solid():
    """A valid pixel at a time, a neighbour at a time; the two directions are means of their own."""
    depth, opacity = pictures(1, 2, 6, 5), pictures(2, 2, 6, 5)
    valid = mask(3, 2, 6, 5)
    steps = {"right": [], "down": []}
    for f, i, j in np.ndindex(2, 5, 4):
        for way, there in (("right", (f, i, j + 1)), ("down", (f, i + 1, j))):
            if valid[f, i, j] and opacity[f, i, j] > 0.5 and opacity[there] > 0.5:
                step = depth[there] / opacity[there] - depth[f, i, j] / opacity[f, i, j]
                steps[way].append(step**2)
    expected = np.mean(steps["right"]) + np.mean(steps["down"])
    assert float(depth_smoothness_loss(depth, opacity, valid)) == pytest.approx(expected, rel=1e-5)


def test_depth_gradient_is_finite_where_nothing_is_seen():
    gradients = jax.grad(depth_smoothness_loss, argnums=(0, 1))(
        jnp.zeros((1, 4, 4)), jnp.zeros((1, 4, 4)), jnp.zeros((1, 4, 4))
    )
    assert not np.any(gradients)


def test_normals_and_light_count_in_valid_pixels_alone():
    normals, estimate = unit(pictures(4, 1, 4, 4, 3)), unit(pictures(5, 1, 4, 4, 3))
    images, shading, valid = pictures(6, 1, 4, 4, 3), pictures(7, 1, 4, 4), mask(8, 1, 4, 4)
    expected = (1 - np.einsum("fhwc,fhwc->fhw", normals, estimate))[valid > 0].mean()
    assert float(normal_loss(normals, estimate, valid)) == pytest.approx(expected, rel=1e-5)
    expected = ((images.max(-1) - shading) ** 2)[valid > 0].mean()
    assert float(illumination_loss(shading, images, valid)) == pytest.approx(expected, rel=1e-5)


def two_paints(light: np.ndarray) -> np.ndarray:
    """A picture of two paints in a grey light: the left half of one, the right of another, darker one."""
    paints = np.asarray([[0.9, 0.3, 0.2], [0.2, 0.3, 0.5]], np.float32)
    return light[..., None] * paints[(np.arange(light.shape[-1]) >= light.shape[-1] // 2).astype(int)]


def test_chromaticity_is_least_for_the_true_light_of_any_brightness():
    light = 0.4 + 0.6 * pictures(20, 1, 16, 16)
    images, valid, key = two_paints(light), mask(21, 1, 16, 16), jax.random.key(0)

    def loss(light):
        return float(chromaticity_loss(paint_pairs(light, images, valid, key)))

    for scale in (0.7, 1.0, 2.0):  # the darker paint asks for no darker light
        assert loss(scale * light) < 1e-6
    assert loss(np.ones_like(light)) > 0.1
    assert loss(images.max(-1)) < 1e-6  # each paint by itself


def test_chromaticity_ignores_what_is_invalid_or_black():
    light = 0.4 + 0.6 * pictures(22, 1, 16, 16)
    images, valid = two_paints(light), mask(23, 1, 16, 16)
    images[valid == 0] = pictures(24, 1, 16, 16, 3)[valid == 0]
    images[:, :4] = 0.0

    def loss(light):
        return chromaticity_loss(paint_pairs(light, images, valid, jax.random.key(1)))

    assert float(loss(light)) < 1e-6
    gradient = jax.grad(loss)(jnp.ones_like(light))
    assert np.isfinite(gradient).all() and np.any(gradient)
    assert not np.any(gradient[valid == 0]) and not np.any(gradient[:, :4])


def test_light_is_even_where_it_has_one_brightness():
    images, valid = two_paints(np.ones((1, 16, 16), np.float32)), np.ones((1, 16, 16), np.float32)
    uneven = np.where(np.arange(16) < 8, 1.0, 0.5) * np.ones((1, 16, 16), np.float32)
    even, halved = (
        float(evenness_loss(paint_pairs(light, images, valid, jax.random.key(2))))
        for light in (0.3 * np.ones_like(valid), uneven)
    )
    assert even == 0.0
    assert halved == pytest.approx(0.5 * np.log(2), rel=0.1)  # one pair in two


def test_the_share_of_one_paint_is_the_chance_that_two_places_have_it():
    light, valid = 0.4 + 0.6 * pictures(25, 1, 32, 32), np.ones((1, 32, 32), np.float32)
    one = light[..., None] * np.float32([0.9, 0.3, 0.2])
    shares = [
        float(same_chromaticity_probability(paint_pairs(light, images, valid, jax.random.key(3))))
        for images in (one, two_paints(light))
    ]
    assert shares == pytest.approx([1.0, 0.5], abs=0.03)  # 4096 pairs


def test_normals_turn_with_the_camera():
    """A normal along the camera's own x axis is x there, whichever way the camera looks."""
    rotation, _ = np.linalg.qr(pictures(9, 2, 3, 3))
    pose = np.tile(np.eye(4), (2, 1, 1))
    pose[:, :3, :3] = rotation
    along_axes = np.moveaxis(rotation, 2, 1)[:, :, None]  # three pixels: x, y and z of each camera
    np.testing.assert_allclose(
        normals_in_camera(along_axes, pose)[:, :, 0], np.tile(np.eye(3), (2, 1, 1)), atol=1e-6
    )


def test_bilateral_is_its_formula():
    """Sobel derivatives as SciPy makes them, borders repeated; forward differences of the normals."""
    normals, images, valid = unit(pictures(10, 7, 6, 3)), pictures(11, 7, 6, 3), mask(12, 7, 6)
    change = sum(
        np.abs(ndimage.sobel(images[..., c], axis, mode="nearest")) / 8 for c in range(3) for axis in (0, 1)
    )
    bend = (np.diff(normals, axis=0)[:, :-1] ** 2 + np.diff(normals, axis=1)[:-1] ** 2).sum(-1)
    values = np.exp(-change[:-1, :-1]) * np.sqrt(
        1 + np.sqrt(bend + 1e-6)
    )  # 3 g is the sum over three channels
    expected = values[valid[:-1, :-1] > 0].mean()
    assert float(bilateral_loss(normals, images, valid)) == pytest.approx(expected, rel=1e-5)


def test_bilateral_gradient_is_finite_on_a_plane():
    flat = jnp.zeros((4, 4, 3)).at[..., 2].set(1.0)
    assert np.isfinite(jax.grad(bilateral_loss)(flat, jnp.ones((4, 4, 3)), jnp.ones((4, 4)))).all()


def test_albedo_counts_by_weight():
    albedo, nearby, weights = pictures(13, 9, 3), pictures(14, 9, 3), pictures(15, 9)
    expected = np.average(((albedo - nearby) ** 2).sum(-1), weights=weights)
    assert float(albedo_smoothness_loss(albedo, nearby, weights)) == pytest.approx(expected, rel=1e-5)


def test_nearby_points_are_as_far_as_was_asked():
    points = jnp.ones((20000, 3))
    moved = nearby_points(points, 0.01, jax.random.key(0)) - points
    np.testing.assert_allclose(moved.std(axis=0), 0.01, rtol=0.03)  # 4 deviations of the estimate are 2 %


def test_nearness_is_the_way_from_the_hull():
    depths = np.array([[2.0, 2.5, 4.0], [1.0, 1.5, 2.0]], np.float32)
    weights = np.array([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]], np.float32)
    entries = np.array([2.25, 0.6], np.float32)
    assert float(nearness_loss(weights, depths, entries)) == pytest.approx((1.0 + 0.4) / 2)


def test_orientation_looks_at_normals_that_face_away_in_rays_that_see_something():
    rng = np.random.default_rng(16)
    weights, normals, directions = (
        rng.random((4, 5)),
        unit(rng.normal(size=(4, 5, 3))),
        rng.normal(size=(4, 3)),
    )
    weights[1] = 0.0
    cosine = np.einsum("nsi,ni->ns", normals, directions)
    expected = (weights * np.where(cosine > 0, cosine, 0) ** 2).sum() / 3
    assert float(orientation_loss(weights, normals, directions)) == pytest.approx(expected, rel=1e-5)


def test_orientation_moves_no_weights():
    rng = np.random.default_rng(17)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 5), (4, 5, 3), (4, 3))]
    assert not np.any(jax.grad(orientation_loss)(*arrays))


def test_opaque_is_the_entropy_of_a_coin():
    assert float(opaque_loss(np.array([0.5, 0.5]))) == pytest.approx(np.log(2.0))
    expected = -(0.001 * np.log(0.001) + 0.999 * np.log(0.999))
    assert float(opaque_loss(np.array([0.0, 1.0]))) == pytest.approx(expected, rel=1e-4)


# A square of two triangles, 0 1 2 and 0 2 3, with a loose vertex 4 and a row of padding.
EDGES = np.array([[0, 1], [1, 2], [0, 2], [2, 3], [0, 3], [0, 0]])
FACES_OF_EDGES = np.array([[0, -1], [0, -1], [0, 1], [1, -1], [1, -1], [-1, -1]])


def test_laplacian_is_the_distance_to_the_mean_of_the_neighbours():
    vertices = pictures(18, 5, 3)
    neighbours = {0: [1, 2, 3], 1: [0, 2], 2: [0, 1, 3], 3: [0, 2]}
    distances = [((vertices[ring].mean(0) - vertices[v]) ** 2).sum() for v, ring in neighbours.items()]
    got = laplacian_loss(vertices, EDGES, FACES_OF_EDGES)
    assert float(got) == pytest.approx(np.mean(distances), rel=1e-5)


@pytest.mark.parametrize("turn_deg", [0.0, 60.0, 90.0, 180.0])
def test_normal_consistency_is_the_turn_over_inner_edges(turn_deg):
    turn = np.radians(turn_deg)
    normals = np.array([[0.0, 0.0, 1.0], [0.0, np.sin(turn), np.cos(turn)]])
    got = float(normal_consistency_loss(normals, FACES_OF_EDGES))
    assert got == pytest.approx((1 - np.cos(turn)) / 2, abs=1e-6)


def test_sdf_sign_loss_is_the_cross_entropy_over_crossing_edges():
    """Of probability sigmoid(s) of being outside and the other end's side, as it reads."""
    sdf = np.random.default_rng(19).normal(size=8)
    edges = np.array([(a, b) for a in range(8) for b in range(a)])
    total = []
    for a, b in edges:
        if (sdf[a] < 0) != (sdf[b] < 0):
            outside_a, outside_b = 1 / (1 + np.exp(-sdf[[a, b]]))
            total.append(
                -np.log(outside_a if sdf[b] >= 0 else 1 - outside_a)
                - np.log(outside_b if sdf[a] >= 0 else 1 - outside_b)
            )
    assert float(sdf_sign_loss(sdf, edges)) == pytest.approx(np.mean(total), rel=1e-5)


def test_sdf_sign_loss_is_the_same_inside_out():
    """So it equals that of codes where the inside is positive."""
    sdf = np.random.default_rng(20).normal(size=8)
    edges = np.array([(a, b) for a in range(8) for b in range(a)])
    assert float(sdf_sign_loss(-sdf, edges)) == pytest.approx(float(sdf_sign_loss(sdf, edges)), rel=1e-6)


def test_sdf_that_crosses_nowhere_costs_nothing():
    assert float(sdf_sign_loss(np.ones(3), np.array([[0, 1], [1, 2]]))) == 0.0


def test_perceptual_loss_of_equal_pictures_is_0():
    image = pictures(21, 1, 16, 16, 3)
    assert float(perceptual_loss(image, image)) == pytest.approx(0.0, abs=1e-6)


def test_perceptual_loss_is_ssim_and_errors_at_four_sizes():
    first, second = pictures(22, 2, 16, 24, 3), pictures(23, 2, 16, 24, 3)
    errors = []
    for side in (1, 2, 4, 8):
        blocks = (first - second).reshape(2, 16 // side, side, 24 // side, side, 3)
        errors.append(np.abs(blocks.mean((2, 4))).mean())
    expected = 1 - float(ssim(first, second).mean()) + np.mean(errors)
    assert float(perceptual_loss(first, second)) == pytest.approx(expected, rel=1e-5)


def test_pictures_below_the_window_of_ssim_are_refused_with_their_size():
    small = pictures(0, 2, 12, 10, 3)
    with pytest.raises(InputError, match="at least 11 pixels a side, got 10x12"):
        perceptual_loss(small, small)
