"""Pictures of fits: one view, reduced, and their files."""

import numpy as np

from sv3d_jax.cameras.pose import intrinsics
from sv3d_jax.recon.pictures import Pictures, small_view
from sv3d_jax.recon.views import prepare_views
from tests.recon.scenes import ball_orbit


def test_a_small_view_is_what_a_smaller_frame_shows():
    large, small = (prepare_views(ball_orbit(size, num_frames=3))[0] for size in (48, 16))
    view = small_view(large, 1, max_side=16)
    np.testing.assert_allclose(
        view.images[0], small.images[1], atol=0.1
    )  # averaged over other points of a pixel
    np.testing.assert_allclose(view.focal_px[0], intrinsics(33.8, 16)[0], rtol=1e-6)
    assert view.center_px.tolist() == [[8.0, 8.0]] and view.masks.shape == (1, 16, 16)


def test_sides_that_are_no_multiple_lose_their_last_pixels():
    view = small_view(prepare_views(ball_orbit(35, num_frames=2))[0], 0, max_side=16)
    assert view.images.shape == (1, 11, 11, 3)


def test_pictures_of_an_earlier_fit_go_unless_this_one_resumes_it(tmp_path):
    views = prepare_views(ball_orbit(16, num_frames=2))[0]
    pictures = Pictures(tmp_path, every=8)

    class White:
        def render(self, cameras, size):
            return np.ones((1, *size, 3))

    def names(resumes):
        pictures.preview("coarse", views, 0, resumes).show(16, White())
        return sorted(file.name for file in tmp_path.iterdir())

    for name in ("coarse_000008.png", "fine_000008.png"):
        (tmp_path / name).touch()
    assert names(resumes=True) == ["coarse_000008.png", "coarse_000016.png", "fine_000008.png"]
    assert names(resumes=False) == ["coarse_000016.png", "fine_000008.png"]
