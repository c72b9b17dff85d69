"""An orbit's frames as the reconstruction sees them: with masks, and with cameras around a standard box."""

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
from einops import reduce
from scipy import ndimage

from sv3d_jax.arrays import Array, Bool, Float, Num
from sv3d_jax.cameras.pose import (
    MAX_DISTANCE,
    MIN_DISTANCE,
    check_distance,
    check_lens,
    looked_at,
    meeting_point,
)
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.orbits import OrbitFrames

BOX_HALF_SIZE = 2.0  # the field's own units; densities are per unit of these
BALL_IN_BOX = 0.97  # radius of the ball that all views see, over half the side of the box
WHITE_THRESHOLDS = (0.02, 0.08)  # darkness of the darkest channel: background below, foreground above
HOLE_WEIGHT = 0.05  # of pixels in holes of the foreground
MIN_PART = 1e-3  # share of a frame below which a foreground part is dust
MAX_AREA_RATIO = 3.0  # of the masks of neighbouring views
CLOSING_STEPS = 1.5  # from the last view to the first, over the median step between neighbours
MAX_OUTSIDE = 2e-3  # share of the object's pixels whose rays may miss the box
MASK_MARGIN = 1.05  # of a box that is taken from the masks
RAYS_PER_SIDE = 96  # pixels of a side that rays are taken from
MIN_SPREAD_DEG = 10.0  # between the views that are farthest apart, below which depth is unconstrained


class Cameras(NamedTuple):
    """Where pictures are taken from, in box coordinates."""

    camera_to_box: Float[Array, "*o f 4 4"]
    focal_px: Float[Array, "*o f 2"]
    center_px: Float[Array, "*o f 2"]


class Views(NamedTuple):
    """Pictures over white, with their masks, and their cameras in box coordinates."""

    images: Float[Array, "f h w 3"]
    masks: Float[Array, "f h w"]  # coverage in [0, 1]
    mask_weights: Float[Array, "f h w"]  # of masks from white: 0 at silhouettes, HOLE_WEIGHT in holes; else 1
    camera_to_box: Float[Array, "f 4 4"]
    focal_px: Float[Array, "f 2"]
    center_px: Float[Array, "f 2"]
    normals: Float[Array, "f h w 3"] | None = None  # estimates in the cameras' axes

    @property
    def cameras(self) -> Cameras:
        """The cameras alone."""
        return Cameras(self.camera_to_box, self.focal_px, self.center_px)


@dataclass(frozen=True)
class Box:
    """The cube of half-size `BOX_HALF_SIZE` placed in the world: world = center + scale * box."""

    center: Num[np.ndarray, "3"]
    scale: float

    def to_world(self, points: Num[np.ndarray, "n 3"]) -> Num[np.ndarray, "n 3"]:
        """Points of the box in world coordinates."""
        return self.center + self.scale * points


class CoverageWarning(UserWarning):
    """Frames that do not look like those of one object seen from all around."""


def half_size(views: Views) -> Views:
    """The views at half their size, by means over blocks of 2 x 2 pixels; odd sides repeat their last pixels."""

    def halved(pictures):
        sides = [(0, side % 2) for side in pictures.shape[1:3]]
        even = np.pad(pictures, [(0, 0), *sides, *[(0, 0)] * (pictures.ndim - 3)], mode="edge")
        return reduce(even, "f (h 2) (w 2) ... -> f h w ...", "mean")

    normals = views.normals
    if normals is not None:
        normals = halved(normals)
        normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
    return views._replace(
        images=halved(views.images),
        masks=halved(views.masks),
        mask_weights=halved(views.mask_weights),
        focal_px=views.focal_px / 2,
        center_px=views.center_px / 2,
        normals=normals,
    )


