"""OpenCLIP's image encoder (ViT-H/14 in SV3D): a picture to one context token, with the published preparation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ImageEncoderConfig
from sv3d_jax.models.initializers import fresh, torch_uniform
from sv3d_jax.models.layers import Dense, LayerNorm, attend, gelu

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def prepare(pixels: Float[Array, "n h w 3"], image_size: int) -> Float[Array, "n s s 3"]:
    """Pictures in [-1, 1] of any size as the image encoder takes them.

    Gaussian blur where the picture shrinks, bicubic resize with aligned corners (overshoot is not clipped), then to
    [0, 1], minus CLIP's mean, divided by its deviation. This is the order of SV3D's published code, not that of CLIP.
    """
    factors = [side / image_size for side in pixels.shape[1:3]]
    if max(factors) > 1:
        for axis, factor in zip((1, 2), factors, strict=True):
            pixels = _blur(pixels, axis, gaussian_kernel(factor))
    rows, columns = (jnp.asarray(_bicubic_matrix(side, image_size)) for side in pixels.shape[1:3])
    resized = jnp.einsum("ih,nhwc->niwc", rows, pixels, precision="highest")
    resized = jnp.einsum("jw,niwc->nijc", columns, resized, precision="highest")
    return ((resized + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(STD)


def gaussian_kernel(factor: float) -> np.ndarray:
    """Float32 weights, odd in number, of the blur that precedes shrinking a side by `factor`."""
    sigma = max((factor - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3))
    taps += 1 - taps % 2
    offsets = np.arange(taps) - taps // 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    return (kernel / kernel.sum()).astype(np.float32)


def _blur(x: Float[Array, "n h w c"], axis: int, kernel: np.ndarray) -> Float[Array, "n h w c"]:
    """Weighted sum along one axis; beyond the border the picture is mirrored about its outermost pixel."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (len(kernel) // 2,) * 2  # pyright: ignore[reportCallIssue]
    padded, side = jnp.pad(x, pad, mode="reflect"), x.shape[axis]
    windows = [jax.lax.slice_in_dim(padded, i, i + side, axis=axis) for i in range(len(kernel))]
    return sum(weight * window for weight, window in zip(kernel, windows, strict=True))


def _bicubic_matrix(side: int, target: int) -> np.ndarray:
    """Matrix (target, side) of cubic interpolation with a = -0.75: first and last samples aligned, border repeated.

    The kernel is that of Keys, Cubic Convolution Interpolation for Digital Image Processing (1981).
    """
    a = -0.75
    matrix = np.zeros((target, side))
    for i in range(target):
        source = i * (side - 1) / (target - 1) if target > 1 else 0.0
        base = math.floor(source)
        for tap in range(base - 1, base + 3):
            d = abs(source - tap)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(tap, 0), side - 1)] += near if d <= 1 else far
    return matrix.astype(np.float32)


class ImageEncoder(nn.Module):
    """Vision transformer whose class token, normed and projected, is the embedding; its length is not normalised.

    Dosovitskiy et al., arXiv 2010.11929, equations 1 to 4, with a norm before the first block and a last projection.
    """

    config: ImageEncoderConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, prepared: Float[Array, "n s s 3"]) -> Float[Array, "n d"]:
        config, compute = self.config, self.compute
        width = config.width
        x = PatchEmbedding(config, compute, name="conv1")(prepared)
        class_token = self.param("class_embedding", _scaled_normal(width), (width,))
        x = jnp.concatenate(
            [jnp.broadcast_to(class_token, (x.shape[0], 1, width)).astype(x.dtype), x], axis=1
        )
        positions = self.param("positional_embedding", _scaled_normal(width), (config.num_tokens, width))
        x = LayerNorm(compute=compute, name="ln_pre")(x + positions.astype(x.dtype))
        x = Transformer(config, compute, name="transformer")(x)
        x = LayerNorm(compute=compute, name="ln_post")(x[:, 0])
        projection = self.param("proj", _scaled_normal(width), (width, config.output_width))
        out = jnp.matmul(x, projection.astype(x.dtype), precision=compute.precision)
        return out.astype(jnp.float32)


def _scaled_normal(width: int):
    return nn.initializers.normal(width**-0.5)


class PatchEmbedding(nn.Module):
    """One linear map per patch: a convolution whose stride is its size, without bias; row-major tokens."""

    config: ImageEncoderConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "n s s 3"]) -> Float[Array, "n l c"]:
        n, side, _, c = x.shape
        patch, width = self.config.patch, self.config.width
        grid = side // patch
        kernel = self.param("kernel", torch_uniform(c * patch * patch), (patch, patch, c, width))
        patches = x.reshape(n, grid, patch, grid, patch, c).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(n, grid * grid, patch * patch * c).astype(self.compute.dtype)
        kernel = kernel.reshape(patch * patch * c, width).astype(self.compute.dtype)
        return jnp.matmul(patches, kernel, precision=self.compute.precision)


class Transformer(nn.Module):
    """The blocks, one after the other."""

    config: ImageEncoderConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "n l c"]) -> Float[Array, "n l c"]:
        for i in range(self.config.layers):
            x = ResidualAttentionBlock(self.config, self.compute, name=f"resblocks_{i}")(x)
        return x


class ResidualAttentionBlock(nn.Module):
    """x plus self-attention of its norm, then plus an MLP of its norm (equations 2 and 3 of `ImageEncoder`)."""

    config: ImageEncoderConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "n l c"]) -> Float[Array, "n l c"]:
        compute = self.compute
        normed = LayerNorm(compute=compute, name="ln_1")(x)
        x = x + PackedAttention(self.config.head_width, compute, name="attn")(normed)
        normed = LayerNorm(compute=compute, name="ln_2")(x)
        return x + MLP(self.config.mlp_ratio, compute, name="mlp")(normed)


class PackedAttention(nn.Module):
    """Multi-head self-attention whose query, key and value are the thirds of one projection."""

    head_width: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "n l c"]) -> Float[Array, "n l c"]:
        n, length, c = x.shape
        packed = Dense(3 * c, compute=self.compute, name="in_proj")(x)
        packed = packed.reshape(n, length, 3, c // self.head_width, self.head_width)
        out = attend(packed[:, :, 0], packed[:, :, 1], packed[:, :, 2], self.compute)
        return Dense(c, compute=self.compute, name="out_proj")(out.reshape(x.shape))


class MLP(nn.Module):
    """Linear layer, exact GELU, linear layer."""

    ratio: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "n l c"]) -> Float[Array, "n l c"]:
        c = x.shape[-1]
        hidden = gelu(Dense(self.ratio * c, compute=self.compute, name="c_fc")(x))
        return Dense(c, compute=self.compute, name="c_proj")(hidden)


def embed_image(
    params: Params, config: ImageEncoderConfig, pixels: Float[Array, "n h w 3"], compute: Compute = Compute()
) -> Float[Array, "n d"]:
    """Context token of pictures in [-1, 1]; params is the `image_tower` tree."""
    return ImageEncoder(config, compute).apply({"params": params}, prepare(pixels, config.image_size))


def init_image_encoder(config: ImageEncoderConfig, key: Array) -> Params:
    """Fresh parameters of the image encoder."""
    return fresh(ImageEncoder(config), key, (1, config.image_size, config.image_size, 3))
