"""Camera paths around an object: static, sine, dynamic and user-given orbits.

Azimuths are relative to the input view, which is the last frame for SV3D and the first for V3D; elevations are
absolute, up positive.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from sv3d_jax.cameras.config import MAX_FRAMES, MIN_FRAMES
from sv3d_jax.cameras.pose import SV3D_FOV_DEG, SV3D_RADIUS, check_lens, check_radius, intrinsics, look_at
from sv3d_jax.errors import CameraError

NUM_FRAMES = 21  # what SV3D is trained on
ORBIT_KINDS = ("static", "sine", "dynamic")
DYNAMIC_SAMPLES = 84


class CameraWarning(UserWarning):
    """A valid camera path or file that may not give the intended result."""


@dataclass(frozen=True, repr=False)
class CameraPath:
    """The cameras of an orbit, in order; all look at the origin from one radius.

    Raises CameraError for angles, a radius, a field of view or an input frame that cannot be.
    """

    azimuths_deg: np.ndarray  # (f,), relative to the input view, in [0, 360)
    elevations_deg: np.ndarray  # (f,), in [-90, 90]
    radius: float = SV3D_RADIUS
    fov_deg: float = SV3D_FOV_DEG
    input_frame: int = -1  # index of the input view, from the end if negative

    def __post_init__(self):
        azimuths = _angles(self.azimuths_deg, "azimuths_deg")
        elevations = _angles(self.elevations_deg, "elevations_deg", limit=90.0)
        if len(azimuths) != len(elevations):
            raise CameraError(f"got {len(azimuths)} azimuths and {len(elevations)} elevations")
        check_radius(self.radius, "radius")
        if not 0 < self.fov_deg < 180:
            raise CameraError(f"fov_deg must lie between 0 and 180, got {self.fov_deg}")
        check_lens(*intrinsics(self.fov_deg, 1), (1, 1), f"fov_deg {self.fov_deg:g}")
        if not -len(azimuths) <= self.input_frame < len(azimuths):
            raise CameraError(f"input_frame {self.input_frame} is none of the {len(azimuths)} frames")
        object.__setattr__(self, "input_frame", self.input_frame % len(azimuths))
        object.__setattr__(self, "azimuths_deg", _relative_to(azimuths, self.input_frame))
        object.__setattr__(self, "elevations_deg", elevations)

    def __len__(self) -> int:
        return len(self.azimuths_deg)

    def summary(self) -> str:
        """Its angles in a few words: the elevation or its range, and the azimuths where steps are not even."""
        low, high = self.elevations_deg.min(), self.elevations_deg.max()
        elevation = f"elevation {low:.4g}°" if low == high else f"elevations {low:.4g}° to {high:.4g}°"
        steps = np.diff(self.azimuths_deg, append=self.azimuths_deg[0]) % 360.0
        return elevation if np.allclose(steps, 360.0 / len(self)) else f"{elevation}, uneven azimuths"

    def __repr__(self) -> str:
        where = "" if self.input_frame == len(self) - 1 else f", input frame {self.input_frame}"
        return f"CameraPath({len(self)} views, {self.summary()}{where})"

    def with_input(self, place: Literal["first", "last"]) -> "CameraPath":
        """The same views in the same cyclic order, begun so that the input view is the first or the last of them."""
        shift = -self.input_frame if place == "first" else len(self) - 1 - self.input_frame
        azimuths, elevations = (np.roll(x, shift) for x in (self.azimuths_deg, self.elevations_deg))
        return replace(
            self,
            azimuths_deg=azimuths,
            elevations_deg=elevations,
            input_frame=0 if place == "first" else -1,
        )

    @property
    def camera_to_world(self) -> np.ndarray:
        """World-from-camera matrices (f, 4, 4), float64."""
        return look_at(self.azimuths_deg, self.elevations_deg, self.radius)


def static_orbit(num_frames: int = NUM_FRAMES, elevation_deg: float = 10.0) -> CameraPath:
    """Even steps at one elevation, ending at azimuth 0 (the published web demo has 360 there)."""
    check_num_frames(num_frames)
    return CameraPath(static_azimuths_deg(num_frames), np.full(num_frames, _angle(elevation_deg)))


def sine_orbit(
    num_frames: int = NUM_FRAMES, elevation_deg: float = 10.0, amplitude_deg: float = 30.0
) -> CameraPath:
    """Even steps; the elevation follows one period of a sine, clamped to +-89 degrees, and ends at its mean.

    The SV3D paper reconstructs from the orbit with amplitude 30.
    """
    check_num_frames(num_frames)
    phase = 2 * np.pi * np.arange(1, num_frames + 1) / num_frames
    elevations = _angle(elevation_deg) + _angle(amplitude_deg, "amplitude_deg", limit=90.0) * np.sin(phase)
    return CameraPath(static_azimuths_deg(num_frames), np.clip(elevations, -89.0, 89.0))


def dynamic_orbit(num_frames: int = NUM_FRAMES, elevation_deg: float = 10.0, seed: int = 0) -> CameraPath:
    """Random smooth orbit of SV3D's web demo: uneven steps, elevation a sum of sines.

    The 84 samples of `dynamic_samples` are resampled to num_frames, with linear interpolation. If num_frames divides
    84, this is the published orbit.
    """
    check_num_frames(num_frames)
    azimuths, elevations = dynamic_samples(elevation_deg, seed)
    position = np.arange(1, num_frames + 1) * (DYNAMIC_SAMPLES / num_frames)
    samples = np.arange(DYNAMIC_SAMPLES + 1)
    return CameraPath(
        np.interp(position, samples, np.append(azimuths, 360.0)),
        np.interp(position, samples, np.append(elevations, elevations[0])),
    )


def custom_orbit(
    azimuths_deg: ArrayLike | None,
    elevations_deg: ArrayLike | float,
    num_frames: int = NUM_FRAMES,
    input_frame: Literal["first", "last"] = "last",
) -> CameraPath:
    """Views with given angles, in the given order. Azimuths None means even steps; one elevation may serve all views.

    Azimuths may be any finite numbers: they are taken relative to that of the input view, modulo 360.
    """
    check_num_frames(num_frames)
    elevations = _listed(elevations_deg, "elevations_deg", num_frames, limit=90.0)
    index = 0 if input_frame == "first" else -1
    if azimuths_deg is None:
        azimuths = np.roll(static_azimuths_deg(num_frames), 1 if input_frame == "first" else 0)
        return CameraPath(azimuths, elevations, input_frame=index)
    azimuths = _listed(azimuths_deg, "azimuths_deg", num_frames)
    outside = (azimuths < 0) | (azimuths > 360)
    if outside.any():
        _warn(f"azimuth {azimuths[outside][0]:g} and others like it are taken modulo 360")
    path = CameraPath(azimuths, elevations, input_frame=index)
    between = path.azimuths_deg[1:] if input_frame == "first" else path.azimuths_deg[:-1]
    if (np.diff(between) <= 0).any():
        _warn("azimuths do not increase from frame to frame; their order is kept")
    return path


def make_orbit(
    kind: str = "static",
    num_frames: int = NUM_FRAMES,
    elevation_deg: float = 10.0,
    seed: int = 0,
    azimuths_deg: ArrayLike | None = None,
    elevations_deg: ArrayLike | None = None,
    trained_frames: int = NUM_FRAMES,
) -> CameraPath:
    """The path that the command line's options describe; lists of angles override those of the kind.

    A CameraWarning tells of another number of frames than the model is trained on.
    """
    if kind not in ORBIT_KINDS:
        raise CameraError(f"orbit must be one of {', '.join(ORBIT_KINDS)}, got {kind!r}")
    check_num_frames(num_frames)
    if num_frames != trained_frames:
        model = "SV3D" if trained_frames == NUM_FRAMES else "the model"
        _warn(
            f"{model} is trained on {trained_frames} frames; quality with {num_frames} is likely to be lower"
        )
    if elevations_deg is not None:
        return custom_orbit(azimuths_deg, elevations_deg, num_frames)
    if kind == "static":
        path = static_orbit(num_frames, elevation_deg)
    elif kind == "sine":
        path = sine_orbit(num_frames, elevation_deg)
    else:
        path = dynamic_orbit(num_frames, elevation_deg, seed)
    return path if azimuths_deg is None else custom_orbit(azimuths_deg, path.elevations_deg, num_frames)


def static_azimuths_deg(num_frames: int) -> np.ndarray:
    """The published command line's azimuths: 360/f, 2 * 360/f, ..., and 0 for the last frame."""
    return np.linspace(0.0, 360.0, num_frames + 1)[1:] % 360.0


