"""Memory and FLOP of a training run per device, from shapes alone; the devices of the mesh need not be present."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sv3d_jax.cost import live_bytes, step_flop_counter
from sv3d_jax.io.outputs import check_output_parent
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.parallel.devices import mesh_shape
from sv3d_jax.parallel.rules import tree_specs
from sv3d_jax.plan import plan_orbit, require_accelerator
from sv3d_jax.precision import DTYPES
from sv3d_jax.train.checkpoints import CHECKPOINTS, checkpoint_steps
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.losses import Loss, OrbitBatch
from sv3d_jax.train.objectives import check_picture_size, init_params, make_loss, read_model
from sv3d_jax.train.optimizer import make_optimizer
from sv3d_jax.weights.hub import find_weights

# Fraction of a device's memory; the rest goes to the runtime, collectives and gaps between buffers.
USABLE = 0.9
GRADIENT_COST = 1.5  # of a step with its gradient, in guided steps of sampling: three forward passes for two


class Accelerator(NamedTuple):
    """A kind of device, with its peak speed and memory."""

    name: str
    kind: str  # regular expression for the `device_kind` of jax
    peak_flops: float  # dense bfloat16
    memory_bytes: float


ACCELERATORS = (
    Accelerator("A100", r"\bA100", 312e12, 80e9),
    Accelerator("H100", r"\bH100", 989e12, 80e9),
    Accelerator("H200", r"\bH200", 790e12, 141e9),  # sustained under load; the data sheet says 989
    Accelerator("TPU v5e", r"TPU v5 ?(lite|e)", 197e12, 16e9),
    Accelerator("TPU v5p", r"TPU v5(p|$)", 459e12, 95e9),
    Accelerator("TPU v6e", r"TPU v6 ?(lite|e)", 918e12, 32e9),
)


def find_accelerator(device_kind: str) -> Accelerator | None:
    """The accelerator with this `device_kind` of jax, or None if the table does not have it."""
    return next((each for each in ACCELERATORS if re.search(each.kind, device_kind, re.IGNORECASE)), None)


def plan_run(config: TrainConfig) -> dict[str, Any]:
    """Memory per device and FLOP of a step for the mesh of the settings, and the accelerators with enough memory."""
    model = read_model(config.model)
    mesh = asked_mesh(config.mesh)
    params = jax.eval_shape(functools.partial(init_params, config.objective, model), jax.random.key(0))
    optimizer = jax.eval_shape(make_optimizer(config.optimizer, config.max_steps).init, params)
    parameters = sharded_bytes(params, mesh)
    parts = {
        "parameters": parameters,
        "optimizer": sharded_bytes(optimizer, mesh),
        "ema": parameters,
        # With accumulation the running sum, and the gradient of one part.
        "gradients": parameters * (2 if config.accumulate > 1 else 1),
    }
    batch = batch_shapes(config, model, _rows_per_device(config, mesh))
    flop = step_flop_counter(_loss(config, model), params)(batch) * config.accumulate
    activations = {
        name: activation_bytes(dataclasses.replace(config, remat=remat), model, mesh, params, batch)
        for name, remat in (("remat", True), ("no remat", False))
    }
    totals = {
        f"{remat}, {ema}": sum(parts.values()) - (parts["ema"] if ema == "no EMA" else 0) + size
        for remat, size in activations.items()
        for ema in ("EMA", "no EMA")
    }
    return {
        "objective": config.objective,
        "model": model.name,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "steps": config.max_steps,
        "mesh": mesh,
        "devices": math.prod(mesh.values()),
        "batch_per_device": [list(leaf.shape) for leaf in jax.tree.leaves(batch)][0],
        "accumulate": config.accumulate,
        "tflop_per_device": _short(flop / mesh["tensor"] / 1e12),
        "gb_per_device": {name: _short(size / 1e9) for name, size in parts.items()}
        | {f"activations, {name}": _short(size / 1e9) for name, size in activations.items()},
        "total_gb": {name: _short(size / 1e9) for name, size in totals.items()},
        "fits": {
            name: [each.name for each in ACCELERATORS if fits(size, each)] for name, size in totals.items()
        },
    }


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """Check inputs and output folder of a run; its plan, the size of its pictures and the existing checkpoints."""
    check_output_parent(config.output)
    if config.objective == "unet":
        find_weights(config.weights)
    data = config.data
    check_picture_size(config, read_model(config.model))
    return plan_run(config) | {
        "pictures_mib": data.objects * data.num_frames * data.size**2 * 3 >> 20,
        "checkpoints": checkpoint_steps(config.output / CHECKPOINTS),
    }


def require_training_accelerator(config: TrainConfig) -> None:
    """Raise InputError for the UNet of a full-size model on a CPU that the user has not chosen: it takes days."""
    model = read_model(config.model)
    if config.objective == "unet":
        frames = config.diffusion.frames_per_sample
        steps = config.max_steps / model.num_steps
        plan = plan_orbit(model, num_frames=frames, batch=config.batch_size)
        require_accelerator(plan, jax.default_backend(), config.device, "training", GRADIENT_COST * steps)


def _loss(config: TrainConfig, model: ModelConfig) -> Loss:
    """The loss as an accelerator computes it, also where the plan is made on a CPU."""
    return make_loss(config, model, Compute(DTYPES[config.dtype], remat=config.remat))


def asked_mesh(text: str) -> dict[str, int]:
    """Sizes of the axes in `--mesh`; an axis that is not named has size 1."""
    return mesh_shape(text, math.prod(map(int, re.findall(r"=\s*([0-9]{1,6})", text))))


def sharded_bytes(tree: Any, mesh: Mapping[str, int]) -> int:
    """Bytes per device of a tree of shapes, split by the sharding rules."""

    def one(leaf, spec) -> int:
        split = math.prod(mesh[axis] for part in spec for axis in _axes(part))
        return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize // split

    return sum(jax.tree.leaves(jax.tree.map(one, tree, tree_specs(tree, mesh))))


def activation_bytes(
    config: TrainConfig, model: ModelConfig, mesh: Mapping[str, int], params: Any, batch: Any
) -> int:
    """Peak bytes of activations in the gradient of one accumulation part on one device, without the gradients.

    Copies of the weights in the compute dtype are split like the weights. The `tensor` axis does not reduce the
    estimate, because some activations are replicated along it.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    peak = live_bytes(jax.value_and_grad(_loss(config, model)), params, batch, key)
    gradients = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(params))
    return peak.activations + max(0, peak.weights - gradients) // (mesh["fsdp"] * mesh["tensor"])


