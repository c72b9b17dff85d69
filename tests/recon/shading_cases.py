"""The recon reference data of light, of the distillation mask and of image losses."""

import json

import numpy as np

from sv3d_jax.recon.losses import depth_smoothness_loss, illumination_loss, normal_loss
from sv3d_jax.recon.sds import visibility_mask
from sv3d_jax.render.lighting import COSINE_AMPLITUDE, COSINE_SHARPNESS, sg_shading
from tests.parity.cases import Case, Family, load_arrays, load_numbers, numbers
from tests.parity.compare import Tolerance, absolute, relative_per_value


def compute_single_lobes(case: Case, path: str) -> dict[str, np.ndarray]:
    """Lobes of amplitude 1 at an angle to the normal; the integral done numerically is the closed form as well."""
    lobes = []
    for lobe in json.loads(case.path.read_text())["single_lobe"]:
        shading = _one_lobe(lobe["sharpness"], lobe["angle_deg"])
        integral = {"sg_cosine_numeric": np.pi * shading, "sg_cosine_closed_form": np.pi * shading}
        lobes.append(integral | {"irradiance_over_pi_closed_form": shading})
    return numbers(
        {
            "cosine_lobe": {"sharpness": COSINE_SHARPNESS, "amplitude": COSINE_AMPLITUDE},
            "white_furnace_closed_form": _one_lobe(0.0, 0.0),
            "single_lobe": lobes,
        }
    )


def _one_lobe(sharpness: float, angle_deg: float) -> float:
    angle = np.radians(angle_deg)
    normal = np.array([np.sin(angle), 0.0, np.cos(angle)])
    axis = np.array([[0.0, 0.0, 1.0]])
    return float(sg_shading(axis, np.array([sharpness]), np.ones(1), normal))


def compute_shading(case: Case, path: str) -> dict[str, np.ndarray]:
    given = {name: tensor.astype(np.float32) for name, tensor in case.tensors().items()}
    lobes = given["axis"], given["sharpness"], given["amplitude"]
    return {"shading_L": np.asarray(sg_shading(*lobes, given["normals"]))}


def compute_mask(case: Case, path: str) -> dict[str, np.ndarray]:
    given = case.tensors()
    points, normals, cameras = given["points"], given["normals"], given["camera_positions"]
    arrays = (array.astype(np.float32) for array in (points, normals, cameras))
    mask, best_dot, best_camera = (np.asarray(output) for output in visibility_mask(*arrays))
    # Where two cameras see a point equally well, either may be named.
    view = cameras - points[:, None]
    dots = np.einsum("nfi,ni->nf", view / np.linalg.norm(view, axis=-1, keepdims=True), normals)
    second, first = np.sort(dots, axis=1)[:, -2:].T
    best_camera = np.where(first - second > 1e-5, best_camera, given["best_camera"])
    return {"mask": mask, "best_dot": best_dot, "best_camera": best_camera}


def compute_image_losses(case: Case, path: str) -> dict[str, np.ndarray]:
    given = {name: tensor.astype(np.float32) for name, tensor in case.tensors().items()}
    everywhere, mask = np.ones_like(given["mask"]), given["mask"]
    losses = {"loss_depth_smooth": depth_smoothness_loss(given["depth"], everywhere, everywhere)}
    for suffix, valid in (("", everywhere), ("_masked", mask)):
        losses[f"loss_normal{suffix}"] = normal_loss(given["normal"], given["normal_ref"], valid)
        losses[f"loss_illum{suffix}"] = illumination_loss(given["shading_L"], given["image"], valid)
    return {name: np.asarray(loss) for name, loss in losses.items()}


FAMILIES = (
    Family(
        pattern=r"sg_lighting\w*\.json",
        inputs=r"single_lobe\.\d+\.(sharpness|angle_deg|exact_clamped_cosine)",
        load=load_numbers,
        compute=compute_single_lobes,
        tolerance=lambda name, path: Tolerance(1e-5, relative_per_value),
    ),
    Family(
        pattern=r"sg_lighting\w*\.npz",
        inputs=r"axis|sharpness|amplitude|normals",
        load=load_arrays,
        compute=compute_shading,
        tolerance=lambda name, path: Tolerance(1e-5, relative_per_value),
    ),
    Family(
        pattern=r"sds_mask\w*\.npz",
        inputs=r"camera_positions|points|normals",
        load=load_arrays,
        compute=compute_mask,
        tolerance=lambda name, path: Tolerance(1e-5, absolute),
    ),
    Family(
        pattern=r"image_losses\w*\.npz",
        inputs=r"depth|normal|normal_ref|image|shading_L|mask",
        load=load_arrays,
        compute=compute_image_losses,
        tolerance=lambda name, path: Tolerance(1e-6, absolute),
    ),
)
