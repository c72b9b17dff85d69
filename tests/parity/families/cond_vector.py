"""`cond_vector*`: noise-level and camera vectors, and the sinusoidal embedding they are made of."""

import re

import numpy as np

from sv3d_jax.conditioning import frame_vector
from sv3d_jax.models.embeddings import sinusoidal
from tests.parity.cases import Case, Family, load_safetensors
from tests.parity.compare import Tolerance, absolute


def compute(case: Case, path: str) -> dict[str, np.ndarray]:
    tensors, outputs = case.tensors(), {}
    for name in tensors:
        if match := re.fullmatch(r"timestep_embedding\.dim(\d+)", name):
            outputs[name] = sinusoidal(tensors["timestep_embedding.t"], int(match[1]))
        elif match := re.fullmatch(r"(.+)\.vector_([up])", name):
            group, variant = match.groups()
            angles = ("polars_rad", "azimuths_rad") if variant == "p" else ()
            outputs[name] = frame_vector(
                *(tensors[f"{group}.{quantity}"] for quantity in ("cond_aug", *angles))
            )
    return outputs


def tolerance(name: str, path: str) -> Tolerance:
    # Angles reach 20 rad in the plain embeddings, where float32 has fewer digits after the point.
    return Tolerance(2e-6 if name.startswith("timestep_embedding") else 1e-6, absolute)


FAMILIES = (
    Family(
        pattern=r"cond_vector\w*\.safetensors",
        inputs=r".+\.(polars_rad|azimuths_rad|cond_aug)|timestep_embedding\.t",
        load=load_safetensors,
        compute=compute,
        tolerance=tolerance,
    ),
)
