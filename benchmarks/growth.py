"""How the cost of a guided step grows with frames, pixels and devices: `python benchmarks/growth.py [--json]`.

Frames and pixels: products and live bytes of a step of sv3d_p in bfloat16, and of decoding a frame, from the traced
program; nothing is computed. Devices: what the compiler leaves each of up to eight to do and to send, for a narrow UNet
(`--width`) on devices that a CPU plays; both grow with the width squared and the width.
"""

import argparse
import json
import math
import os
import re
from collections.abc import Callable

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sv3d_jax.cameras.orbit import static_orbit
from sv3d_jax.cost import live_bytes, product_flop
from sv3d_jax.diffusion.denoiser import Conditioning
from sv3d_jax.diffusion.guidance import triangular_scale
from sv3d_jax.diffusion.sampler import Method, State, StepKind
from sv3d_jax.infer.bench import random_params
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.layers import Compute
from sv3d_jax.models.vae import decode, init_vae
from sv3d_jax.models.video_unet import init_unet
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.sampling import UNetSampler
from sv3d_jax.weights.hub import read_model_config

FRAMES, SIDES = (7, 14, 21, 42, 63), (256, 384, 576, 768, 1024)
MESHES = ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 3), (1, 2, 3), (8, 1, 1))  # pictures, branches, frames
SENDS = r"= (.+?) (all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)(-start)?\("
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--width", type=int, default=32, help="channels of the UNet that is divided")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    for part in options.parts:
        results[part] = []
        for row in PARTS[part](options):
            results[part].append(row)
            if not options.json:
                print(part, *(f"{key} {value}" for key, value in row.items()), flush=True)
    if options.json:
        print(json.dumps(results, indent=1))


def by_frames(options: argparse.Namespace):
    for frames in FRAMES:
        yield {"frames": frames, **step_cost(frames, 576)}


def by_side(options: argparse.Namespace):
    for side in SIDES:
        yield {"side": side, **step_cost(21, side), **decoding_cost(side)}


def step_cost(frames: int, size: int) -> dict:
    """TFLOP and GB of one guided step, parameters apart."""
    model, compute = ModelConfig.published("p"), Compute(jnp.bfloat16, fold=True, platform="tpu")
    side = size // 8
    shapes = jax.eval_shape(lambda: init_unet(model.unet, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    condition = Conditioning(float32(1, 1, 1024), float32(1, frames, side, side, 4), float32(1, frames, 1280))
    fixed, x = (params, condition, float32(frames)), float32(1, frames, side, side, 4)
    program = UNetSampler(model.unet, compute).program(StepKind(), Method(), 50, fixed, State(x))
    sigmas, index = float32(51), jax.ShapeDtypeStruct((), jnp.int32)
    prepared = jax.eval_shape(program.prepare, fixed, sigmas)

    def step(params, prepared, condition, scale, sigmas, index, x):
        return program.step((params, condition, scale), sigmas, prepared, index, State(x), None)

    inputs = (params, prepared, condition, float32(frames), sigmas, index, x)
    kept = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(prepared))
    return {
        "step_tflop": round(product_flop(jax.make_jaxpr(step)(*inputs).jaxpr) / 1e12, 2),
        "activations_gb": round(live_bytes(step, *inputs).activations / 1e9, 2),
        "prepared_gb": round(kept / 1e9, 3),
    }


def decoding_cost(size: int) -> dict:
    """TFLOP and GB of one decoded frame."""
    model, compute = ModelConfig.published("p"), Compute(jnp.bfloat16, platform="tpu")
    shapes = jax.eval_shape(lambda: init_vae(model.vae, jax.random.key(0)))["vae_decoder"]
    latents = jax.ShapeDtypeStruct((1, size // 8, size // 8, 4), jnp.float32)
    run = lambda params, latents: decode(params, model.vae, latents, compute)  # noqa: E731
    return {
        "frame_tflop": round(product_flop(jax.make_jaxpr(run)(shapes, latents).jaxpr) / 1e12, 3),
        "frame_gb": round(live_bytes(run, shapes, latents).activations / 1e9, 2),
    }


def by_devices(options: argparse.Namespace):
    """One orbit of the shipped model's size and the asked width, or one each where pictures are divided."""
    mini = read_model_config("mini").to_dict()
    model = ModelConfig.from_dict(mini | {"unet": mini["unet"] | {"model_channels": options.width}})
    params = random_params(model)
    for shape in MESHES:
        devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
        pipe = Pipeline(params, model, mesh=Mesh(devices, ("data", "cfg", "frames")))
        frames, size, pictures = 21, model.native_size, shape[0]
        noise, pixel_noise, keys = pipe.noise(range(pictures), frames, size)
        pixels = np.zeros((pictures, size, size, 3), np.float32)
        condition = pipe.condition(pixels, pixel_noise, static_orbit(frames))
        pipe.sampler(
            noise,
            condition,
            triangular_scale(frames),
            pipe.sigmas(2),
            keys=keys,
            after_step=lambda *_: None,
        )
        step = next(program for (name, *_), program in pipe.programs.items() if name[0] == "step")
        rounds = 2 if pipe.unet.in_turn else 1  # of a loop over the branches, which the compiler counts once
        yield {
            "devices": math.prod(shape),
            "pictures, branches, frames": shape,
            "step_gflop_per_device": round(rounds * step.cost_analysis()["flops"] / 1e9, 3),
            "sent_mb_per_device": round(rounds * sent_bytes(step.as_text()) / 1e6, 3),
        }


def sent_bytes(program: str) -> int:
    """Bytes of what the collectives of a compiled program return on one device."""
    total = 0
    for match in re.finditer(SENDS, program):
        for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", match.group(1)):
            total += BYTES[kind] * math.prod(int(side) for side in sides.split(",") if side)
    return total


PARTS: dict[str, Callable] = {"frames": by_frames, "side": by_side, "devices": by_devices}

if __name__ == "__main__":
    main()
