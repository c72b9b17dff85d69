"""Lines of OBJ files for tests, and what the reader makes of them."""

from pathlib import Path

import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.io.obj_reader import read_obj
from sv3d_jax.io.surfaces import Source

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
# Two faces of a roof, 90 degrees apart, that share an edge along y; the right one is larger.
ROOF = "v -1 0 -1\nv 0 0 0\nv 0 1 0\nv -1 1 -1\nv 2 0 -2\nv 2 1 -2\n"
ROOF_FACES = "f 1 2 3 4\nf 2 5 6 3\n"


def read(text, folder=Path("nowhere")):
    """The parts of an OBJ file and the remarks."""
    source = Source(folder / "mesh.obj")
    return read_obj(text if isinstance(text, bytes) else text.encode(), source), source.remarks


def refused(text, folder=Path("nowhere")):
    """The message that an OBJ file is refused with."""
    with pytest.raises(InputError) as caught:
        read(text, folder)
    return caught.value.message
