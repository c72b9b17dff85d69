"""What a pipeline returns: the views of an orbit, and what is known of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float
from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.errors import InputError
from sv3d_jax.io.inline import picture_html, show
from sv3d_jax.io.outputs import check_finite
from sv3d_jax.preprocess import PreparedImage

OUTPUT_TYPES = ("pil", "np", "jax", "latent")


@dataclass(frozen=True)
class StepInfo:
    """What a callback is told after every step; the latents stay on the device until they are read."""

    step: int  # steps done
    total: int
    sigma: float  # noise level reached
    latents: Float[Array, "b f h w c"]


Callback = Callable[[StepInfo], Any]
"""Is told of every step; may raise `Cancelled`, or return latents, with which the sampling then goes on."""


@dataclass(frozen=True, eq=False, repr=False)
class Orbit:
    """Views of the object in one picture; the frame `cameras.input_frame` is the picture itself.

    `len`, an index, a slice and a loop go over `frames`. A notebook shows an orbit as a sheet of all its views.
    """

    # A list of PIL images, float32 (f, h, w, 3) in [0, 1], or with output_type "latent" the latents.
    frames: Any
    cameras: CameraPath
    latents: Float[Array, "f h w c"] | None  # None for an orbit that was read from a folder
    seed: int | None  # None where it is not known
    timings: dict[str, float]  # seconds by stage, shared by the pictures of a batch
    picture: np.ndarray  # uint8 (h, w, 3): the picture as the model saw it
    notes: list[str] = field(default_factory=list)  # what was done to the picture before sampling

    @classmethod
    def load(cls, directory: str | Path) -> "Orbit":
        """An orbit that was saved in a folder: PIL images, without latents and timings.

        Raises InputError for a folder that is none, CameraError for cameras that are no `CameraPath`.
        """
        from sv3d_jax.io.orbits import load_orbit

        frames, cameras, picture, seed = load_orbit(Path(directory))
        pixels = frames[cameras.input_frame] if picture is None else picture
        return cls(_as_images(frames), cameras, None, seed, {}, pixels)

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, frame: int | slice) -> Any:
        return self.frames[frame]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.frames)

    def __repr__(self) -> str:
        height, width = self.picture.shape[:2]
        kind = "latents of " if self._is_latent() else ""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"Orbit({len(self)} {kind}frames of {width}x{height}, {self.cameras.summary()}{seed})"

    def _repr_html_(self) -> str | None:
        return None if self._is_latent() else picture_html(self.contact_sheet(), repr(self))

    def show(self) -> None:
        """Show a sheet of all views: in a notebook below the cell, elsewhere by the system's picture viewer."""
        show(self, self.contact_sheet())

    def contact_sheet(self) -> np.ndarray:
        """All views in one picture (h, w, 3), uint8, with azimuth and elevation below each."""
        from sv3d_jax.io.video import contact_sheet, frame_labels

        labels = frame_labels(self.cameras.azimuths_deg.tolist(), self.cameras.elevations_deg.tolist())
        return contact_sheet(self.frames_uint8(), labels)

    def _is_latent(self) -> bool:
        return not isinstance(self.frames, list) and np.shape(self.frames)[1:] != self.picture.shape

    def frames_uint8(self) -> np.ndarray:
        """Frames (f, h, w, 3) in 8 bits, cut off and not rounded, as published; the input frame is exactly `picture`.

        Raises InputError for an orbit that was left in latents.
        """
        if isinstance(self.frames, list):
            return np.stack([np.asarray(frame) for frame in self.frames])
        if self._is_latent():
            raise InputError(
                "this orbit was left in latents", hint='ask for output_type "pil", "np" or "jax"'
            )
        return _to_uint8(np.asarray(self.frames), self.picture, self.cameras.input_frame)

    def save(self, directory: str | Path, video: str = "mp4") -> list[Path]:
        """Write an orbit folder: frames, cameras.json, contact.png, input.png and orbit.<video>.

        video is mp4, gif, webp, or png for none. Returns the files written.
        """
        from sv3d_jax.io.cameras_file import CAMERAS_FILE, frame_file
        from sv3d_jax.io.images import write_png
        from sv3d_jax.io.orbits import INPUT_FILE, write_orbit
        from sv3d_jax.io.video import available_format, write_video

        directory, frames = Path(directory), self.frames_uint8()
        write_orbit(directory, frames, self.cameras)
        write_png(directory / "contact.png", self.contact_sheet())
        write_png(directory / INPUT_FILE, self.picture)
        files = [*map(frame_file, range(len(frames))), CAMERAS_FILE, "contact.png", INPUT_FILE]
        if video != "png":
            files.append(f"orbit.{available_format(video)}")
            write_video(directory / files[-1], frames)
        return [directory / file for file in files]


def check_output_type(output_type: str) -> None:
    """Raise InputError for one that is not known."""
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")


def checked_latents(latents: Any, shape: tuple[int, ...], name: str) -> Float[np.ndarray, "b f h w c"]:
    """Latents that a caller gives, as float32 of this shape; without the batch axis where there is one picture.

    Raises InputError for others.
    """
    given = np.asarray(latents)
    if given.shape == shape[1:] and shape[0] == 1:
        given = given[None]
    if (
        given.shape != shape
        or given.dtype.kind not in "fV"
        or not np.isfinite(given.astype(np.float32)).all()
    ):
        raise InputError(f"{name} must be finite floats of shape {shape}, got {given.dtype} {given.shape}")
    return given.astype(np.float32)


def make_orbits(
    frames: Any,
    latents: Float[Array, "b f h w c"],
    prepared: Sequence[PreparedImage],
    seeds: Sequence[int],
    cameras: CameraPath,
    timings: dict[str, float],
    output_type: str,
) -> list[Orbit]:
    """The orbits of a batch from its float frames `b f h w 3` in [0, 1], or latents where those were asked for."""

    def orbit(shown: Array, x: Array, picture: PreparedImage, seed: int) -> Orbit:
        shown = _as_output(shown, picture.pixels, cameras.input_frame, output_type)
        return Orbit(shown, cameras, x, seed, timings, picture.pixels, picture.notes)

    return [orbit(*each) for each in zip(frames, latents, prepared, seeds, strict=True)]


def _as_output(frames: Array, picture: np.ndarray, input_frame: int, output_type: str) -> Any:
    if output_type == "pil":
        return _as_images(_to_uint8(frames, picture, input_frame))
    return jnp.asarray(frames) if output_type == "jax" else frames


def _as_images(frames: np.ndarray) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]


def _to_uint8(frames: np.ndarray, picture: np.ndarray, input_frame: int) -> np.ndarray:
    """255 times the frames, cut off as published; the input frame keeps the bytes of the picture.

    Raises SV3DError for frames that are not finite.
    """
    check_finite(frames, "frames of the orbit")
    cut = (frames * np.float32(255)).astype(np.uint8)
    cut[input_frame] = picture
    return cut
