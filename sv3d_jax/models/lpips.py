"""LPIPS: the distance of pictures in the features of VGG16 (Zhang et al., arXiv 1801.03924; heads of version 0.1)."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Params, on_device
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.layers import conv2d

# Of each block, the places of its convolutions in torchvision's `features`, and their channels. A pooling lies between
# two blocks.
BLOCKS = (
    ((0, 2), 64),
    ((5, 7), 128),
    ((10, 12, 14), 256),
    ((17, 19, 21), 512),
    ((24, 26, 28), 512),
)
# Mean and deviation of ImageNet's colours, for pixels in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
MIN_SIZE = 16  # pixels of a side, which four poolings halve


def lpips_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published tensors: torchvision's VGG16 trunk and the linear heads."""
    shapes, channels = {}, 3
    for block, (places, features) in enumerate(BLOCKS):
        for place in places:
            shapes[f"features.{place}.weight"] = (features, channels, 3, 3)
            shapes[f"features.{place}.bias"] = (features,)
            channels = features
        shapes[f"lin{block}.model.1.weight"] = (1, features, 1, 1)
    return shapes


def lpips_params(tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters from tensors of the published names and shapes."""
    params: Params = {}
    for block, (places, _) in enumerate(BLOCKS):
        for place in places:
            kernel = np.asarray(tensors[f"features.{place}.weight"], np.float32)
            bias = np.asarray(tensors[f"features.{place}.bias"], np.float32)
            params[f"features_{place}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
        params[f"lin{block}"] = np.asarray(tensors[f"lin{block}.model.1.weight"], np.float32).reshape(-1)
    return on_device(params)


def lpips_distance(
    params: Params, first: Float[Array, "n h w 3"], second: Float[Array, "n h w 3"]
) -> Float[Array, "n"]:
    """LPIPS of pixels in [-1, 1], equation 1 of the paper.

    Squared differences of unit-length features, weighted per channel, averaged over places, summed over blocks.
    """
    distance = jnp.zeros(len(first))
    features = zip(_vgg_features(params, first), _vgg_features(params, second), strict=True)
    for block, (x, y) in enumerate(features):
        squared = jnp.square(_unit(x) - _unit(y))
        distance += jnp.mean(jnp.sum(squared * params[f"lin{block}"], axis=-1), axis=(1, 2))
    return distance


def _vgg_features(params: Params, pixels: Float[Array, "n h w 3"]) -> list[Array]:
    """The last activation of every block."""
    x = (pixels.astype(jnp.float32) - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
    features = []
    for block, (places, _) in enumerate(BLOCKS):
        if block > 0:
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        for place in places:
            layer = params[f"features_{place}"]
            x = nn.relu(conv2d(x, layer["kernel"], 1, ((1, 1), (1, 1)), Compute()) + layer["bias"])
        features.append(x)
    return features


def _unit(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Features of unit length. Where all are 0 they stay 0: the gradient of the root would be infinite there."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, x / (jnp.sqrt(jnp.where(is_zero, 1.0, squared)) + 1e-10))
