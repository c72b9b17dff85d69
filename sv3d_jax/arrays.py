"""Array annotations: jaxtyping where it is installed, names that say the same and check nothing where it is not.

Letters are the same everywhere: b batch, f frames or views, h w height and width, c d channels, n points or
rays, s samples along a ray, v vertices, t triangles, l tokens, k lobes or levels.
"""

from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray  # what jax functions take; what they return is the first

try:
    from jaxtyping import Bool, Float, Int, Num, PRNGKeyArray, UInt8
except ImportError:  # accelerator hosts often carry jax and nothing else

    class _Unchecked:
        def __class_getitem__(cls, item: Any) -> Any:
            return jax.Array

    Bool = Float = Int = Num = UInt8 = _Unchecked
    PRNGKeyArray = jax.Array

Params = dict[str, Any]
Scalar = Float[Array, ""]

__all__ = ["Array", "Bool", "Float", "Int", "Num", "PRNGKeyArray", "Params", "Scalar", "UInt8"]
