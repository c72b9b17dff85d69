"""Training samples a second against diffusers' UNetSpatioTemporalConditionModel, random weights.

    python benchmarks/train_step.py --json

A step is noise, forward, velocity-weighted loss, backward, clipping, AdamW and the running average. The default size is
that of configs/model/sv3d_mid.toml. Each side runs in its own process and their steps alternate A B A B. Both compute
on the same number of threads (torch: channels_last, SDPA, fused AdamW, in bfloat16 under autocast) and keep freed
memory, as `sv3d train` does. Needs the `bench` extra.
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np
from unet import Worker, report, serve

if TYPE_CHECKING:
    from sv3d_jax.models.config import ModelConfig
    from sv3d_jax.train.losses import OrbitBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=64, help="channels of the first level")
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--side", type=int, default=24, help="rows and columns of the latents")
    parser.add_argument("--batch", type=int, default=1, help="videos")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu",), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(SIDES[args.worker](args))
    else:
        report(compare(args), args.json)


def compare(args: argparse.Namespace) -> dict:
    """Alternate the two sides; medians, and the ratio of samples a second, above 1 where ours is faster."""
    names = ("width", "frames", "side", "batch", "threads", "dtype", "rounds")
    result = {name: getattr(args, name) for name in names}
    with tempfile.TemporaryDirectory() as cache:
        workers = {side: Worker(side, args, cache, __file__) for side in SIDES}
        seconds = {side: [] for side in SIDES}
        for _ in range(args.rounds):
            for side, worker in workers.items():
                seconds[side].append(worker.run())
        for side, worker in workers.items():
            result[f"{side}_samples_per_s"] = args.batch / statistics.median(seconds[side])
            result |= {f"{side}_{key}": value for key, value in worker.ready.items()}
            worker.close()
    result["ratio"] = result["jax_samples_per_s"] / result["torch_samples_per_s"]
    return result


def jax_side(args: argparse.Namespace) -> tuple:
    """Our training step."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    from sv3d_jax.devices import keep_freed_memory, run_in_calling_thread
    from sv3d_jax.models.config import ModelConfig, UNetConfig

    run_in_calling_thread()
    model = ModelConfig(unet=UNetConfig(model_channels=args.width))
    run, ready = training_step(model, args.batch, args.frames, args.side, args.dtype)
    keep_freed_memory()
    return run, ready


def training_step(
    model: "ModelConfig", batch: int, frames: int, side: int, dtype: str = "float32", **compute
) -> tuple:
    """A training step on random numbers as a function without arguments, and facts about it."""
    import jax
    import jax.numpy as jnp

    from sv3d_jax.models.video_unet import init_unet
    from sv3d_jax.precision import WORK_TRAINING, compute_in
    from sv3d_jax.programs import Programs
    from sv3d_jax.train.config import DiffusionConfig, OptimizerConfig
    from sv3d_jax.train.losses import unet_loss
    from sv3d_jax.train.optimizer import make_optimizer
    from sv3d_jax.train.state import new_state
    from sv3d_jax.train.step import train_step

    shapes = jax.eval_shape(lambda: init_unet(model.unet, jax.random.key(0)))
    # A pool that is repeated: drawing billions of numbers would take a minute.
    pool = np.random.default_rng(0).normal(scale=0.02, size=1 << 20)
    params = {
        "unet": jax.tree.map(lambda leaf: jnp.asarray(np.resize(pool, leaf.shape), jnp.float32), shapes)
    }
    views = jax.tree.map(jnp.asarray, random_views(model, batch, frames, side))
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.01), 1000)
    loss = unet_loss(model, DiffusionConfig(), compute_in(dtype, WORK_TRAINING, **compute))
    step = functools.partial(train_step, loss=loss, optimizer=optimizer, ema_decay=0.999)
    state, key = new_state(params, optimizer), jax.random.key(0)
    start = time.perf_counter()
    compiled = Programs().compile(step, state, views, key, donate_argnums=0)
    ready = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "compile_seconds": time.perf_counter() - start,
        "versions": {"jax": jax.__version__},
    }

    def run():
        nonlocal state
        state, _ = compiled(state, views, key)
        jax.block_until_ready(state)

    return run, ready


def random_views(model: "ModelConfig", batch: int, frames: int, side: int) -> "OrbitBatch":
    """A random training batch of the UNet; `side` is that of the latents."""
    from sv3d_jax.train.losses import OrbitBatch

    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape, np.float32)

    return OrbitBatch(
        latents=normal(batch, frames, side, side, 4),
        input_latents=normal(batch, side, side, 4),
        tokens=normal(batch, model.unet.context_width),
        polar_rad=normal(batch, frames),
        azimuth_rad=normal(batch, frames),
        frame_index=np.tile(np.arange(frames, dtype=np.float32), (batch, 1)),
    )


def torch_side(args: argparse.Namespace) -> tuple:
    """diffusers' model of the same widths."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    from sv3d_jax.devices import tell_allocator_to_keep

    tell_allocator_to_keep()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    width = args.width
    model = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=args.side,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        num_attention_heads=tuple(max(1, width * mult // 64) for mult in (1, 2, 4, 4)),
        cross_attention_dim=1024,
        num_frames=args.frames,
    ).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    batch, frames, side = args.batch, args.frames, args.side
    latents = torch.randn(batch, frames, 4, side, side)
    concat = torch.randn_like(latents)
    context = torch.randn(batch, 1, 1024)
    time_ids = torch.rand(batch, 3)
    sigma = torch.tensor(2.0)

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16")

    def run():
        noisy = latents + sigma * torch.randn_like(latents)
        variance = 1.0 + sigma**2
        sample = torch.cat([noisy / variance.sqrt(), concat], dim=2)
        with autocast:
            [output] = model(sample, 0.25 * sigma.log(), context, time_ids, return_dict=False)
        denoised = noisy / variance - sigma / variance.sqrt() * output
        loss = (variance / sigma**2 * (denoised.float() - latents).square()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1e-3)

    count = sum(parameter.numel() for parameter in model.parameters())
    return run, {
        "parameters": count,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


SIDES = {"jax": jax_side, "torch": torch_side}

if __name__ == "__main__":
    main()
