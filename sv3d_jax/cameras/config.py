"""Settings of camera paths, and the `cameras` verb that prints, plots and writes one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sv3d_jax.config import CommonConfig, Seed, Settings, short, within
from sv3d_jax.errors import InputError

if TYPE_CHECKING:
    from sv3d_jax.cameras.orbit import CameraPath
    from sv3d_jax.progress import Progress

MIN_FRAMES, MAX_FRAMES = 2, 128
Frames = Annotated[int, within(MIN_FRAMES, MAX_FRAMES)]
Elevation = Annotated[float, within(-90, 90)]
Azimuth = Annotated[float, within(-sys.float_info.max, sys.float_info.max)]  # taken modulo 360


@dataclass(frozen=True, kw_only=True)
class PathConfig(Settings):
    """The camera path of an orbit; its last view is the input view."""

    orbit: Literal["static", "sine", "dynamic"] = "static"
    """static: one elevation; sine: elevation swings by 30 degrees; dynamic: random and smooth, by the seed"""
    elevation: Elevation | tuple[Elevation, ...] = 10.0
    """degrees above the object's horizon, absolute, up positive: one value, or one for each frame"""
    azimuths: tuple[Azimuth, ...] | None = None
    """degrees relative to the last one, the input view; counter-clockwise seen from above (default: even steps)"""
    frames: Frames | None = None
    """number of views (default: as many as the model is trained on; 21 for SV3D)"""
    seed: Seed = 0
    """seed of random choices"""

    def camera_path(self, trained_frames: int = 21) -> CameraPath:
        """The camera path of these settings, for a model that is trained on so many frames.

        Raises CameraError for settings that give none.
        """
        from sv3d_jax.cameras.orbit import make_orbit

        frames = trained_frames if self.frames is None else self.frames
        if self.elevation == ():
            raise InputError(
                f"--elevation needs a number, or one for each of {frames} frames", hint="--elevation 10"
            )
        if self.azimuths == ():
            raise InputError(
                f"--azimuths needs a number for each of {frames} frames", hint="without it the steps are even"
            )
        several = isinstance(self.elevation, tuple)
        return make_orbit(
            self.orbit,
            frames,
            10.0 if several else self.elevation,
            self.seed,
            self.azimuths,
            self.elevation if several else None,
            trained_frames,
        )


@dataclass(frozen=True, kw_only=True)
class CamerasConfig(PathConfig, CommonConfig):
    """Print or plot a camera path without a model, or write its cameras.json."""

    output: Annotated[Path | None, short("-o")] = None
    """where cameras.json is written: a folder, or a file that ends in .json"""
    plot: Path | None = None
    """PNG file for a view from above and the elevations"""


def run_cameras(config: CamerasConfig, progress: Progress) -> dict[str, Any]:
    """Print the path as a table, plot and write it where asked; returns the content of cameras.json."""
    from sv3d_jax.cameras.plot import plot_path
    from sv3d_jax.io.cameras_file import CAMERAS_FILE, cameras_document, write_cameras
    from sv3d_jax.io.images import write_png

    path = config.camera_path()
    if config.plot is not None and config.plot.suffix.lower() != ".png":
        raise InputError(f"--plot {config.plot}: the file must end in .png")
    target = config.output
    if target is not None and target.suffix != ".json":
        target = target / CAMERAS_FILE
    for file in (target, config.plot):
        if file is not None and file.exists() and not config.overwrite:
            raise InputError(f"{file} exists", hint="--overwrite replaces it")
    if not config.json:
        print(path_table(path))
    if not config.dry_run:
        if target is not None:
            write_cameras(target, path)
            progress.note(f"wrote {target}")
        if config.plot is not None:
            write_png(config.plot, plot_path(path))
            progress.note(f"wrote {config.plot}")
    return cameras_document(path)


def path_table(path: CameraPath) -> str:
    """Frame, azimuth, elevation and position of each view, one line each."""
    lines = ["frame  azimuth  elevation       x       y       z"]
    for index, (azimuth, elevation) in enumerate(zip(path.azimuths_deg, path.elevations_deg, strict=True)):
        x, y, z = path.camera_to_world[index, :3, 3]
        mark = "  input view" if index == path.input_frame else ""
        lines.append(f"{index:5d}  {azimuth:7.2f}  {elevation:9.2f}  {x:6.3f}  {y:6.3f}  {z:6.3f}{mark}")
    lines.append(f"radius {path.radius:g}, field of view {path.fov_deg:g} degrees")
    return "\n".join(lines)
