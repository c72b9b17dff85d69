"""An orbit model as a prior for score distillation: it judges views of random orbits around the object.

A guide is built once for a reconstruction. Its arrays, the model's parameters among them, are an argument of the
compiled steps rather than constants in them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Array, Float, Int, Params, PRNGKeyArray
from sv3d_jax.cameras.pose import intrinsics, look_at
from sv3d_jax.conditioning import camera_vector
from sv3d_jax.diffusion.denoiser import Conditioning
from sv3d_jax.diffusion.guidance import guidance_scale
from sv3d_jax.errors import CameraError, WeightsError
from sv3d_jax.io.images import Picture
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.preprocess import prepare_image
from sv3d_jax.recon.sds import random_orbit, sds_gradient, sds_sigma_index
from sv3d_jax.recon.views import Cameras, Views

if TYPE_CHECKING:
    from sv3d_jax.pipeline import Pipeline


class GuideArrays(NamedTuple):
    """The arrays of a guide."""

    params: Params  # of the model
    cameras: Cameras  # `o f ...`: random orbits that end at the input view
    condition: Conditioning  # the same for all orbits, but for its vectors, which are `o f v`
    sigmas: Float[Array, "levels"]  # noise levels of the model's sampler, decreasing


@dataclass(frozen=True, eq=False)
class Guide:
    """An orbit model whose score says how views of a random orbit should change."""

    arrays: GuideArrays
    size: int  # side of its frames
    encode: Callable[[Params, Array], Array]
    """(parameters, pixels `1 h w 3` in [-1, 1]) -> model latents `1 h8 w8 c`."""
    denoise: Callable[[Params, Conditioning, Array, Array], Array]
    """(parameters, condition, noisy latents `1 f h8 w8 c`, sigma `1`) -> denoised latents."""

    @property
    def num_frames(self) -> int:
        """Frames of a random orbit."""
        return self.arrays.cameras.focal_px.shape[1]

    def gradient(
        self,
        arrays: GuideArrays,
        orbit: Int[Array, ""],
        images: Float[Array, "f h w 3"],
        mask: Float[Array, "f h w"],
        step: Int[Array, ""],
        num_steps: int,
        key: PRNGKeyArray,
    ) -> Float[Array, "f h w 3"]:
        """The score distillation gradient of the pictures of one orbit, at a random noise level of the step's range."""
        level_key, noise_key = jax.random.split(key)
        sigma = arrays.sigmas[sds_sigma_index(arrays.sigmas, step, num_steps, level_key)]
        condition = arrays.condition._replace(vector=arrays.condition.vector[orbit][None])
        encode = partial(self.encode, arrays.params)
        denoise = partial(self.denoise, arrays.params, condition)
        return sds_gradient(images, mask, encode, denoise, sigma, noise_key)


class InputView(NamedTuple):
    """Where the input picture was taken from, in box coordinates."""

    azimuth_deg: float
    elevation_deg: float
    radius: float
    fov_deg: float


def make_guide(pipeline: "Pipeline", views: Views, input_frame: int, num_orbits: int, seed: int) -> Guide:
    """A guide conditioned on the picture of one view, with `num_orbits` random orbits that end there.

    Raises WeightsError for a model without cameras, CameraError where the input view is not like those it was
    trained on.
    """
    config, view = pipeline.config, input_view(views, input_frame)
    check_model(config)
    rng = np.random.default_rng(seed)
    paths = [random_orbit(rng, view.elevation_deg, config.num_frames) for _ in range(num_orbits)]
    poses = [
        look_at(view.azimuth_deg + path.azimuths_deg, path.elevations_deg, view.radius) for path in paths
    ]
    lens = intrinsics(view.fov_deg, config.native_size)
    focal, center = (np.tile(x, (num_orbits, config.num_frames, 1)) for x in lens)
    cameras = Cameras(*(jnp.asarray(leaf, jnp.float32) for leaf in (np.stack(poses), focal, center)))

    picture = Picture(np.rint(255 * np.asarray(views.images[input_frame])).astype(np.uint8))
    pixels = prepare_image(picture, config.native_size, "keep").pixels[None] / np.float32(127.5) - 1
    _, noise, _ = pipeline.noise([seed], config.num_frames, config.native_size)
    condition = pipeline.condition(pixels, noise, paths[0])
    condition = condition._replace(vector=jnp.stack([camera_vector(config, path) for path in paths]))

    scale = guidance_scale(config.family.guidance, config.num_frames, config.cfg_min, config.cfg_max)
    return Guide(
        arrays=GuideArrays(
            {part: pipeline.params[part] for part in ("unet", "vae_encoder")},
            cameras,
            condition,
            jnp.asarray(pipeline.sigmas(config.num_steps)),
        ),
        size=config.native_size,
        encode=lambda params, pixels: pipeline.encode(params["vae_encoder"], pixels),
        denoise=lambda params, condition, *noisy: pipeline.denoiser(params["unet"], condition, scale)(*noisy),
    )


def check_model(config: ModelConfig) -> None:
    """Refuse a model without camera conditioning, or whose input frame is not the last."""
    if config.family.input_frame != "last":
        raise WeightsError(
            f"{config.name} begins its orbits at the input view: score distillation draws orbits that end there",
            hint="--weights of a model with cameras, as sv3d_p or mini",
        )
    if not config.family.has_cameras:
        raise WeightsError(
            f"{config.name} is not told any cameras: it knows static orbits alone, and score distillation needs views"
            " from above and below",
            hint="--weights of a model with cameras, as sv3d_p or mini",
        )


def input_view(views: Views, index: int) -> InputView:
    """The view that the model is given. Raises CameraError where it is not like those the model was trained on.

    Those are square and upright, z being up, and look at the middle of the box.
    """
    pose, (height, width) = views.camera_to_box[index], views.masks.shape[1:]
    right, position = pose[:3, 0], pose[:3, 3]
    radius = float(np.linalg.norm(position))
    azimuth = float(np.rad2deg(np.arctan2(-right[0], right[1])))
    elevation = float(np.rad2deg(np.arcsin(np.clip(position[2] / radius, -1.0, 1.0))))
    is_level = np.allclose(look_at(azimuth, elevation, radius), pose, atol=0.01)
    is_centred = height == width and np.allclose(views.center_px[index], width / 2, atol=0.01 * width)
    if not (is_level and is_centred):
        raise CameraError(
            f"frame {index}, the input view, is not a view like those the model was trained on: square, upright,"
            " z being up, and looking at the point that all views turn around",
            hint="score distillation needs an orbit as sv3d orbit or sv3d data render writes it",
        )
    return InputView(
        azimuth, elevation, radius, float(2 * np.rad2deg(np.arctan(width / 2 / views.focal_px[index, 0])))
    )
