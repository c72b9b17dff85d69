"""The residual block of the UNet: 2-D on every frame, then over time, blended by a learned factor."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sv3d_jax.arrays import Array, Float
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.fast import choose
from sv3d_jax.models.layers import Conv2d, Dense, GroupNorm, TemporalConv, silu

EPSILON = 1e-5


class TimeMixer(nn.Module):
    """a * spatial + (1 - a) * temporal with a = sigmoid(mix_factor), and a = 1 for frames that are still images.

    Blattmann et al., Align your Latents, arXiv 2304.08818, section 3.1.
    """

    def setup(self):
        """The parameter of the blend."""
        self.mix_factor = self.param("mix_factor", nn.initializers.constant(0.5), (1,))

    def temporal_share(self) -> Float[Array, "1"]:
        """1 - a, the weight of the temporal branch."""
        return 1 - jax.nn.sigmoid(self.mix_factor)

    def __call__(
        self,
        spatial: Float[Array, "b f ..."],
        temporal: Float[Array, "b f ..."],
        image_only: Float[Array, "b f"] | None,
    ) -> Float[Array, "b f ..."]:
        factor = jax.nn.sigmoid(self.mix_factor)
        if image_only is not None:
            still = image_only.reshape(image_only.shape + (1,) * (spatial.ndim - 2)) != 0
            factor = jnp.where(still, 1.0, factor)
        factor = factor.astype(spatial.dtype)
        return factor * spatial + (1 - factor) * temporal


class VideoResBlock(nn.Module):
    """Spatial residual block on each frame, then a temporal one on the video; both add the embedding of each frame."""

    features: int
    groups: int
    compute: Compute

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        embedding: Float[Array, "b f e"],
        image_only: Float[Array, "b f"] | None = None,
    ) -> Float[Array, "b f h w d"]:
        b, f, h, w, c = x.shape
        compute = self.compute
        frames = x.reshape(b * f, h, w, c)
        u = GroupNorm(EPSILON, self.groups, compute, silu, name="in_layers_0")(frames)
        u = Conv2d(self.features, compute=compute, name="in_layers_2")(u)
        shift = Dense(self.features, compute=compute, name="emb_layers_1")(silu(embedding))
        u = u + shift.reshape(b * f, 1, 1, self.features)
        u = GroupNorm(EPSILON, self.groups, compute, silu, name="out_layers_0")(u)
        u = Conv2d(self.features, zero_init=True, compute=compute, name="out_layers_3")(u)
        if c != self.features:
            frames = Conv2d(self.features, size=1, compute=compute, name="skip_connection")(frames)
        spatial = (frames + u).reshape(b, f, h, w, self.features)
        temporal_block = TemporalResBlock(self.groups, compute, name="time_stack")
        mixer = TimeMixer(name="time_mixer")
        if choose.scales_kernel(image_only, compute):
            return temporal_block(spatial, embedding, mixer.temporal_share())
        return mixer(spatial, temporal_block(spatial, embedding), image_only)


class TemporalResBlock(nn.Module):
    """Residual block of convolutions over time; its norms pool over all frames of a video.

    With `scale`, a number, what the block adds to x is multiplied by it.
    """

    groups: int
    compute: Compute

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], embedding: Float[Array, "b f e"], scale: Array | None = None
    ) -> Float[Array, "b f h w c"]:
        features, compute = x.shape[-1], self.compute
        u = GroupNorm(EPSILON, self.groups, compute, silu, name="in_layers_0")(x)
        u = TemporalConv(features, compute=compute, name="in_layers_2")(u)
        shift = Dense(features, compute=compute, name="emb_layers_1")(silu(embedding))
        u = u + shift[:, :, None, None, :]
        u = GroupNorm(EPSILON, self.groups, compute, silu, name="out_layers_0")(u)
        return x + TemporalConv(features, zero_init=True, compute=compute, name="out_layers_3")(u, scale)
