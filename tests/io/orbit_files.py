"""An orbit folder, and changes of its cameras.json, for tests of their readers."""

import json
from pathlib import Path

import numpy as np

from sv3d_jax.cameras.orbit import dynamic_orbit
from sv3d_jax.io.orbits import write_orbit

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 12, 16, 3), np.uint8)


def edit(folder, change):
    """Apply `change` to the content of cameras.json."""
    path = folder / "cameras.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def set_in_frame(index, **values):
    return lambda document: document["frames"][index].update(values)


def example_orbit(folder: Path) -> Path:
    """An orbit folder of five views."""
    write_orbit(folder, IMAGES, dynamic_orbit(5, seed=1))
    return folder
