"""Whether the cameras of an orbit fit its frames; usual mistakes are a wrong sense of rotation, a wrong elevation.

With such cameras the visual hull usually does not fill the masks. Not always: from far away and at its height,
an object that turns the other way has the silhouettes of its mirror image. But then the colours at the surface of the
hull differ from view to view. The misfit is the sum of both.
"""

import warnings
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from sv3d_jax.arrays import Bool, Float, Int
from sv3d_jax.cameras.pose import look_at
from sv3d_jax.io.orbits import OrbitFrames
from sv3d_jax.recon.views import BOX_HALF_SIZE, Views, without_holes

RESOLUTION = 56  # points along the box
MAX_SIDE = 128  # of the masks and pictures
OFFSETS_DEG = (-40.0, -30.0, -20.0, -10.0, 10.0, 20.0, 30.0, 40.0)
GOLDEN_RATIO = 0.618034
CLEARLY = 0.6  # a warning needs other cameras whose misfit is below this share of the given ones'


class CameraFitWarning(UserWarning):
    """The frames fit other cameras clearly better than those that came with them."""


class Fit(NamedTuple):
    """How well cameras explain the frames."""

    unfilled: float  # share of the masks that the visual hull does not reach
    color_variance: float  # of points of the hull's surface between the views that see them

    @property
    def misfit(self) -> float:
        """The sum of both; smaller is better."""
        return self.unfilled + self.color_variance


def check_cameras(frames: OrbitFrames, views: Views) -> dict[str, Any] | None:
    """Compare the cameras with reversed ones and with elevations offset by ±10…40°; warn where some fit clearly better.

    Returns the misfit as `given`, with azimuths `reversed`, by degrees added to the elevations (`raised`), and the
    `finding` in words or None. No check (None) with fewer than four views, or if the cameras are not given by the
    angles of an orbit.
    """
    azimuths, elevations = frames.azimuths_deg, frames.elevations_deg
    if azimuths is None or elevations is None or len(frames.images) < 4:
        return None
    views = _reduced(views)
    radius = np.linalg.norm(views.camera_to_box[:, :3, 3], axis=1)

    def orbit(azimuths_deg, elevations_deg) -> np.ndarray:
        angles = zip(azimuths_deg, elevations_deg, radius, strict=True)
        return np.stack([look_at(*of_view) for of_view in angles])

    if not np.allclose(orbit(azimuths, elevations), views.camera_to_box, atol=1e-3):
        return None

    def misfit(azimuths_deg, elevations_deg) -> float:
        return camera_fit(views._replace(camera_to_box=orbit(azimuths_deg, elevations_deg))).misfit

    given = misfit(azimuths, elevations)
    turned = misfit(2 * azimuths[frames.input_frame] - azimuths, elevations)
    raised = {
        offset: misfit(azimuths, elevations + offset)
        for offset in OFFSETS_DEG
        if np.abs(elevations + offset).max() < 89
    }
    best = min(raised, key=raised.__getitem__, default=0.0)
    finding = None
    if turned < CLEARLY * min([given, *raised.values()]):
        finding = "the frames fit cameras that go round the other way: are the signs of the azimuths right?"
    elif raised.get(best, given) < CLEARLY * given:
        side = "higher" if best > 0 else "lower"
        finding = f"the frames fit cameras about {abs(best):.0f} degrees {side} than given: are the elevations right?"
    if finding is not None:
        warnings.warn(finding, CameraFitWarning, stacklevel=2)
    by_degrees = {f"{offset:+.0f}": share for offset, share in raised.items()}
    return {"given": given, "reversed": turned, "raised": by_degrees, "finding": finding}


def camera_fit(views: Views) -> Fit:
    """How well the views' cameras explain masks and colours, by a visual hull of points."""
    masks = views.masks > 0.5
    lattice = _lattice()
    places = np.arange(len(lattice))
    cameras = list(zip(views.camera_to_box, views.focal_px, views.center_px, strict=True))
    for view in np.argsort(
        np.arange(len(masks)) * GOLDEN_RATIO % 1
    ):  # from different sides, so that few points last
        row, column, _, in_frame = _project(lattice[places], masks.shape[1:], *cameras[view])
        places = places[in_frame & masks[view][row, column]]
    if not len(places):
        return Fit(1.0, 1.0)

    inside = np.zeros((RESOLUTION,) * 3, bool)
    inside.flat[places] = True
    surface = lattice[(inside & ~ndimage.binary_erosion(inside)).ravel()]
    missed = 0
    count, total, squared = np.zeros(len(surface)), np.zeros((len(surface), 3)), np.zeros(len(surface))
    for image, mask, camera in zip(views.images, masks, cameras, strict=True):
        row, column, seen, covered = _seen(surface, mask.shape, *camera)
        missed += (mask & ~without_holes(covered)).sum()
        colors = image[row[seen], column[seen]]
        count[seen] += 1
        total[seen] += colors
        squared[seen] += (colors**2).sum(axis=-1)
    several = count > 1
    deviation = squared[several] - (total[several] ** 2).sum(axis=-1) / count[several]
    return Fit(float(missed / masks.sum()), float(deviation.sum() / max(3 * count[several].sum(), 1)))


@cache
def _lattice() -> Float[np.ndarray, "n 3"]:
    axis = ((np.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 - 1) * BOX_HALF_SIZE
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def _seen(
    points: Float[np.ndarray, "n 3"], shape: tuple[int, ...], pose, focal, center
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Bool[np.ndarray, "n"], Bool[np.ndarray, "h w"]]:
    """Pixels of points of a surface, which of them no other hides, and the pixels that all of them cover.

    A point stands for a cube of the lattice.
    """
    row, column, depth, in_frame = _project(points, shape, pose, focal, center)
    cell = 2 * BOX_HALF_SIZE / RESOLUTION
    nearest = np.full(shape, np.inf)
    np.minimum.at(nearest, (row[in_frame], column[in_frame]), depth[in_frame])
    reach = int(np.ceil(0.5 * focal.max() * cell / depth.min()))
    nearest = ndimage.minimum_filter(nearest, size=2 * reach + 1)
    return row, column, in_frame & (depth <= nearest[row, column] + 1.5 * cell), np.isfinite(nearest)


def _project(points, shape, pose, focal, center):
    """Row, column (within the frame) and depth of points, and whether they are in the frame."""
    x, y, z = ((points - pose[:3, 3]) @ pose[:3, :3]).T
    column = np.floor(center[0] - focal[0] * x / z).astype(int)
    row = np.floor(center[1] + focal[1] * y / z).astype(int)
    in_frame = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1]) & (z < 0)
    return np.clip(row, 0, shape[0] - 1), np.clip(column, 0, shape[1] - 1), -z, in_frame


def _reduced(views: Views) -> Views:
    """The views at a lower resolution, by every n-th pixel."""
    stride = max(1, min(views.masks.shape[1:]) // MAX_SIDE)
    thin = slice(None), slice(stride // 2, None, stride), slice(stride // 2, None, stride)
    return views._replace(
        images=views.images[thin],
        masks=views.masks[thin],
        mask_weights=views.mask_weights[thin],
        focal_px=views.focal_px / stride,
        center_px=views.center_px / stride,
    )
