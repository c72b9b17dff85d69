"""The fine stage's surface as a representation: triangles, a colour field for their albedo, and a light."""

from dataclasses import dataclass, replace

import numpy as np

from sv3d_jax.arrays import Array, Float, Params, Scalar
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.programs import kept_jit
from sv3d_jax.recon.capacity import padded
from sv3d_jax.recon.dmtet.render import render_surface
from sv3d_jax.recon.dmtet.surface import Surface
from sv3d_jax.recon.representations import ColorField
from sv3d_jax.recon.uv import smooth_normals
from sv3d_jax.recon.views import Cameras
from sv3d_jax.render.antialias import mesh_edges
from sv3d_jax.render.lighting import SGLight

FULLY_LIT = 0.95  # quantile of vertex shading taken as full light


@dataclass(frozen=True, eq=False)
class TetSurface:
    """A surface cut out of tetrahedra, in the colours of a field and in the light that the fit found."""

    vertices: Float[Array, "v 3"]
    faces: np.ndarray | Array  # t 3
    color: ColorField
    field: Params  # of `color`
    light: SGLight | None
    albedo_scale: float = 1.0  # factor on the colours of the field

    @classmethod
    def of_fit(cls, color: ColorField, surface: Surface, params: Params) -> "TetSurface":
        """What `fit_surface` returns, or shows to a preview; with the padding of its arrays."""
        return cls(surface.vertices, surface.faces, color, params["field"], params["light"])

    def render(self, cameras: Cameras, size: tuple[int, int]) -> Float[Array, "f h w 3"]:
        """Pictures over white, in light; size is (h, w)."""
        params = {"field": self.field, "light": self.light}
        surface = self.vertices, self.faces
        return _render(self.albedo_scale, params, *surface, cameras, color=self.color, size=size)

    def mesh(self) -> Mesh:
        """The surface, without colours."""
        faces = np.asarray(self.faces)
        return Mesh(
            np.asarray(self.vertices, np.float64), faces[faces[:, 0] != faces[:, 1]]
        )  # others are padding

    def colors_at(
        self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Float[np.ndarray, "n 3"]:
        """The albedo."""
        return np.asarray(_albedo(self.albedo_scale, self.field, points, color=self.color))

    def with_full_light(self) -> "TetSurface":
        """The same colours in light, with the light scaled to a shading of 1 at the brightest places.

        Pictures determine albedo and light up to one factor, and the prior on the light leaves the largest channel of
        the albedo near 1, so that a grey object would come out white. Scaled like this, the albedo is what the views
        show where the object is lit best.
        """
        if self.light is None:
            return self
        normals = smooth_normals(self.mesh()).astype(np.float32)
        shading = np.asarray(self.light.shade(padded(normals)))[: len(normals)]
        brightest = float(np.quantile(shading, FULLY_LIT))
        return replace(self, light=self.light.times(1.0 / brightest), albedo_scale=brightest)


@kept_jit
def _albedo(scale: Scalar, field: Params, points: Float[Array, "n 3"], *, color: ColorField) -> Array:
    return scale * color(field, points)


@kept_jit
def _render(
    albedo_scale: Scalar,
    params: Params,
    vertices: Float[Array, "v 3"],
    faces: Array,
    cameras: Cameras,
    *,
    color: ColorField,
    size: tuple[int, int],
) -> Float[Array, "f h w 3"]:
    def albedo(field, points):
        return albedo_scale * color(field, points)

    max_pixels = len(cameras.focal_px) * size[0] * size[1]
    edges = mesh_edges(faces)
    return render_surface(albedo, params, vertices, faces, edges, cameras, size, max_pixels).image
