"""How the cost of sampling grows with frames, pixels, steps and devices: `python benchmarks/growth.py [--json]`.

Frames and pixels: FLOP and live bytes of a step of sv3d_p in bfloat16, and of decoding a frame, from the traced
program without running it. Steps: the same for all steps together, and seconds of the shipped model. Devices: FLOP
and received bytes of each of up to eight simulated CPU devices, from the compiled program in float32; it takes half a
minute per mesh for the published model, and seconds for a narrow one (`--width 32`).
"""

import argparse
import json
import math
import os
import re
import statistics
from collections.abc import Callable
from functools import partial

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sv3d_jax.cost import live_bytes, product_flop
from sv3d_jax.diffusion.config import StepKind
from sv3d_jax.diffusion.denoiser import Conditioning
from sv3d_jax.diffusion.sampler import Sampler, SamplerState
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.vae import decode, init_vae
from sv3d_jax.models.video_unet import init_unet
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.preprocess import PreparedImage
from sv3d_jax.sampling import SamplingInputs, SamplingSteps, UNetDenoiser
from sv3d_jax.weights.hub import read_model_config

FRAMES, SIDES, STEPS = (7, 14, 21, 42, 63), (256, 384, 576, 768, 1024), (5, 10, 25, 50, 100)
MESHES = ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 3), (1, 2, 3), (8, 1, 1))  # pictures, branches, frames
SENDS = r"= (.+?) (all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)(-start)?\((.*)"
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--width", type=int, help="channels of the UNet to divide (default: the published one)"
    )
    parser.add_argument("--mesh", type=int, nargs=3, help="measure only this mesh")
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


def by_steps(options: argparse.Namespace):
    pipe = Pipeline.from_pretrained("mini")
    picture = PreparedImage(np.full((pipe.config.native_size,) * 2 + (3,), 200, np.uint8), (0, 0, 1, 1))
    for steps in STEPS:
        cost = step_cost(21, 576, steps)
        timings = [pipe(picture, num_steps=steps, output_type="latent").timings for _ in range(3)]
        yield {
            "steps": steps,
            "sampling_tflop": round(steps * cost["step_tflop"], 1),
            "prepared_gb": cost["prepared_gb"],
            "mini_sample_s": round(statistics.median(timing["sample"] for timing in timings), 3),
        }


def step_cost(frames: int, size: int, steps: int = 50) -> dict:
    """TFLOP and GB of one guided step without parameters, and GB that are prepared for all steps."""
    model, compute = ModelConfig.published("p"), Compute(jnp.bfloat16, fold=True, platform="tpu")
    side = size // 8
    shapes = jax.eval_shape(lambda: init_unet(model.unet, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    condition = Conditioning(float32(1, 1, 1024), float32(1, frames, side, side, 4), float32(1, frames, 1280))
    given, x = SamplingInputs(params, condition, float32(frames)), float32(1, frames, side, side, 4)
    kind, state = StepKind(), SamplerState(x)
    program = SamplingSteps(UNetDenoiser(model.unet, compute), Sampler(steps), (kind,) * steps)
    sigmas, index = float32(steps + 1), jax.ShapeDtypeStruct((), jnp.int32)
    prepared = jax.eval_shape(lambda *given: program.prepare(kind, *given, None), given, sigmas, state)  # pyright: ignore[reportCallIssue]

    def step(params, prepared, condition, scale, sigmas, index, x):
        given = SamplingInputs(params, condition, scale)
        return program.step(kind, given, sigmas, prepared, index, SamplerState(x), None)

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
    """Costs per device for each mesh: one orbit, or one per device where the mesh divides pictures."""
    if options.width is None:
        model = ModelConfig.published("p")
    else:
        mini = read_model_config("mini").to_dict()
        model = ModelConfig.from_dict(mini | {"unet": mini["unet"] | {"model_channels": options.width}})
    for shape in MESHES:
        if options.mesh not in (None, list(shape)):
            continue
        devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
        pipe = Pipeline({}, model, mesh=Mesh(devices, ("data", "cfg", "frames")))
        step = compiled_step(pipe, pictures=shape[0])
        # Of a loop over the branches, which the compiler counts once.
        rounds = 2 if pipe.unet.sequential_cfg else 1
        yield {
            "devices": math.prod(shape),
            "pictures, branches, frames": shape,
            "step_gflop_per_device": round(rounds * step.cost_analysis()["flops"] / 1e9, 3),
            "received_mb_per_device": round(rounds * received_bytes(step.as_text()) / 1e6, 3),
        }


def compiled_step(pipe: Pipeline, pictures: int):
    """A guided step, compiled from shapes alone as `pipe` compiles it for its mesh."""
    model, mesh = pipe.config, pipe.runner.config.mesh
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    frames, side = model.num_frames, model.native_size // model.vae.downsampling

    def float32(*shape, sharding=whole):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    params = jax.eval_shape(lambda: init_unet(model.unet, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: float32(*leaf.shape), params)
    condition = Conditioning(
        context=float32(pictures, 1, model.unet.context_width, sharding=split),
        concat=float32(pictures, frames, side, side, 4, sharding=split),
        vector=float32(pictures, frames, model.unet.vector_width, sharding=split),
    )
    given, sigmas = SamplingInputs(params, condition, float32(frames)), float32(model.num_steps + 1)
    state = SamplerState(float32(pictures, frames, side, side, 4, sharding=split))
    kind, num_steps = StepKind(), model.num_steps
    steps = SamplingSteps(pipe.unet, Sampler(num_steps), (kind,) * num_steps)
    prepare = jax.jit(lambda *given: steps.prepare(kind, *given, state, None)).lower(given, sigmas)  # pyright: ignore[reportCallIssue]
    prepared = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        prepare.out_info,
        prepare.compile().output_shardings,
    )
    step = jax.jit(partial(steps.step, kind), out_shardings=split)
    return step.lower(given, sigmas, prepared, np.int32(0), state, None).compile()


def received_bytes(program: str) -> int:
    """Bytes that one device receives from others in the collectives of a compiled program."""
    total = 0.0
    for match in re.finditer(SENDS, program):
        size = 0
        for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", match.group(1)):
            size += BYTES[kind] * math.prod(int(side) for side in sides.split(",") if side)
        kind = match.group(2)
        if kind != "collective-permute":
            members = group_size(match.group(4))
            size *= (members - 1) / (1 if kind == "reduce-scatter" else members)
        total += size * (2 if kind == "all-reduce" else 1)  # sums are made, then handed on
    return round(total)


def group_size(operation: str) -> int:
    """Number of devices of a collective, from the text of its HLO operation."""
    if listed := re.search(r"replica_groups=\[\d+,(\d+)\]", operation):
        return int(listed.group(1))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", operation):
        return len(listed.group(1).split(","))
    named = re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", operation)
    if named is None:
        raise ValueError(f"cannot tell which devices take part in {operation}")
    sizes = dict(re.findall(r"('\w+')=(\d+)", named.group(1)))
    return math.prod(int(sizes[axis]) for axis in named.group(2).split(","))


PARTS: dict[str, Callable] = {"frames": by_frames, "side": by_side, "steps": by_steps, "devices": by_devices}

if __name__ == "__main__":
    main()
