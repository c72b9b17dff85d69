"""`loss*`: one training loss with gradients, noise levels for given normals, weightings."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.diffusion.denoiser import Conditioning, denoise
from sv3d_jax.diffusion.loss import (
    denoising_loss,
    edm_weighting,
    eps_weighting,
    unit_weighting,
    v_weighting,
)
from sv3d_jax.diffusion.schedule import log_normal_sigmas
from sv3d_jax.models.video_unet import VideoUNet
from sv3d_jax.weights.key_map import model_parameters
from tests.parity.cases import Case, Family, load_safetensors
from tests.parity.compare import Tolerance, relative_per_value
from tests.parity.families.networks import (
    COMPUTE,
    channels_first,
    channels_last,
    model_config,
    network_tolerance,
    params_of,
    rows,
    run,
    videos,
)

_WEIGHTINGS = {
    "VWeighting": v_weighting,
    "EDMWeighting": edm_weighting,
    "EpsWeighting": eps_weighting,
    "UnitWeighting": unit_weighting,
}
_NUMBER = r"-?\d+(?:\.\d+)?"


def load(path) -> dict[str, np.ndarray]:
    """The tensors, and the one result that stands in the json."""
    norm = Case(path.parent, path.name, FAMILIES[0]).description["global_grad_norm_of_loss_mean"]
    return load_safetensors(path) | {"global_grad_norm_of_loss_mean": np.asarray(norm)}


def compute(case: Case, path: str) -> dict[str, np.ndarray]:
    given, tensors = case.description, case.tensors()
    frames, base_seed = given["num_frames"], given["base_seed"]
    config = model_config(given["config"], tensors["c.vector"].shape[-1])
    unet = VideoUNet(config.unet, COMPUTE[path])

    def loss(params, latents, noise, sigma, condition):
        results = []

        def network(*inputs):
            results.append(unet.apply({"params": params}, *inputs))
            return results[-1]

        per_frame = denoising_loss(network, latents, noise, sigma, condition)
        return per_frame.mean(), (per_frame, *results)

    p_mean, p_std = given["p_mean_p_std_used"]
    sigma = jnp.repeat(log_normal_sigmas(tensors["log_sigma_normal"], p_mean, p_std), frames)
    latents, noise, concat = (
        videos(channels_last(tensors[name]), frames) for name in ("x0", "noise", "c.concat")
    )
    context, vector = (videos(tensors[name], frames) for name in ("c.crossattn", "c.vector"))
    condition = Conditioning(context, concat, vector)
    params = params_of(config, base_seed, "unet")
    levels = videos(sigma, frames)
    (mean, (per_frame, result)), gradients = run(
        jax.value_and_grad(loss, has_aux=True), params, latents, noise, levels, condition
    )
    noisy = latents + levels[:, :, None, None, None] * noise
    denoised = np.asarray(denoise(lambda *inputs: result, noisy, levels, condition))

    outputs = {
        "sigma": sigma,
        "weight": v_weighting(tensors["sigma"]),
        "denoised": channels_first(rows(denoised)),
        "loss_per_frame": rows(per_frame),
        "loss_mean": mean[None],
        "global_grad_norm_of_loss_mean": np.sqrt(
            sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradients))
        ),
    }
    for parameter in model_parameters(config, ["unet"]):
        if (name := f"grad.{parameter.name}") in tensors:
            leaf = gradients
            for key in parameter.path[1:]:
                leaf = leaf[key]
            outputs[name] = parameter.to_published(leaf)
    for name in tensors:
        if match := re.fullmatch(rf"sigma_samples\.pmean({_NUMBER})_pstd({_NUMBER})", name):
            normal = tensors["sigma_samples.normal"]
            outputs[name] = log_normal_sigmas(normal, float(match[1]), float(match[2]))
        elif match := re.fullmatch(r"weighting\.(\w+Weighting)", name):
            outputs[name] = _WEIGHTINGS[match[1]](tensors["weighting.sigma"])
    return outputs


def tolerance(name: str, path: str) -> Tolerance:
    if name.startswith(("grad.", "global_grad_norm")):
        return Tolerance(1e-4)
    return network_tolerance(name, path) if name == "denoised" else Tolerance(1e-5, relative_per_value)


FAMILIES = (
    Family(
        pattern=r"loss\w*\.safetensors",
        inputs=r"x0|noise|log_sigma_normal|c\.(crossattn|concat|vector)|sigma_samples\.normal|weighting\.sigma",
        load=load,
        compute=compute,
        tolerance=tolerance,
        slow=True,
    ),
)