def batch_shapes(config: TrainConfig, model: ModelConfig, rows: int) -> Any:
    """Shapes of a batch of `rows` at the model's native size; for the UNet, whole orbits if the run has them."""
    size, float32 = model.native_size, np.float32
    if config.objective == "autoencoder":
        return jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8)
    if config.objective == "tower":
        return jax.ShapeDtypeStruct((rows, 2, size, size, 3), np.uint8)
    side = size // model.vae.downsampling
    frames = (
        config.data.num_frames if config.diffusion.full_orbit_share else config.diffusion.frames_per_sample
    )
    latent = (side, side, model.vae.latent_channels)
    return OrbitBatch(
        latents=jax.ShapeDtypeStruct((rows, frames, *latent), float32),
        input_latents=jax.ShapeDtypeStruct((rows, *latent), float32),
        tokens=jax.ShapeDtypeStruct((rows, model.unet.context_width), float32),
        polar_rad=jax.ShapeDtypeStruct((rows, frames), float32),
        azimuth_rad=jax.ShapeDtypeStruct((rows, frames), float32),
        frame_index=jax.ShapeDtypeStruct((rows, frames), float32),
    )


def fits(size: float, accelerator: Accelerator) -> bool:
    """Whether `size` bytes fit into the usable share of the memory of an accelerator."""
    return size <= USABLE * accelerator.memory_bytes


def _rows_per_device(config: TrainConfig, mesh: Mapping[str, int]) -> int:
    """Rows of the batch that a device processes at once; a number that does not divide evenly is not split."""
    rows, diffusion = config.batch_size, config.diffusion
    if config.objective == "unet" and diffusion.full_orbit_share:
        rows = max(1, round(rows * diffusion.frames_per_sample / config.data.num_frames))
    if rows % config.accumulate == 0:
        rows //= config.accumulate
    parts = mesh["data"] * mesh["fsdp"]
    return rows // parts if rows % parts == 0 else rows


def _axes(part: Any) -> tuple[str, ...]:
    """Mesh axes of one dimension of a PartitionSpec."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _short(value: float) -> float:
    return float(f"{value:.3g}")
