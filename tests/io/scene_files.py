"""Scene folders like those of other programs, for tests of their readers."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

CASES = Path(__file__).parents[1] / "cases"
PLAIN = CASES / "reports" / "plain" / "train"


def copy_case(case: str, folder: Path, shift: tuple[int, int] = (0, 0)) -> Path:
    """The files of a case in a new folder, with the pictures of `plain` shifted by whole pixels down and right."""
    target = folder / Path(case).name
    shutil.copytree(CASES / case, target, dirs_exist_ok=True)
    for file in target.glob("*.json"):
        for index, frame in enumerate(json.loads(file.read_text())["frames"]):
            name = target / frame["file_path"]
            path = name if name.suffix else name.with_name(name.name + ".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = np.array(Image.open(PLAIN / f"r_{index}.png"))
            Image.fromarray(np.roll(picture, shift, (0, 1))).save(path)
    return target


def write_transforms(folder: Path, document: dict, size=(8, 8), count: int = 3, mode="RGBA") -> Path:
    """Write a transforms.json, with `count` frames unless it has some, and their pictures; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if "frames" not in document:
        document = document | {"frames": [frame(index) for index in range(count)]}
    for index, entry in enumerate(document["frames"]):
        path = folder / f"images/{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new(mode, size, (10 * index, 20, 30, 255)[: len(mode)]).save(path)
        entry.setdefault("file_path", f"images/{index}.png")
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def frame(index: int = 0, **entries) -> dict:
    """A frame whose camera stands on the z axis and looks at the origin."""
    pose = np.eye(4)
    pose[2, 3] = 2.0 + index
    return {"transform_matrix": pose.tolist()} | entries


def write_colmap(
    folder: Path, poses: np.ndarray, camera: str = "PINHOLE 8 8 10 10 4 4", names: list[str] | None = None
) -> Path:
    """A COLMAP text model in sparse/0 of cameras that look along -z with y up (f, 4, 4), without pictures."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text(f"# cameras\n1 {camera}\n")
    lines = []
    for index, pose in enumerate(poses):
        rotation = (pose[:3, :3] * [1, -1, -1]).T
        x, y, z, w = Rotation.from_matrix(rotation).as_quat()
        numbers = " ".join(f"{value:.17g}" for value in (w, x, y, z, *(-rotation @ pose[:3, 3])))
        lines += [f"{index + 1} {numbers} 1 {names[index] if names else f'{index}.png'}", ""]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    return folder