def dynamic_samples(elevation_deg: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """84 azimuths, starting at 0, and 84 smoothed elevations, in degrees: the web demo's random orbit for a seed.

    Uses NumPy's legacy generator to reproduce the published values exactly. Sample 0 is the input view.
    """
    elevation_deg = _angle(elevation_deg)
    rng = np.random.RandomState(seed)
    for _ in range(1000):
        azimuths, elevations = draw_dynamic(rng, elevation_deg)
        smooth = smooth_cyclic(elevations)
        if np.abs(smooth).max() < 90.0:
            return azimuths, smooth
    raise CameraError(f"no dynamic orbit stays below 90 degrees around an elevation of {elevation_deg:g}")


def draw_dynamic(rng: np.random.RandomState, elevation_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """One draw of 84 azimuths and 84 elevations before smoothing, which may leave [-90, 90]."""
    n = DYNAMIC_SAMPLES
    turn = np.arange(n) / n
    elevations = np.full(n, float(elevation_deg))
    for _ in range(n):
        period, amplitude, phase = rng.randint(1, 5), rng.uniform(0.5, 10.0), rng.choice([0.0, np.pi])
        elevations += amplitude * np.sin(2 * np.pi * period * turn + phase)
    steps = rng.uniform(0.0, 2.0, n - 1)
    steps *= (360.0 - 360.0 / n * rng.uniform(0.0, 2.0)) / steps.sum()
    return np.concatenate([[0.0], np.cumsum(steps)]), elevations


def smooth_cyclic(elevations_deg: np.ndarray, width: int = 5) -> np.ndarray:
    """Box filter over a cyclic sequence."""
    wrapped = np.concatenate([elevations_deg[-width:], elevations_deg, elevations_deg[:width]])
    return np.convolve(wrapped, np.ones(width) / width, mode="same")[width:-width]


def check_num_frames(num_frames: int) -> None:
    """Raise CameraError for a number of frames that the model cannot sample."""
    if not MIN_FRAMES <= num_frames <= MAX_FRAMES:
        raise CameraError(f"frames must lie between {MIN_FRAMES} and {MAX_FRAMES}, got {num_frames}")


def _relative_to(azimuths_deg: np.ndarray, frame: int) -> np.ndarray:
    # Those beyond a turn are reduced first, so that no difference of two overflows; the others keep their bits.
    azimuths_deg = np.where(np.abs(azimuths_deg) > 360.0, azimuths_deg % 360.0, azimuths_deg)
    relative = (azimuths_deg - azimuths_deg[frame]) % 360.0
    return np.where(relative == 360.0, 0.0, relative)  # -1e-17 % 360 rounds up to 360


def _angle(value: float, name: str = "elevation_deg", limit: float = 90.0) -> float:
    return float(_angles([value], name, limit)[0])


def _listed(given: ArrayLike | float, name: str, num_frames: int, limit: float = math.inf) -> np.ndarray:
    values = list(np.atleast_1d(np.asarray(given, object)))
    if name == "elevations_deg" and len(values) == 1:
        values = values * num_frames
    if len(values) != num_frames:
        fits = MIN_FRAMES <= len(values) <= MAX_FRAMES
        raise CameraError(
            f"{name} needs num_frames={num_frames} values, got {len(values)}",
            hint=f"give {f'--frames {len(values)} or ' if fits else ''}a list of {num_frames} angles",
        )
    return _angles(values, name, limit)


def _angles(values: Sequence[Any] | np.ndarray, name: str, limit: float = math.inf) -> np.ndarray:
    """Angles as float64. Raises CameraError, which names the first bad one."""
    if len(values) == 0:
        raise CameraError(f"{name} is empty")
    angles = np.empty(len(values))
    for index, value in enumerate(values):
        try:
            angles[index] = float(value)
        except (TypeError, ValueError):
            raise CameraError(f"{name}[{index}] is not a number: {value!r}") from None
        if not math.isfinite(angles[index]):
            raise CameraError(f"{name}[{index}] is {angles[index]}, a finite number of degrees is needed")
        if abs(angles[index]) > limit:
            raise CameraError(f"{name}[{index}] is {angles[index]:g}, outside [-{limit:g}, {limit:g}]")
    return angles


def _warn(message: str) -> None:
    warnings.warn(message, CameraWarning, stacklevel=3)
