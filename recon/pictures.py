"""Pictures of a fit as it goes: the input view beside what the fit makes of it."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from einops import reduce

from sv3d_jax.io.images import write_png
from sv3d_jax.io.surfaces import to_uint8
from sv3d_jax.recon.fit import Preview
from sv3d_jax.recon.representations import Representation
from sv3d_jax.recon.views import Views

MAX_SIDE = 128  # of a view


@dataclass(frozen=True)
class Pictures:
    """A folder for pictures of fits, such as coarse_000160.png: one every `every` steps, and one at the end."""

    folder: Path
    every: int

    def preview(self, stage: str, views: Views, frame: int, resumes: bool) -> Preview:
        """A preview that writes what the camera of a frame sees of a representation, beside the frame.

        Pictures of an earlier fit of this stage are removed, unless this one `resumes` it.
        """
        for earlier in () if resumes else self.folder.glob(f"{stage}_*.png"):
            earlier.unlink()
        view = small_view(views, frame)

        def show(step: int, shape: Representation) -> None:
            rendered = shape.render(view.cameras, view.masks.shape[1:])[0]
            pair = np.concatenate([view.images[0], rendered], axis=1)
            path = self.folder / f"{stage}_{step:06}.png"
            write_png(path, to_uint8(pair))

        return Preview(self.every, show)


def small_view(views: Views, frame: int, max_side: int = MAX_SIDE) -> Views:
    """One frame, reduced to at most `max_side` pixels a side by averaging whole blocks of pixels."""
    stride = -(-max(views.masks.shape[1:]) // max_side)
    height, width = (side // stride * stride for side in views.masks.shape[1:])
    one = jax.tree.map(lambda leaf: leaf[frame : frame + 1], views)

    def averaged(pixels):
        blocks = pixels[:, :height, :width]
        return reduce(blocks, "f (h a) (w b) ... -> f h w ...", "mean", a=stride, b=stride)

    return one._replace(
        images=averaged(one.images),
        masks=averaged(one.masks),
        mask_weights=averaged(one.mask_weights),
        focal_px=one.focal_px / stride,
        center_px=one.center_px / stride,
    )
