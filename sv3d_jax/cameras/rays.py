"""Camera rays through pixel centres."""

import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float


def camera_rays(
    camera_to_world: Float[Array | np.ndarray, "*b 4 4"],
    focal: Float[Array | np.ndarray, "*#b 2"],
    center: Float[Array | np.ndarray, "*#b 2"],
    height: int,
    width: int,
) -> tuple[Float[Array, "*b h w 3"], Float[Array, "*b h w 3"]]:
    """Origins and unit directions, in world coordinates, of the rays through all pixel centres."""
    camera_to_world, focal, center = (jnp.asarray(x, jnp.float32) for x in (camera_to_world, focal, center))
    x = (jnp.arange(width) + 0.5 - center[..., None, 0:1]) / focal[..., None, 0:1]  # *b 1 w
    y = (center[..., 1:2, None] - jnp.arange(height)[:, None] - 0.5) / focal[..., 1:2, None]  # *b h 1
    x, y = jnp.broadcast_arrays(x, y)
    in_camera = jnp.stack([x, y, -jnp.ones_like(x)], axis=-1)
    in_camera /= jnp.linalg.norm(in_camera, axis=-1, keepdims=True)
    directions = jnp.einsum(
        "...ij,...hwj->...hwi", camera_to_world[..., :3, :3], in_camera, precision="highest"
    )
    origins = jnp.broadcast_to(camera_to_world[..., None, None, :3, 3], directions.shape)
    return origins, directions
