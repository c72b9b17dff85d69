"""The hull of the masks, and samples along rays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.recon.config import NerfConfig
from sv3d_jax.recon.nerf.occupancy import (
    MIN_DENSITY,
    box_crossing,
    hull_pictures,
    march,
    meets_hull,
    refresh,
    start_occupancy,
    visual_hull,
)
from sv3d_jax.recon.nerf.stage import pixel_rays
from sv3d_jax.recon.views import prepare_views
from tests.recon.scenes import ball_orbit

CONFIG = NerfConfig(candidates_per_ray=64, samples_per_ray=16)
CENTERS = (np.indices((32, 32, 32)) + 0.5) / 32 * 4 - 2


@pytest.fixture(scope="module")
def ball():
    views, box = prepare_views(ball_orbit(num_frames=12))
    return visual_hull(views, 32, 0.0), 0.4 / box.scale


def ray_along_x(offset: float = 0.01) -> tuple[jax.Array, jax.Array]:
    return jnp.array([[-5.0, offset, offset]]), jnp.array([[1.0, 0.0, 0.0]])


def blocks(*slabs: slice) -> np.ndarray:
    hull = np.zeros((32, 32, 32), bool)
    for slab in slabs:
        hull[slab] = True
    return hull


def test_the_hull_holds_the_object(ball):
    hull, radius = ball
    assert hull[np.linalg.norm(CENTERS, axis=0) < radius].all()


def test_the_hull_is_little_larger_than_a_ball(ball):
    hull, radius = ball
    assert np.linalg.norm(CENTERS, axis=0)[hull].max() < radius + 0.45  # two cells and two pixels


@pytest.mark.filterwarnings("ignore::sv3d_jax.recon.views.CoverageWarning")
def test_one_bad_mask_cannot_carve_a_tolerant_hull():
    frames = ball_orbit(num_frames=12)
    frames.alphas[5] = 0
    views, box = prepare_views(frames)
    inside = np.linalg.norm(CENTERS, axis=0) < 0.4 / box.scale
    assert not visual_hull(views, 32, 0.0)[inside].any()
    assert visual_hull(views, 32, 0.1)[inside].all()


def test_samples_cover_the_occupied_part_of_a_ray():
    samples = march(CONFIG, start_occupancy(blocks(np.s_[12:15])), *ray_along_x(), None)
    cell = 4 / 32
    assert float(samples.lengths.sum()) == pytest.approx(3 * cell, abs=0.07)  # one candidate's length
    taken = np.asarray(samples.points)[np.asarray(samples.lengths) > 0]
    assert ((taken[:, 0] > -2 + 12 * cell) & (taken[:, 0] < -2 + 15 * cell)).all()


def test_a_long_way_through_is_covered_by_longer_samples():
    samples = march(CONFIG, start_occupancy(blocks(np.s_[4:28])), *ray_along_x(), None)
    assert (samples.lengths > 0).all()
    assert float(samples.lengths.sum()) == pytest.approx(24 * 4 / 32, abs=0.07)
    spacing = np.diff(np.asarray(samples.depths[0]))
    assert spacing.min() > 0


def test_samples_stop_inside_something_opaque():
    occupancy = start_occupancy(blocks(np.s_[4:28]))
    occupancy = refresh(occupancy, lambda points: jnp.full(len(points), 1e4), 200_000, jax.random.key(0))
    samples = march(CONFIG, occupancy, *ray_along_x(), None)
    reached = np.asarray(samples.points)[np.asarray(samples.lengths) > 0][:, 0].max()
    assert reached < -2 + 7 * 4 / 32


def test_a_ray_beside_the_box_has_no_samples():
    assert not march(CONFIG, start_occupancy(blocks(np.s_[:])), *ray_along_x(2.5), None).lengths.any()


def test_refreshing_never_fills_what_the_hull_excludes():
    hull = blocks(np.s_[12:15])
    occupancy = refresh(start_occupancy(hull), lambda points: jnp.ones(len(points)), 5000, jax.random.key(0))
    assert not np.asarray(occupancy.density)[~hull].any()


def test_cells_of_the_hull_that_the_field_leaves_empty_are_soon_passed_over():
    hull = blocks(np.s_[12:15], np.s_[20:23])

    def lower_half(points):
        return jnp.where(points[:, 0] < 0, 20.0, 0.0)

    occupancy = start_occupancy(hull)
    for call in range(8):  # 128 steps of a fit
        occupancy = refresh(occupancy, lower_half, 2**13, jax.random.key(call))
    assert np.array_equal(np.asarray(occupancy.density) > MIN_DENSITY, blocks(np.s_[12:15]))


def test_a_ray_enters_the_hull_where_it_did_before_cells_were_found_empty():
    hull = blocks(np.s_[12:23])
    occupancy = start_occupancy(hull)
    for call in range(100):
        occupancy = refresh(
            occupancy, lambda points: jnp.where(points[:, 0] > 0.5, 20.0, 0.0), 2**14, jax.random.key(call)
        )
    before, after = (
        march(CONFIG, cells, *ray_along_x(), None) for cells in (start_occupancy(hull), occupancy)
    )
    assert float(after.points[0, 0, 0]) > 0.25 > float(before.points[0, 0, 0])
    assert float(after.entries[0]) == float(before.entries[0]) == float(before.depths[0, 0])


def test_the_rays_that_meet_the_hull_are_those_that_have_samples():
    views, _ = prepare_views(ball_orbit(size=20, num_frames=4))
    hull = blocks(np.s_[8:11, 5:30, 3:28])
    pixel = np.arange(views.masks.size)
    samples = march(CONFIG, start_occupancy(hull), *pixel_rays(views, pixel), None)
    meets = meets_hull(CONFIG, hull, *pixel_rays(views, pixel))
    np.testing.assert_array_equal(meets, samples.lengths[:, 0] > 0)
    near = hull_pictures(views, hull).ravel()
    assert near[meets].all()
    assert not near.all()


def test_a_camera_among_the_cells_of_the_hull_may_see_them_everywhere():
    views, _ = prepare_views(ball_orbit(size=20, num_frames=4))
    pose = views.camera_to_box.copy()
    pose[0, :3, 3] = 0.0
    near = hull_pictures(views._replace(camera_to_box=pose), blocks(np.s_[14:18]))
    assert near[0].all()


def test_box_crossing_of_an_axis_ray():
    near, far = box_crossing(*ray_along_x())
    assert (float(near[0]), float(far[0])) == pytest.approx((3.0, 7.0))
