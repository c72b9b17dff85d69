"""What a stage of the reconstruction makes: a representation of the object, whatever its form.

The field of the coarse stage (`recon/nerf/representation.py`) and the textured surface of the fine stage
(`recon/dmtet/representation.py`) are two of them. A third needs the methods below: besides pictures it must give a
mesh, and colours at points of it. Previews, results of `--stage` and baking use nothing else.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.recon.views import Cameras

ColorsAt = Callable[[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]], Float[np.ndarray, "n 3"]]
"""Colours of points of a surface with these unit normals."""

ColorField = Callable[[Params, Float[Array, "n 3"]], Float[Array, "n 3"]]
"""Colours of points by a field with these parameters; differentiable in both."""


class Light(Protocol):
    """Anything that shades: `SoftLight`, or the light that a reconstruction found."""

    def shade(self, normals: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """The factor on the albedo of points with these unit normals."""
        ...


class Representation(Protocol):
    """An object in box coordinates (`recon/views.py`)."""

    @property
    def light(self) -> Light | None:
        """The light that the views were taken in, if separated from albedo; else None."""
        ...

    def render(self, cameras: Cameras, size: tuple[int, int]) -> Float[Array, "f h w 3"]:
        """Pictures over white, in light, as the cameras see the object; size is (h, w)."""
        ...

    def mesh(self) -> Mesh:
        """The surface, without colours."""
        ...

    def colors_at(
        self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Float[np.ndarray, "n 3"]:
        """Colours without light of points of the surface with these unit normals."""
        ...


def lit(colors_at: ColorsAt, light: Light) -> ColorsAt:
    """The colours in a light."""
    return lambda points, normals: colors_at(points, normals) * np.asarray(light.shade(normals))[:, None]
