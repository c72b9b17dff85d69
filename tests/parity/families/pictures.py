"""`image/`: input pictures cut out, centred and resized as the published script does."""

import json
from pathlib import Path

import numpy as np
import PIL

from sv3d_jax.errors import InputError
from sv3d_jax.io.images import Picture
from sv3d_jax.preprocess import bounding_box, prepare_image, square_side
from tests.parity.cases import Case, Family
from tests.parity.compare import EXACT, Tolerance

FEW = 1e-3  # of the values


def compute_geometry(case: Case, path: str) -> dict[str, np.ndarray]:
    outputs = {}
    for index, entry in enumerate(json.loads(case.path.read_text())["cases"]):
        picture = _read(case.path.parent / entry["input"])
        box = bounding_box(picture.alpha)
        side = square_side(picture.rgb.shape[:2], box, entry["ratio"], published_side=True)
        values = {"size_hw": picture.rgb.shape[:2], "bbox_xywh": box, "side_len": side, "center": side // 2}
        values["fails"] = _prepare(picture, 64, entry["ratio"]) is None
        outputs |= {f"cases.{index}.{name}": np.asarray(value, np.float64) for name, value in values.items()}
    return outputs


def load_geometry(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    for index, entry in enumerate(json.loads(path.read_text())["cases"]):
        given = {"input", "output", "ratio", "error"}
        numbers = {name: value for name, value in entry.items() if name not in given}
        numbers["fails"] = "error" in entry
        tensors |= {f"cases.{index}.{name}": np.asarray(value, np.float64) for name, value in numbers.items()}
    return tensors


def compute_pixels(case: Case, path: str) -> dict[str, np.ndarray]:
    cases = json.loads((case.path.parent / "image.json").read_text())["cases"]
    entry = next((entry for entry in cases if entry.get("output") == case.path.name), None)
    assert entry is not None, f"{case.file} is neither input nor output of a case in image.json"
    size = case.tensors()["pixels"].shape[0]
    return {"pixels": _prepare(_read(case.path.parent / entry["input"]), size, entry["ratio"])}


def load_pixels(path: Path) -> dict[str, np.ndarray]:
    with PIL.Image.open(path) as image:
        return {"pixels": np.asarray(image)}


def _read(path: Path) -> Picture:
    rgba = load_pixels(path)["pixels"]
    return Picture(rgba[..., :3], rgba[..., 3])


def _prepare(picture: Picture, size: int, ratio: float | None) -> np.ndarray | None:
    try:
        return prepare_image(picture, size, "alpha", ratio, published_side=True).pixels
    except InputError:
        return None


def grey_levels(got: np.ndarray, stored: np.ndarray) -> float:
    """Largest difference, which only few values may have."""
    difference = np.abs(got - stored)
    return float(difference.max()) if (difference > 0).mean() <= FEW else np.inf


def pixel_tolerance(name: str, path: str) -> Tolerance:
    # The stored pictures come from Pillow 13; another version may round a resize differently.
    return EXACT if PIL.__version__.split(".")[0] == "13" else Tolerance(1.0, grey_levels)


FAMILIES = (
    Family(
        pattern=r"image/image\.json",
        inputs=r"",
        load=load_geometry,
        compute=compute_geometry,
        tolerance=lambda name, path: EXACT,
    ),
    Family(
        pattern=r"image/.+\.png",
        inputs=r"",
        load=load_pixels,
        compute=compute_pixels,
        tolerance=pixel_tolerance,
    ),
)
