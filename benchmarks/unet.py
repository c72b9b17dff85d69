"""Time of one guidance step of the UNet against diffusers' UNetSpatioTemporalConditionModel, random weights.

    python benchmarks/unet.py --json

Each side runs in its own process; their forward passes alternate A B A B, so a drift of the machine affects both.
On a CPU both compute on the same number of threads (torch: channels_last, SDPA), in float32 unless --dtype says
otherwise; on a GPU in bfloat16. Ours computes before, once, what depends on the weights alone, as the sampler does.
Also reported: compile time with an empty and with a filled compilation cache. Needs the `bench` extra.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=128, help="channels of the first level")
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--side", type=int, default=24, help="rows and columns of the latents")
    parser.add_argument(
        "--batch", type=int, default=2, help="videos; 2 for the two branches of a guided step"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed forward passes of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU alone")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["jax", "torch"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    if args.worker:
        serve(SIDES[args.worker](args))
    else:
        report(compare(args), args.json)


def compare(args: argparse.Namespace) -> dict:
    """Alternate the two sides and return medians, their ratio and the compile times of ours."""
    sides = args.sides
    with tempfile.TemporaryDirectory() as cache:
        workers = {side: Worker(side, args, cache) for side in sides}
        seconds = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side in sides:
                seconds[side].append(workers[side].run())
        result = {
            key: getattr(args, key)
            for key in ("width", "frames", "side", "batch", "threads", "device", "dtype", "rounds")
        }
        for side in sides:
            result[f"{side}_seconds"] = statistics.median(seconds[side])
            result[f"{side}_versions"] = workers[side].ready["versions"]
            workers[side].close()
        if "jax" in sides:
            result["compile_seconds"] = workers["jax"].ready["compile_seconds"]
            again = Worker("jax", args, cache)
            result["compile_seconds_cached"] = again.ready["compile_seconds"]
            again.close()
    if {"jax", "torch"} <= set(sides):
        result["ratio"] = result["jax_seconds"] / result["torch_seconds"]
    return result


def report(result: dict, as_json: bool) -> None:
    """Print the result as JSON or as a table."""
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        for key, value in result.items():
            print(f"{key:24} {value:.3f}" if isinstance(value, float) else f"{key:24} {value}")


class Worker:
    """One side of the comparison in its own process, warmed up; it runs a pass on request."""

    def __init__(self, side: str, args: argparse.Namespace, cache: str, script: str = __file__):
        values = {
            name: getattr(args, name)
            for name in ("width", "frames", "side", "batch", "threads", "device", "dtype")
        }
        flags = [f"--{name}={value}" for name, value in values.items()]
        environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads), JAX_COMPILATION_CACHE_DIR=cache)
        if args.device == "cpu":
            environment["JAX_PLATFORMS"] = "cpu"
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", side, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.ready = self._answer()

    def run(self) -> float:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self.process.wait()}; its error is above")
        return json.loads(line)


def serve(side: tuple) -> None:
    """Answer each line on standard input with the time of one pass."""
    forward, ready = side
    forward()
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        forward()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def jax_side(args: argparse.Namespace) -> tuple:
    """Our UNet with its default options, and its weights prepared as for an orbit."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sv3d_jax.hoist import hoist
    from sv3d_jax.models.config import UNetConfig
    from sv3d_jax.models.video_unet import VideoUNet, init_unet
    from sv3d_jax.precision import DTYPES, compute_in
    from sv3d_jax.programs import Programs

    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    config = UNetConfig(model_channels=args.width)
    network = VideoUNet(config, compute_in(args.dtype, fold=True))
    shapes = jax.eval_shape(lambda: init_unet(config, jax.random.key(0)))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(random.normal(0, 0.02, s.shape), DTYPES[args.dtype]), shapes)
    batch, frames, side = args.batch, args.frames, args.side
    inputs = [
        jnp.asarray(random.standard_normal(shape), jnp.float32)
        for shape in (
            (batch, frames, side, side, 8),
            (batch,),
            (batch, 1, config.context_width),
            (batch, frames, config.vector_width),
        )
    ]
    start = time.perf_counter()
    once, each_step = hoist(
        lambda params, *inputs: network.apply({"params": params}, *inputs), (params,), tuple(inputs)
    )
    prepared = Programs().compile(once, (params,))((params,))
    given = (params,), tuple(inputs), prepared
    compiled = Programs().compile(each_step, *given)
    ready = {"compile_seconds": time.perf_counter() - start, "versions": {"jax": jax.__version__}}
    return lambda: compiled(*given).block_until_ready(), ready


def torch_side(args: argparse.Namespace, compile: bool = False) -> tuple:
    """diffusers' model of the same widths."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    width = args.width
    device = "cpu" if args.device == "cpu" else "cuda"
    dtype = getattr(torch, args.dtype)
    model = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=args.side,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        num_attention_heads=tuple(max(1, width * mult // 64) for mult in (1, 2, 4, 4)),
        cross_attention_dim=1024,
        num_frames=args.frames,
    )
    model = model.to(device=device, dtype=dtype).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    if compile:
        model = torch.compile(model, mode="max-autotune-no-cudagraphs")
    batch, frames, side = args.batch, args.frames, args.side
    sample = torch.randn(batch, frames, 8, side, side, device=device, dtype=dtype)
    context = torch.randn(batch, 1, 1024, device=device, dtype=dtype)
    time_ids = torch.rand(batch, 3, device=device, dtype=dtype)

    @torch.inference_mode()
    def forward():
        model(sample, torch.tensor(0.5, device=device), context, time_ids, return_dict=False)
        if device == "cuda":
            torch.cuda.synchronize()

    return forward, {"versions": {"torch": torch.__version__, "diffusers": diffusers.__version__}}


SIDES = {"jax": jax_side, "torch": torch_side, "torch_compiled": partial(torch_side, compile=True)}

if __name__ == "__main__":
    main()
