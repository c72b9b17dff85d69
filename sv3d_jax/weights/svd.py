"""The UNet of Stable Video Diffusion (SVD), from which SV3D was fine-tuned, as weights to start training from.

Its tensors have SV3D's names and shapes, except for the first layer of the label embedding: SVD's vector holds frame
rate, motion and conditioning noise, 256 sinusoids each; SV3D's the conditioning noise and, in sv3d_p, two angles.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sv3d_jax.arrays import Params
from sv3d_jax.errors import WeightsError
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.families import FAMILIES, ModelFamily
from sv3d_jax.weights.key_map import PREFIXES, Shape, model_parameters, tree_from_leaves
from sv3d_jax.weights.source import cast, open_tensors

VECTOR_WIDTH = FAMILIES["v3d"].vector_width  # V3D keeps SVD's vector, with constants in it


def is_svd(path: Path) -> bool:
    """Whether a file holds Stable Video Diffusion, with either of its decoders."""
    found = open_tensors(path)
    return found is not None and has_svd_vector({name: info.shape for name, info in found.tensors.items()})


def has_svd_vector(shapes: Mapping[str, Shape]) -> bool:
    """Whether a model's condition vector has the width of SVD's."""
    return shapes.get(f"{PREFIXES['unet']}label_emb.0.0.weight", ())[1:] == (VECTOR_WIDTH,)


def read_svd_unet(path: Path, model: ModelConfig) -> Params:
    """The UNet of an SVD file in float32, with a label embedding as wide as SVD's; other tensors are not read.

    Raises a WeightsError if a tensor is missing or has another shape than in the UNet of `model`.
    """
    file = open_tensors(path)
    if file is None:
        raise WeightsError(f"{path} holds no .safetensors file", hint="name the file of SVD")
    unet = replace(model.unet, vector_width=VECTOR_WIDTH)
    parameters = model_parameters(replace(model, unet=unet), ["unet"])
    for parameter in parameters:
        found = file.tensors[parameter.name].shape if parameter.name in file.tensors else "nothing"
        if found != parameter.shape:
            raise WeightsError(
                f"{path}: {parameter.name} should have the shape {parameter.shape} in the UNet of {model.name}, "
                f"the file has {found}",
                hint="choose the model with the widths of the file",
            )
    return tree_from_leaves(
        (p.path, p.to_tree(cast(file.read(p.name), f"{path}: {p.name}", np.dtype(np.float32))))
        for p in parameters
    )["unet"]


def adapt_vector(kernel: np.ndarray, family: ModelFamily) -> np.ndarray:
    """The first kernel of the label embedding, (vector, out), for the vector of another family.

    Rows move with the number that they read. Those of numbers that the kernel does not know are zero: at first the
    network answers as if there were none. Frame rate and motion of SVD are the constants of V3D. Raises WeightsError
    for a kernel that is as wide as the vector of no family.
    """
    known = next((each.vector for each in FAMILIES.values() if each.vector_width == len(kernel)), None)
    if known is None:
        raise WeightsError(f"the label embedding reads {len(kernel)} numbers, as that of no known model does")
    stops = np.cumsum([field.width for field in known])
    rows = {field: kernel[stop - field.width : stop] for field, stop in zip(known, stops, strict=True)}
    absent = [np.zeros((field.width, kernel.shape[1]), kernel.dtype) for field in family.vector]
    return np.concatenate([rows.get(f, zeros) for f, zeros in zip(family.vector, absent, strict=True)])