def usable_frames(frames: OrbitFrames) -> OrbitFrames:
    """The frames without those that show no object, which a warning names.

    Raises InputError or CameraError where shapes do not match, or values are impossible for pictures or cameras.
    """
    _check_arrays(frames)
    coverage = _coverage_by_color(frames.images) if frames.alphas is None else frames.alphas
    shown = (coverage > 0.5).mean(axis=(1, 2)) >= MIN_PART
    if shown.any() and not shown.all():
        empty = [file for file, is_shown in zip(frames.files, shown, strict=True) if not is_shown]
        named = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        warnings.warn(
            f"{len(empty)} of {len(shown)} frames show no object and are left out: {named}",
            CoverageWarning,
            stacklevel=3,
        )
        frames = _selected(frames, np.flatnonzero(shown))
    forward = -frames.camera_to_world[:, :3, 2]
    if (forward @ forward.T).min() > np.cos(np.deg2rad(MIN_SPREAD_DEG)):
        warnings.warn(
            f"depth is unconstrained: {len(forward)} view{'s'[: len(forward) > 1]} from about one side;"
            " the mesh will look right from there and can be anything behind",
            CoverageWarning,
            stacklevel=3,
        )
    return frames


def prepare_views(frames: OrbitFrames) -> tuple[Views, Box]:
    """Views in box coordinates, and where the box stands in the world."""
    if frames.alphas is not None:
        masks, weights = frames.alphas, np.ones_like(frames.alphas)
    else:
        masks, weights = masks_from_white(frames.images)
    _check_masks(masks, frames)
    box = surrounding_box(frames, masks)
    camera_to_box = frames.camera_to_world.copy()
    camera_to_box[:, :3, 3] = (camera_to_box[:, :3, 3] - box.center) / box.scale
    arrays = frames.images, masks, weights, camera_to_box, frames.focal_px, frames.center_px
    return Views(*(np.asarray(array, np.float32) for array in arrays)), box


