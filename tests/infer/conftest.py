"""A tiny model written as weights, two pictures, and their orbits, made once for all tests of this folder."""

from pathlib import Path

import pytest
from PIL import Image

from sv3d_jax.weights.hub import write_shipped
from tests.infer.runs import orbit
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG, picture


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with the weights `tiny` and the pictures `box.png` and `ball.png`."""
    folder = tmp_path_factory.mktemp("generate")
    write_shipped(reference_params(CONFIG), CONFIG, folder / "tiny")
    for index, name in enumerate(("box", "ball")):
        Image.fromarray(picture(index)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def made(place) -> Path:
    """The folder of the orbits of both pictures."""
    assert orbit(place, place / "box.png", place / "ball.png", "-o", place / "out") == 0
    return place / "out"
