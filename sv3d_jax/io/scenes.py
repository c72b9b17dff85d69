"""Pictures of an object with cameras that other programs found: transforms.json and COLMAP, read as orbits are."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sv3d_jax.cameras.orbit import CameraWarning
from sv3d_jax.errors import CameraError, InputError
from sv3d_jax.io.cameras_file import CAMERAS_FILE
from sv3d_jax.io.colmap import find_colmap, read_colmap
from sv3d_jax.io.images import Picture, over_white
from sv3d_jax.io.lens import undistorted
from sv3d_jax.io.names import exists
from sv3d_jax.io.orbits import Frame, OrbitFrames, read_orbit, stack_frames
from sv3d_jax.io.surfaces import world_from_file
from sv3d_jax.io.transforms import TRANSFORMS_FILES, read_transforms

Up = Literal["auto", "y", "z"]
KNOWN = f"{CAMERAS_FILE}, transforms.json, or a COLMAP model (cameras.txt and images.txt in sparse/0, sparse or openly)"
SCATTERED = 0.02  # of the squares of the cameras' x axes off one plane; below, the plane is the horizon


@dataclass(frozen=True)
class Scene:
    """Pictures of one size with the pinhole cameras that took them, in a world of their own."""

    source: Path  # the transforms file, or the folder of the COLMAP model
    names: list[str]  # of the views, for messages
    pictures: list[Picture]  # without distortion
    camera_to_scene: np.ndarray  # (f, 4, 4), x right, y up, looking along -z
    focal_px: np.ndarray  # (f, 2)
    center_px: np.ndarray  # (f, 2)
    absent: list[str]  # what is to be said of each view whose picture is not there
    undistorted: str | None  # the distortion that was undone in the first picture that had some

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of all pictures."""
        height, width = self.pictures[0].rgb.shape[:2]
        return height, width

    def world_from_scene(self, up: Up = "auto") -> np.ndarray:
        """The rotation (4, 4) that makes an axis of the scene point up, as z does in our world.

        `auto`: z of a transforms.json; a COLMAP model has an up only by luck, and takes the cameras' common one.
        """
        if up == "auto":
            return np.eye(4) if self.source.is_file() else _upright(self.camera_to_scene, str(self.source))
        return world_from_file(up)


def read_views(path: str | Path, up: Up = "auto") -> OrbitFrames:
    """Read an orbit's folder, or the pictures and cameras of another program: its folder, or its transforms file.

    Cameras of other programs are turned as `Scene.world_from_scene` says, and the last view is the input view. Views
    whose picture is not there are left out, as these programs do, and said. Raises InputError for what cannot be read
    and CameraError for cameras.
    """
    path = Path(path)
    if path.name == CAMERAS_FILE and path.is_file():
        return read_orbit(path.parent)
    source = find_scene(path)
    if source is None:
        if path.is_dir() and not exists(path / CAMERAS_FILE):
            raise InputError(
                f"{path / CAMERAS_FILE} does not exist", hint=f"a folder needs its cameras: {KNOWN}"
            )
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
    """What `read_scene` can read of a path: a transforms file, or the folder of a COLMAP model; else None.

    A folder with a cameras.json is an orbit of ours and no scene. Of several files with transforms a folder's first
    one counts, in the order of `TRANSFORMS_FILES`.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".json" else None
    if exists(path / CAMERAS_FILE):
        return None
    files = [path / name for name in TRANSFORMS_FILES if exists(path / name)]
    return files[0] if files else find_colmap(path)


def find_scenes(path: Path) -> list[Path]:
    """Scenes in a folder at any depth, in order; what lies in the folder of a scene belongs to it."""
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
    """The pictures and cameras of what `find_scene` found, lens distortion undone.

    Raises InputError and CameraError, which name the file and the view.
    """
    views, absent = read_transforms(source) if source.is_file() else read_colmap(source)
    if not views:
        raise InputError(absent[0], hint="none of the pictures is there")
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
        _say(f"{source}: pictures are undistorted ({distortion}); what that moves out of them is lost")
    left = [name for name in TRANSFORMS_FILES[1:] if source.name != name and exists(source.with_name(name))]
    if source.name in TRANSFORMS_FILES[1:] and left:
        _say(f"{source} is read alone; {', '.join(left)} beside it can be named instead")
    return Scene(
        source=source,
        names=[view.name for view in views],
        pictures=pictures,
        camera_to_scene=np.stack([view.camera_to_world for view in views]),
        focal_px=np.array([view.lens.focal_px for view in views]),
        center_px=np.array([view.lens.center_px for view in views]),
        absent=absent,
        undistorted=distortion,
    )


def _frame(picture: Picture) -> Frame:
    rgb, alpha = picture.rgb, picture.alpha
    return Frame(rgb if alpha is None else over_white(rgb, alpha), alpha)


def _upright(poses: np.ndarray, where: str) -> np.ndarray:
    """The smallest rotation (4, 4) that makes the cameras' x axes as level as can be, their y axes pointing up."""
    right, up = poses[:, :3, 0], poses[:, :3, 1].mean(0)
    _, spread, axes = np.linalg.svd(right, full_matrices=True)
    spread = np.append(spread, np.zeros(3 - len(spread))) ** 2 / len(right)
    direction = (
        axes[2] if spread[1] > SCATTERED > spread[2] else up
    )  # cameras side by side tell a plane badly
    if np.linalg.norm(up) < 0.1 or abs(direction @ up) < 0.1 * np.linalg.norm(up):
        raise CameraError(f"{where}: its cameras have no common up", hint="name an axis: --up y or --up z")
    direction = direction / np.linalg.norm(direction) * np.sign(direction @ up)
    x, y, z = direction
    turn = np.eye(4)
    if z < -1 + 1e-9:
        turn[:3, :3] = np.diag([1.0, -1.0, -1.0])
        return turn
    cross = np.array([[0.0, 0.0, -x], [0.0, 0.0, -y], [x, y, 0.0]])  # of the axis that turns it to z
    turn[:3, :3] = np.eye(3) + cross + cross @ cross / (1 + z)
    return turn


def _say(message: str) -> None:
    warnings.warn(message, CameraWarning, stacklevel=3)
