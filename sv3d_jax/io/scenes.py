"""Scenes of other programs, pictures with cameras from transforms.json or COLMAP, read like orbits."""

import os
import warnings
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from sv3d_jax.cameras.orbit import CameraWarning
from sv3d_jax.cameras.pose import looked_at
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.cameras_file import CAMERAS_FILE
from sv3d_jax.io.colmap import find_colmap, read_colmap
from sv3d_jax.io.images import PICTURE_SUFFIXES, Picture, over_white
from sv3d_jax.io.lens import undistorted
from sv3d_jax.io.names import exists
from sv3d_jax.io.orbits import Frame, OrbitFrames, read_orbit, stack_frames
from sv3d_jax.io.surfaces import world_from_file
from sv3d_jax.io.transforms import TRANSFORMS_FILES, read_transforms

Up = Literal["auto", "y", "z"]
KNOWN = f"{CAMERAS_FILE}, transforms.json, or a COLMAP model (cameras.txt and images.txt in sparse/0, sparse or openly)"
# Mean squared distance of the x axes from their best plane, up to which that plane is the horizon.
SCATTERED = 0.02
SEARCHED_FOLDERS = 1000  # below a folder without cameras, for the hint


@dataclass(frozen=True)
class Scene:
    """Undistorted pictures of one size with their cameras, in the coordinates of the file."""

    source: Path  # the transforms file, or the folder of the COLMAP model
    names: list[str]  # of the views, for messages
    pictures: list[Picture]  # undistorted
    camera_to_scene: np.ndarray  # (f, 4, 4), x right, y up, looking along -z
    focal_px: np.ndarray  # (f, 2)
    center_px: np.ndarray  # (f, 2)
    files: list[Path]  # pictures and masks that were read
    absent: list[str]  # a message for each view whose picture does not exist
    undistorted: str | None  # the distortion of the first distorted picture, None if there was none

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of all pictures."""
        height, width = self.pictures[0].rgb.shape[:2]
        return height, width

    def world_from_scene(self, up: Up = "auto") -> np.ndarray:
        """The rotation (4, 4) that turns an axis of the scene to the world's z.

        `auto` is z for a transforms.json. COLMAP's axes are arbitrary, so its up is estimated from the cameras.
        """
        if up == "auto":
            return np.eye(4) if self.source.is_file() else _upright(self.camera_to_scene, str(self.source))
        return world_from_file(up)


def read_views(path: str | Path, up: Up = "auto") -> OrbitFrames:
    """Read an orbit folder, or a scene of another program: its folder or its transforms file.

    Scenes are rotated by `Scene.world_from_scene`; their last view counts as the input view. Views without a picture
    are left out with a warning, as in these programs. Raises InputError for files that cannot be read and CameraError
    for invalid cameras.
    """
    path = Path(path)
    if path.name == CAMERAS_FILE and path.is_file():
        return read_orbit(path.parent)
    source = find_scene(path)
    if source is None:
        check_views(path)
        return read_orbit(path)
    scene = read_scene(source)
    if scene.absent:
        others = f", and so for {len(scene.absent) - 1} more" if len(scene.absent) > 1 else ""
        _say(f"a view is left out: {scene.absent[0]}{others}")
    images, alphas = stack_frames([_frame(picture) for picture in scene.pictures])
    turn = scene.world_from_scene(up)
    return OrbitFrames(
        images=images,
        alphas=alphas,
        camera_to_world=turn @ scene.camera_to_scene,
        focal_px=scene.focal_px,
        center_px=scene.center_px,
        azimuths_deg=None,
        elevations_deg=None,
        radius=None,
        input_frame=len(scene.names) - 1,
        fov_deg=None,
        object_to_world=turn,
        files=scene.names,
    )


def find_scene(path: Path) -> Path | None:
    """What `read_scene` can read at a path: a transforms file, or the folder of a COLMAP model; else None.

    A folder with a cameras.json is an orbit, not a scene. If a folder has several transforms files, the first one in
    the order of `TRANSFORMS_FILES` is used.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".json" else None
    if exists(path / CAMERAS_FILE):
        return None
    files = [path / name for name in TRANSFORMS_FILES if exists(path / name)]
    return files[0] if files else find_colmap(path)


