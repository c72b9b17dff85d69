"""Pictures of a fit as it goes: the input view beside what the fit makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.io.images import write_png
from sv3d_jax.recon.config import NerfConfig
from sv3d_jax.recon.dmtet.stage import render_surface
from sv3d_jax.recon.dmtet.surface import Surface
from sv3d_jax.recon.fit import Look
from sv3d_jax.recon.nerf.occupancy import march
from sv3d_jax.recon.nerf.stage import FieldState, pixel_rays, render_samples
from sv3d_jax.recon.views import Views
from sv3d_jax.render.antialias import mesh_edges

# What one view (of a leading axis 1) shows of a fit's state: h w 3.
Render = Callable[[Views, Any], Float[Array, "h w 3"]]

MAX_SIDE = 128  # of a view


@dataclass(frozen=True)
class Pictures:
    """A folder for pictures of fits, one every so many steps and one in the end: coarse_000160.png, fine_000096.png."""

    folder: Path
    every: int

    def look(self, stage: str, render: Render, views: Views, frame: int, goes_on: bool) -> Look:
        """Looks at a fit through the camera of a frame. Pictures of an earlier fit go, unless this one `goes_on`."""
        for earlier in () if goes_on else self.folder.glob(f"{stage}_*.png"):
            earlier.unlink()
        view = small_view(views, frame)

        def at(step: int, state: Any) -> None:
            pair = np.concatenate([view.images[0], render(view, state)], axis=1)
            path = self.folder / f"{stage}_{step:06}.png"
            write_png(path, np.round(255 * np.clip(pair, 0.0, 1.0)).astype(np.uint8))

        return Look(self.every, at)


def small_view(views: Views, frame: int, max_side: int = MAX_SIDE) -> Views:
    """One frame, whole blocks of its pixels averaged to one."""
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


def render_field(config: NerfConfig) -> Render:
    """What a view shows of the coarse stage's state."""

    @jax.jit
    def render(view: Views, state: FieldState):
        height, width = view.masks.shape[1:]

        def row(number):
            rays = pixel_rays(view, number * width + jnp.arange(width))
            samples = march(config, state.occupancy, *rays, None)
            return render_samples(config, state.params, samples).color

        return jax.lax.map(row, jnp.arange(height))

    return render


def render_fine(config: NerfConfig) -> Render:
    """What a view shows of the fine stage's surface and parameters."""

    @jax.jit
    def render(view: Views, state: tuple[Surface, Params]):
        surface, params = state
        edges = mesh_edges(surface.faces)
        size = view.masks.shape[1:]
        return render_surface(config, params, surface, edges, view.cameras, size, view.masks.size).image[0]

    return render
