"""`sampler_*`: a whole run from the picture to the final frames, with every state on the way."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.cameras.orbit import CameraPath
from sv3d_jax.conditioning import condition_on, frame_values
from sv3d_jax.diffusion.denoiser import Conditioning, both_branches, guide
from sv3d_jax.diffusion.guidance import linear_scale, triangular_scale
from sv3d_jax.diffusion.sampler import initial_latents, levels_at
from sv3d_jax.diffusion.schedule import karras_sigmas
from sv3d_jax.diffusion.solvers import Euler
from sv3d_jax.models.vae import decode
from sv3d_jax.models.video_unet import VideoUNet
from sv3d_jax.weights.key_map import PREFIXES
from tests.parity.cases import Case, Family, load_safetensors
from tests.parity.compare import Tolerance, absolute, relative_per_step, relative_per_value
from tests.parity.families.networks import (
    COMPUTE,
    NETWORK_LIMIT,
    channels_first,
    channels_last,
    model_config,
    params_of,
    run,
)

_SCALES = {"triangle": triangular_scale, "linear": linear_scale}


def compute(case: Case, path: str) -> dict[str, np.ndarray]:
    given, tensors = case.description, case.tensors()
    compute, frames, base_seed = COMPUTE[path], given["num_frames"], given["base_seed"]
    config = model_config(given["config"], tensors["c.vector"].shape[-1], cond_aug=given["cond_aug"])
    cameras = CameraPath(np.asarray(given["azimuths_deg"]), np.asarray(given["elevations_deg"]))
    params = {part: params_of(config, base_seed, part) for part in PREFIXES}
    kind, low, high = re.fullmatch(r"(\w+) ([\d.]+?)\.\.([\d.]+)", given["guider"]).groups()
    scale = _SCALES[kind](frames, float(low), float(high))
    picture = (tensors["image_u8"][None] / 255.0 * 2.0 - 1.0).astype(np.float32)
    condition = run(
        lambda params, *inputs: condition_on(params, config, *inputs, compute),
        params,
        picture,
        channels_last(tensors["cond_aug_noise"]),
        frame_values(config, cameras),
    )
    unet = VideoUNet(config.unet, compute)

    @jax.jit
    def step(params, condition, x, levels):
        denoise = both_branches(lambda *inputs: unet.apply({"params": params}, *inputs), condition)
        branches = denoise(x, levels.current[None])
        guided = guide(*branches, scale)
        return Euler().update(x, guided, levels, ())[0], {"branches": branches, "guided": guided}

    sigmas = karras_sigmas(given["num_steps"], config.sigma_min, config.sigma_max, config.rho)
    states, denoised = [initial_latents(channels_last(tensors["noise"])[None], sigmas)], []
    for index in range(len(sigmas) - 1):
        x, seen = step(params["unet"], condition, states[-1], levels_at(jnp.asarray(sigmas), index))
        states.append(x)
        denoised.append(seen)

    latents = states[-1][0] / jnp.asarray(config.latent_factor)
    pixels = run(lambda params, z: decode(params, config.vae, z, compute), params["vae_decoder"], latents)
    final = np.clip((np.concatenate([pixels[:-1], picture]) + 1.0) / 2.0, 0.0, 1.0)
    outputs = {
        "image": channels_first(picture),
        "sigmas": sigmas,
        "x_steps": channels_first_videos(states),
        "denoised_guided": channels_first_videos([seen["guided"] for seen in denoised]),
        "pixels_before_replace": channels_first(pixels),
        "final_frames": channels_first(final),
        "polars_rad": np.deg2rad(90.0 - cameras.elevations_deg),
        "azimuths_rad": np.deg2rad(cameras.azimuths_deg),
    }
    for name in tensors:
        if match := re.fullmatch(r"denoised_uncond_cond_step(\d+)", name):
            both = np.concatenate(denoised[int(match[1])]["branches"])
            outputs[name] = channels_first(both.reshape(-1, *both.shape[2:]))
    for prefix, branch in {"c": condition, "uc": condition.without_image()}.items():
        outputs |= {
            f"{prefix}.{name}": value for name, value in published_conditioning(branch, frames).items()
        }
    return outputs


def published_conditioning(condition: Conditioning, frames: int) -> dict[str, np.ndarray]:
    """One orbit's conditioning as rows, one per frame."""
    token = np.asarray(condition.context[0])
    return {
        "crossattn": np.broadcast_to(token, (frames, *token.shape)),
        "concat": channels_first(np.asarray(condition.concat[0])),
        "vector": np.asarray(condition.vector[0]),
    }


def channels_first_videos(videos: list[jax.Array]) -> np.ndarray:
    """One video per step, each `1 f h w c`, stacked over the steps."""
    return np.moveaxis(np.concatenate(videos), -1, 2)


def tolerance(name: str, path: str) -> Tolerance:
    if name in ("x_steps", "denoised_guided"):
        return Tolerance(NETWORK_LIMIT[path], relative_per_step)
    if name == "sigmas":
        return Tolerance(2e-7, relative_per_value)
    if name in ("polars_rad", "azimuths_rad"):
        return Tolerance(1e-12, absolute)
    return (
        Tolerance(1e-6, absolute)
        if name in ("image", "c.vector", "uc.vector")
        else Tolerance(NETWORK_LIMIT[path])
    )


FAMILIES = (
    Family(
        pattern=r"sampler_\w+\.safetensors",
        inputs=r"image_u8|cond_aug_noise|noise",
        load=load_safetensors,
        compute=compute,
        tolerance=tolerance,
        slow=True,
    ),
)
