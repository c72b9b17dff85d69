"""The pixels that an object covers, as a list: what is computed there costs nothing at the others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Bool, Float, Int
from sv3d_jax.render.rasterize import Fragments, points_on_faces


class CoveredPixels(NamedTuple):
    """Pixels of several views in order, and where in the list each pixel of the pictures is.

    The list has a static length, its capacity. Of more pixels than fit (`overflow`), the last are left out.
    """

    index: Int[Array, "m"]  # in the flattened pictures; beyond their end where the list is longer than needed
    rank: Int[Array, "n h w"]  # place in the list; m for all other pixels
    overflow: Bool[Array, ""]

    @classmethod
    def of(cls, covered: Bool[Array, "n h w"], capacity: int) -> "CoveredPixels":
        """Those where `covered` is true, at most `capacity`."""
        ends = jnp.cumsum(covered.ravel())
        rank = jnp.where(covered.ravel() & (ends <= capacity), ends - 1, capacity)
        index = jnp.full(capacity, covered.size).at[rank].set(jnp.arange(covered.size), mode="drop")
        return cls(index, rank.reshape(covered.shape), ends[-1] > capacity)

    def fragments(
        self, screen: Float[Array, "n v 3"], faces: Int[Array, "t 3"], face_id: Int[Array, "n h w"]
    ) -> Fragments:
        """What the pixels show, as from `rasterize`, but in rows; differentiable in the vertices."""
        _, height, width = face_id.shape
        face = face_id.ravel().at[self.index].get(mode="fill", fill_value=-1)
        view = jnp.minimum(self.index // (height * width), len(screen) - 1)
        row, column = self.index % (height * width) // width, self.index % width
        corners = screen[view[:, None], faces[jnp.maximum(face, 0)]]
        return Fragments(face, *points_on_faces(corners, column, row, face >= 0))

    def pictures(self, rows: Any) -> Any:
        """Rows (m *c), one for each pixel of the list, as pictures (n h w *c), 0 elsewhere; any pytree of them."""
        return jax.tree.map(lambda values: _picture(values, self.index, self.rank), rows)


@jax.custom_vjp
def _picture(values: Float[Array, "m *c"], index: Int[Array, "m"], rank: Int[Array, "n h w"]) -> Array:
    """Each pixel has one row at most, so the gradient is a lookup as well, which a CPU does faster than a scatter."""
    return values.at[rank].get(mode="fill", fill_value=0.0)


def _picture_forward(values, index, rank):
    return _picture(values, index, rank), (index, rank.ndim)


def _picture_backward(kept, cotangent):
    index, ndim = kept
    rows = cotangent.reshape(-1, *cotangent.shape[ndim:])
    return rows.at[index].get(mode="fill", fill_value=0.0), None, None


_picture.defvjp(_picture_forward, _picture_backward)
