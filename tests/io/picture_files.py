"""Small pictures for tests of files that hold or name them."""

import numpy as np
from PIL import Image

GRADIENT = np.stack(np.broadcast_arrays(np.arange(48) * 5, np.arange(40)[:, None] * 6, 100), -1).astype(
    np.uint8
)


def save_picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
