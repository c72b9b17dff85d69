"""The coarse stage's field as a representation: pictures along rays, a surface at a density level, colours there."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.programs import kept_jit
from sv3d_jax.recon.config import NerfConfig
from sv3d_jax.recon.nerf.occupancy import Occupancy, march
from sv3d_jax.recon.nerf.stage import camera_rays, render_samples
from sv3d_jax.recon.nerf.surface import field_mesh, seen_colors
from sv3d_jax.recon.views import Cameras, Views


@dataclass(frozen=True, eq=False)
class NerfField:
    """A hash-grid field of density and albedo; it does not tell the light from the colours."""

    config: NerfConfig
    params: Params
    occupancy: Occupancy
    views: Views  # whose masks choose the density level of the surface
    light: None = None

    def render(self, cameras: Cameras, size: tuple[int, int]) -> Float[Array, "f h w 3"]:
        """Pictures over white, by samples in the middle of their intervals; size is (h, w)."""
        pictures = []
        for pose, focal, center in zip(*cameras, strict=True):
            camera = Cameras(pose[None], focal[None], center[None])
            pictures.append(_render_view(self.params, self.occupancy, camera, config=self.config, size=size))
        return np.stack(pictures)

    def mesh(self) -> Mesh:
        """The surface at the density level whose silhouettes fit the masks best."""
        return self._surface[0]

    @property
    def facts(self) -> dict[str, Any]:
        """The density level of the surface, and the overlap of its silhouettes with the masks."""
        return self._surface[1]

    def colors_at(
        self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Float[np.ndarray, "n 3"]:
        """What one sees when looking straight at the surface."""
        return seen_colors(self.config, self.params, points, normals)

    @cached_property
    def _surface(self) -> tuple[Mesh, dict[str, Any]]:
        return field_mesh(self.config, self.params, np.asarray(self.occupancy.hull) > 0, self.views)


@kept_jit
def _render_view(
    params: Params, occupancy: Occupancy, camera: Cameras, *, config: NerfConfig, size: tuple[int, int]
) -> Float[Array, "h w 3"]:
    """What one camera, of a leading axis 1, sees."""
    height, width = size

    def row(number):
        rays = camera_rays(camera, size, number * width + jnp.arange(width))
        return render_samples(config, params, march(config, occupancy, *rays, None)).color

    return jax.lax.map(row, jnp.arange(height))