def check_views(path: Path) -> None:
    """Raise an InputError if a path holds no cameras, which says what it holds instead. Opens no file."""
    if path.name == CAMERAS_FILE or exists(path / CAMERAS_FILE) or find_scene(path) is not None:
        return
    if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
        hint = f"sv3d generate {path} -o DIR makes an orbit and a mesh of a picture"
        raise InputError(f"{path} is a picture, not the folder of an orbit", hint=hint)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder", hint="give a folder of frames with a cameras.json")
    places = [path.parent, *(Path(folder) for folder, _, _ in islice(os.walk(path), SEARCHED_FOLDERS))]
    orbits = [place for place in places if exists(place / CAMERAS_FILE) or find_scene(place) is not None]
    hint = f"a folder needs its cameras: {KNOWN}"
    if orbits:
        hint = f"there is an orbit in {orbits[0]}" + (f", and {len(orbits) - 1} more" if orbits[1:] else "")
    elif any(file.suffix.lower() in PICTURE_SUFFIXES for file in path.iterdir()):
        hint = (
            f"pictures without cameras: sv3d generate {path} -o DIR; pictures around one object need {KNOWN}"
        )
    raise InputError(f"{path / CAMERAS_FILE} does not exist", hint=hint)


def find_scenes(path: Path) -> list[Path]:
    """All scenes below a folder, in order; folders inside a scene's folder are not searched."""
    source = find_scene(path)
    if source is not None or not path.is_dir():
        return [source] if source is not None else []
    found = []
    for folder, below, _ in os.walk(path):
        below.sort()
        if (source := find_scene(Path(folder))) is not None:
            found.append(source)
            below.clear()
    return found


def read_scene(source: Path) -> Scene:
    """Read what `find_scene` found and undistort its pictures. Raises InputError and CameraError, naming the view."""
    views, absent = read_transforms(source) if source.is_file() else read_colmap(source)
    if not views:
        raise InputError(absent[0], hint=_where_expected(source, len(absent)))
    poses = np.stack([view.camera_to_world for view in views])
    looked_at(poses, [f"{source}: {view.name}" for view in views])
    first = views[0].picture.rgb.shape
    for view in views:
        if view.picture.rgb.shape != first:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (view.picture.rgb.shape, first)]
            raise InputError(
                f"{source}: the picture of {view.name} has {sizes[0]} pixels, that of {views[0].name} has {sizes[1]}",
                hint="all pictures need one size",
            )
    pictures = [undistorted(view.picture, view.lens, f"{source}: {view.name}") for view in views]
    distortion = next((view.lens.distortion for view in views if view.lens.distortion), None)
    if distortion is not None:
        _say(
            f"{source}: pictures are undistorted ({distortion}); parts that move out of the picture are lost"
        )
    left = [name for name in TRANSFORMS_FILES[1:] if source.name != name and exists(source.with_name(name))]
    if source.name in TRANSFORMS_FILES[1:] and left:
        _say(f"{source} is read; {', '.join(left)} can be given instead")
    return Scene(
        source=source,
        names=[view.name for view in views],
        pictures=pictures,
        camera_to_scene=poses,
        focal_px=np.array([view.lens.focal_px for view in views]),
        center_px=np.array([view.lens.center_px for view in views]),
        files=[file for view in views for file in view.files],
        absent=absent,
        undistorted=distortion,
    )


def _where_expected(source: Path, count: int) -> str:
    """What to do where none of a scene's pictures is there."""
    folder = source.parent if source.is_file() else source
    return (
        f"none of the {count} pictures is there: copy them to where the scene names them, below"
        f" {folder.absolute()}"
    )


def _frame(picture: Picture) -> Frame:
    rgb, alpha = picture.rgb, picture.alpha
    return Frame(rgb if alpha is None else over_white(rgb, alpha), alpha)


def _upright(poses: np.ndarray, where: str) -> np.ndarray:
    """The smallest rotation (4, 4) that makes the cameras' x axes as horizontal as possible, y axes pointing up."""
    right, up = poses[:, :3, 0], poses[:, :3, 1].mean(0)
    _, spread, axes = np.linalg.svd(right, full_matrices=True)
    spread = np.append(spread, np.zeros(3 - len(spread))) ** 2 / len(right)
    # Cameras side by side do not determine a plane: then take the mean of their y axes.
    direction = axes[2] if spread[1] > SCATTERED > spread[2] else up
    if np.linalg.norm(up) < 0.1 or abs(direction @ up) < 0.1 * np.linalg.norm(up):
        raise CameraError(
            f"{where}: its cameras have no common up direction", hint="name an axis: --up y or --up z"
        )
    direction = direction / np.linalg.norm(direction) * np.sign(direction @ up)
    x, y, z = direction
    turn = np.eye(4)
    if z < -1 + 1e-9:
        turn[:3, :3] = np.diag([1.0, -1.0, -1.0])
        return turn
    # Cross-product matrix of the rotation axis.
    cross = np.array([[0.0, 0.0, -x], [0.0, 0.0, -y], [x, y, 0.0]])
    turn[:3, :3] = np.eye(3) + cross + cross @ cross / (1 + z)
    return turn


def _say(message: str) -> None:
    warnings.warn(message, CameraWarning, stacklevel=3)
