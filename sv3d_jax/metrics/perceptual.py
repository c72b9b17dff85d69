"""LPIPS, with weights from a file that the user provides."""

from pathlib import Path

import numpy as np

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.errors import InputError, WeightsError
from sv3d_jax.models.lpips import MIN_SIZE, lpips_distance, lpips_params, lpips_shapes
from sv3d_jax.weights.safetensors_file import SafetensorsFile

_HINT = (
    "one safetensors file holds the tensors features.* of torchvision's vgg16 and lin0 ... lin4 of the lpips"
    " package's weights/v0.1/vgg.pth, under the names that they have there"
)


def lpips(
    prediction: Float[Array, "*f h w 3"], target: Float[Array, "*f h w 3"], params: Params
) -> Float[Array, "*f"]:
    """LPIPS (VGG16, version 0.1) of images in [0, 1]; 0 if identical. `params` are from `read_lpips_weights`.

    Raises InputError for images that are too small.
    """
    *frames, height, width, _ = prediction.shape
    if min(height, width) < MIN_SIZE:
        raise InputError(f"LPIPS needs pictures of at least {MIN_SIZE} pixels a side, got {width}x{height}")
    pixels = (2.0 * x.reshape(-1, height, width, 3) - 1.0 for x in (prediction, target))
    return lpips_distance(params, *pixels).reshape(frames)


def read_lpips_weights(path: Path | str) -> Params:
    """Parameters for `lpips` from a safetensors file with VGG16's trunk and the linear heads.

    Other tensors in the file, such as VGG16's classifier, are ignored. Raises WeightsError, which names tensors that
    are missing, of a wrong shape or not finite.
    """
    file, shapes = SafetensorsFile(path), lpips_shapes()
    missing = [name for name in shapes if name not in file.tensors]
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise WeightsError(f"{path} lacks {len(missing)} of LPIPS' {len(shapes)} tensors: {named}", _HINT)
    for name, shape in shapes.items():
        found = file.tensors[name]
        if found.shape != shape:
            raise WeightsError(f"{path}: {name} should have the shape {shape}, it has {found.shape}", _HINT)
    tensors = {name: np.asarray(file.read(name), np.float32) for name in shapes}
    broken = next((name for name, tensor in tensors.items() if not np.isfinite(tensor).all()), None)
    if broken is not None:
        raise WeightsError(f"{path}: {broken} holds values that are not finite", _HINT)
    return lpips_params(tensors)
