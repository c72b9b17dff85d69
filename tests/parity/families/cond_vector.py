"""`cond_vector*`: noise-level and camera vectors, and the sinusoidal embedding they are made of."""

import re

import numpy as np

from sv3d_jax.conditioning import FrameValues, frame_vector
from sv3d_jax.models.embeddings import sinusoidal
from sv3d_jax.models.families import FAMILIES as MODEL_FAMILIES
from tests.parity.cases import Case, Family, load_safetensors
from tests.parity.compare import Tolerance, absolute


def compute(case: Case, path: str) -> dict[str, np.ndarray]:
    tensors, outputs = case.tensors(), {}
    for name in tensors:
        if match := re.fullmatch(r"timestep_embedding\.dim(\d+)", name):
            outputs[name] = sinusoidal(tensors["timestep_embedding.t"], int(match[1]))
        elif match := re.fullmatch(r"(.+)\.vector_([up])", name):
            group, variant = match.groups()
            values = FrameValues(
                *(tensors.get(f"{group}.{name}", 0.0) for name in ("cond_aug", "polars_rad", "azimuths_rad"))
            )
            outputs[name] = frame_vector(MODEL_FAMILIES[variant], values)
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