def masks_from_white(images: Float[np.ndarray, "f h w 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Foreground (f h w) of pictures over white, and its weights: 0 within a pixel of the silhouette.

    Soft threshold on the distance to white, holes filled, dust removed. A hole may be a white part of the object or
    the background behind it: it is filled with little weight, so that the other views decide. At the silhouette a
    pixel's coverage is guessed from the colour of the nearest pixel inside; there the photometric loss decides.
    """
    darkness, soft = 1.0 - images, _coverage_by_color(images)
    masks, weights = np.zeros_like(soft), np.ones_like(soft)
    for index, frame in enumerate(soft):
        labels, _ = ndimage.label(frame > 0.5)
        sizes = np.bincount(labels.ravel())
        large = np.flatnonzero(sizes >= MIN_PART * frame.size)
        dark = np.isin(labels, large[large > 0])
        inside = without_holes(dark)
        core = ndimage.binary_erosion(inside, border_value=1)
        rim = ndimage.binary_dilation(inside) & ~core
        masks[index] = inside
        masks[index][rim] = _coverage(darkness[index], core, rim)
        weights[index] = np.where(rim, 0.0, np.where(inside & ~dark, HOLE_WEIGHT, 1.0))
    return masks, weights


def surrounding_box(frames: OrbitFrames, masks: Float[np.ndarray, "f h w"] | None = None) -> Box:
    """The box around the ball that the typical view sees whole, centred where the optical axes meet.

    For SV3D's orbits the centre is the origin and the half side 0.6. Where `masks` show an object that reaches out of
    it, as in pictures that are cropped, wide or taken from the hand, the box is that of the masks.
    """
    position, forward = frames.camera_to_world[:, :3, 3], -frames.camera_to_world[:, :3, 2]
    center = looked_at(frames.camera_to_world, frames.files)
    ahead = np.einsum("fi,fi->f", center - position, forward)
    size = np.array(frames.images.shape[2:0:-1])  # width, height
    half_angle = np.arctan(0.5 * (size / frames.focal_px).min(axis=1))
    box = _box(center, np.median(ahead * np.sin(half_angle)))
    rays = [] if masks is None else _object_rays(frames, masks)
    missed = [_missing(box, position[view], directions) for view, directions in rays]
    if missed and np.concatenate(missed).mean() > MAX_OUTSIDE:
        return _box_of_rays(position, rays)
    return box


def _box(center: Float[np.ndarray, "3"], radius: float) -> Box:
    """The box around a ball."""
    if not MIN_DISTANCE < radius < MAX_DISTANCE:
        raise CameraError(
            f"the cameras see a ball of radius {radius:.3g} around the point where they look,"
            f" {MIN_DISTANCE:g} to {MAX_DISTANCE:g} can be computed",
            hint="are distances and focal lengths right?",
        )
    return Box(np.where(np.abs(center) < 1e-9 * radius, 0.0, center), radius / BALL_IN_BOX / BOX_HALF_SIZE)


def _object_rays(
    frames: OrbitFrames, masks: Float[np.ndarray, "f h w"]
) -> list[tuple[int, Float[np.ndarray, "n 3"]]]:
    """Unit directions in the world of some of the pixels that show the object, by view; views without it are absent."""
    stride = max(1, min(masks.shape[1:]) // RAYS_PER_SIDE)
    rays = []
    for view, mask in enumerate(masks):
        row, column = np.nonzero(mask[::stride, ::stride] > 0.5)
        if not len(row):
            continue
        pixels = np.stack([column, row], axis=-1) * stride + 0.5
        x, y = ((pixels - frames.center_px[view]) / frames.focal_px[view]).T
        directions = np.stack([x, -y, -np.ones_like(x)], axis=-1) @ frames.camera_to_world[view, :3, :3].T
        rays.append((view, directions / np.linalg.norm(directions, axis=1, keepdims=True)))
    return rays


def _missing(box: Box, position: Float[np.ndarray, "3"], directions: Float[np.ndarray, "n 3"]) -> np.ndarray:
    """Which rays miss the box."""
    half = box.scale * BOX_HALF_SIZE
    directions = np.where(np.abs(directions) < 1e-12, 1e-12, directions)
    faces = (box.center - position + half * np.array([[-1.0], [1.0]]))[:, None] / directions
    enters, leaves = faces.min(axis=0).max(axis=1), faces.max(axis=0).min(axis=1)
    return (enters > leaves) | (leaves < 0)


def _box_of_rays(position: Float[np.ndarray, "f 3"], rays: list[tuple[int, np.ndarray]]) -> Box:
    """The box around the ball that nearly all rays to the object go through."""
    views = [view for view, _ in rays]
    middles = np.stack([directions.min(axis=0) + directions.max(axis=0) for _, directions in rays])
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    center = meeting_point(position[views], middles)
    radii = []
    for view, directions in rays:
        offset = center - position[view]
        along = directions @ offset
        beside = np.sqrt(np.maximum((offset**2).sum() - along**2, 0.0))
        radii.append(np.quantile(beside, 1.0 - MAX_OUTSIDE))
    return _box(center, MASK_MARGIN * max(radii))


def _check_arrays(frames: OrbitFrames) -> None:
    """Shapes, and values that are finite and, in pictures, in [0, 1]. Orbits from folders have been checked so."""
    if frames.images.ndim != 4:
        raise InputError(f"images need the shape (frames, height, width, 3), got {frames.images.shape}")
    count, height, width, _ = frames.images.shape
    expected = {
        "images": (count, height, width, 3),
        "alphas": (count, height, width),
        "camera_to_world": (count, 4, 4),
        "focal_px": (count, 2),
        "center_px": (count, 2),
    }
    for name, shape in expected.items():
        if (array := getattr(frames, name)) is None:
            continue
        is_picture = name in ("images", "alphas")
        error = InputError if is_picture else CameraError
        if array.shape != shape:
            raise error(f"{name} need the shape {shape}, got {array.shape}")
        of_frames = array.reshape(count, -1)
        bad = ~np.isfinite(of_frames).all(axis=1)
        if bad.any():
            raise error(f"{name} of {frames.files[int(np.argmax(bad))]} are not finite numbers")
        if is_picture and not -1e-3 <= array.min() <= array.max() <= 1 + 1e-3:
            raise error(f"{name} must lie in [0, 1], they reach from {array.min():g} to {array.max():g}")
    for file, pose in zip(frames.files, frames.camera_to_world, strict=True):
        check_distance(pose[:3, 3], f"{file}: its camera")
    for file, focal, center in zip(frames.files, frames.focal_px, frames.center_px, strict=True):
        check_lens(focal, center, (width, height), f"{file}: its camera")


def _selected(frames: OrbitFrames, kept: np.ndarray) -> OrbitFrames:
    """Some of the frames; where the input view is not among them, the next one takes its place."""
    arrays = "images", "alphas", "camera_to_world", "focal_px", "center_px", "azimuths_deg", "elevations_deg"
    some = {name: array[kept] for name in arrays if (array := getattr(frames, name)) is not None}
    place = min(np.searchsorted(kept, frames.input_frame), len(kept) - 1)
    return replace(frames, **some, files=[frames.files[index] for index in kept], input_frame=int(place))


def _coverage_by_color(images: Float[np.ndarray, "*f h w 3"]) -> Float[np.ndarray, "*f h w"]:
    """Soft threshold on the distance to white."""
    low, high = WHITE_THRESHOLDS
    red, green, blue = np.moveaxis(images, -1, 0)  # many times as fast as a maximum over an axis of three
    darkest = 1.0 - np.minimum(np.minimum(red, green), blue)
    return np.clip((darkest - low) / (high - low), 0.0, 1.0)


def without_holes(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask with what it encloses, as by scipy's `binary_fill_holes`, which takes several times as long."""
    labels, count = cast(tuple[np.ndarray, int], ndimage.label(~mask))
    is_outside = np.zeros(count + 1, bool)
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        is_outside[border] = True
    is_outside[0] = False
    return ~is_outside[labels]


def _coverage(darkness: np.ndarray, core: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Share of some of the pixels (h w, a mask) that has the colour of the nearest core pixel, the rest being white."""
    seen = darkness[pixels]
    if not core.any():
        return (seen.max(axis=-1) > WHITE_THRESHOLDS[1]).astype(np.float32)
    nearest = ndimage.distance_transform_edt(~core, return_distances=False, return_indices=True)
    full = darkness[tuple(axis[pixels] for axis in nearest)]  # pyright: ignore[reportGeneralTypeIssues]
    return np.clip((seen * full).sum(-1) / np.maximum((full * full).sum(-1), 1e-6), 0.0, 1.0)


def _check_masks(masks: np.ndarray, frames: OrbitFrames) -> None:
    areas = masks.mean(axis=(1, 2))
    if not (areas > 0).any():
        raise InputError(
            "no frame shows any object: all are white, or transparent",
            hint="frames need an alpha channel or a white background",
        )
    if areas.min() > 0.98:
        raise InputError(
            "no frame has any background: the object cannot be told from it",
            hint="frames need an alpha channel or a white background",
        )
    areas = np.maximum(areas, 1e-6)
    ratio = areas / np.roll(areas, 1)
    if not _closes(frames.camera_to_world[:, :3, 3]):
        ratio[0] = 1.0  # the last view is no neighbour of the first
    jumps = np.flatnonzero(np.maximum(ratio, 1 / ratio) > MAX_AREA_RATIO)
    if len(jumps):
        warnings.warn(
            f"the object's area jumps by more than {MAX_AREA_RATIO:g} times before {frames.files[jumps[0]]}"
            f" (smallest {areas.min():.1%} of a frame, largest {areas.max():.1%})",
            CoverageWarning,
            stacklevel=3,
        )


def _closes(position: Float[np.ndarray, "f 3"]) -> bool:
    """Whether the last camera is about as near to the first as neighbours are, as on a whole orbit."""
    steps = np.linalg.norm(np.diff(position, axis=0), axis=1)
    return len(steps) > 1 and np.linalg.norm(position[0] - position[-1]) <= CLOSING_STEPS * np.median(steps)
