"""`schedule*`: noise levels, preconditioning factors and guidance scales."""

import re

import numpy as np

from sv3d_jax.diffusion.denoiser import scalings
from sv3d_jax.diffusion.guidance import linear_scale, triangular_scale
from sv3d_jax.diffusion.schedule import karras_sigmas
from tests.parity.cases import Case, Family, load_safetensors
from tests.parity.compare import Tolerance, absolute, relative_per_value

_NUMBER = r"\d+(?:\.\d+)?"
_SIGMAS = re.compile(rf"sigmas(?:_\w*?sigma_max(?P<max>{_NUMBER}))?\.(?P<steps>\d+)")
_GUIDANCE = re.compile(
    rf"(?P<kind>triangle|linear)(?:\.min(?P<min>{_NUMBER}))?\.max(?P<max>{_NUMBER})\.T(?P<f>\d+)"
)


def compute(case: Case, path: str) -> dict[str, np.ndarray]:
    given, tensors, outputs = case.description, case.tensors(), {}
    factors = scalings(tensors["scaling.sigma"])
    for name, field in {"c_skip": "skip", "c_out": "out", "c_in": "inp", "c_noise": "noise"}.items():
        outputs[f"scaling.{name}"] = getattr(factors, field)
    for name in tensors:
        if match := _SIGMAS.fullmatch(name):
            sigma_max = float(match["max"] or given["sigma_max"])
            outputs[name] = karras_sigmas(int(match["steps"]), given["sigma_min"], sigma_max, given["rho"])
        elif match := _GUIDANCE.fullmatch(name):
            scale = {"triangle": triangular_scale, "linear": linear_scale}[match["kind"]]
            outputs[name] = scale(int(match["f"]), float(match["min"] or 1.0), float(match["max"]))
    return outputs


def tolerance(name: str, path: str) -> Tolerance:
    return Tolerance(2e-7, relative_per_value) if name.startswith("sigmas") else Tolerance(1e-6, absolute)


FAMILIES = (
    Family(
        pattern=r"schedule\w*\.safetensors",
        inputs=r"scaling\.sigma",
        load=load_safetensors,
        compute=compute,
        tolerance=tolerance,
    ),
)
