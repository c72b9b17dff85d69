"""Operations of the UNet, ours against torch's on the same CPU: `python benchmarks/operations.py [--json]`.

Sizes are those of the published model with fewer pixels: 320 channels at 24x24, 640 at 12x12, 21 frames. Both sides
compute in float32 on the same number of threads, torch with channels_last and its fused attention. The sides alternate,
three runs each, in one process that keeps freed memory. Reported are medians of the second and third runs of `--rounds`
turns, after one turn to warm up. A ratio below 1 means that ours takes less time. Needs the `bench` extra.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

from sv3d_jax.devices import keep_freed_memory, run_in_calling_thread
from sv3d_jax.models.attention import FeedForward
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.layers import GroupNorm, UpsampleConv2d, attend, conv2d, silu, temporal_conv

FRAMES = 21
TURN = 3  # runs of a side in a row; the first is slowed by threads of the other side that still wait for work
COMPUTE = Compute()
RNG = np.random.default_rng(0)
Case = tuple[Callable[..., object], Callable[..., object], list[np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    run_in_calling_thread()
    results = {}
    for name, case in cases().items():
        if options.only is None or options.only in name:
            results[name] = measure(*case(), options.rounds)
            if not options.json:
                print(f"{name:32}" + "".join(f" {key} {value:9.3f}" for key, value in results[name].items()))
    if options.json:
        versions = {"jax": jax.__version__, "torch": torch.__version__}
        print(json.dumps({"versions": versions, "rounds": options.rounds, "results": results}, indent=1))


def cases() -> dict[str, Callable[[], Case]]:
    found: dict[str, Callable[[], Case]] = {}
    for channels, side in ((320, 24), (640, 12)):
        size = f"{channels} ch {side}x{side}"
        found |= {
            f"conv 3x3, {size}": partial(convolution, channels, side),
            f"temporal conv, {size}": partial(temporal_convolution, channels, side),
            f"group norm and silu, {size}": partial(norm, channels, side),
            f"feed-forward, {size}": partial(feed_forward, channels, side),
            f"doubling and conv, {size}": partial(doubling, channels, side // 2),
        }
    for tokens in (1296, 576):
        found[f"attention, {tokens} tokens, 5x64"] = partial(attention, tokens)
    return found


def measure(ours: Callable, theirs: Callable, arrays: list[np.ndarray], rounds: int) -> dict[str, float]:
    """Medians of both in milliseconds, and the ratio."""
    given = [jnp.asarray(array) for array in arrays]
    compiled = jax.jit(ours).lower(*given).compile()
    keep_freed_memory()
    sides = {"jax_ms": lambda: jax.block_until_ready(compiled(*given)), "torch_ms": theirs}
    times: dict[str, list[float]] = {name: [] for name in sides}
    with torch.inference_mode():
        for _ in range(1 + rounds):
            for name, run in sides.items():
                for turn in range(TURN):
                    start = time.perf_counter()
                    run()
                    if turn:
                        times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values[TURN - 1 :]) for name, values in times.items()}
    return medians | {"ratio": medians["jax_ms"] / medians["torch_ms"]}


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def channels_last(array: np.ndarray) -> torch.Tensor:
    """`n h w c` as torch's `n c h w` in the same memory."""
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def convolution(channels: int, side: int) -> Case:
    x, kernel = normal(FRAMES, side, side, channels), normal(3, 3, channels, channels, scale=0.02)
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    image = channels_last(x)
    return (
        lambda x, kernel: conv2d(x, kernel, 1, ((1, 1), (1, 1)), COMPUTE),
        lambda: F.conv2d(image, weight, padding=1),
        [x, kernel],
    )


def doubling(channels: int, side: int) -> Case:
    x, kernel = normal(FRAMES, side, side, channels), normal(3, 3, channels, channels, scale=0.02)
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    image, layer, bias = channels_last(x), UpsampleConv2d(), np.zeros(channels, np.float32)
    return (
        lambda x, kernel: layer.apply({"params": {"kernel": kernel, "bias": bias}}, x),
        lambda: F.conv2d(F.interpolate(image, scale_factor=2.0, mode="nearest"), weight, padding=1),
        [x, kernel],
    )


def temporal_convolution(channels: int, side: int) -> Case:
    x, kernel = normal(1, FRAMES, side, side, channels), normal(3, channels, channels, scale=0.02)
    video = torch.from_numpy(x).permute(0, 4, 1, 2, 3).contiguous()
    weight = torch.from_numpy(kernel).permute(2, 1, 0)[..., None, None].contiguous()
    return (
        lambda x, kernel: temporal_conv(x, kernel, COMPUTE),
        lambda: F.conv3d(video, weight, padding=(1, 0, 0)),
        [x, kernel],
    )


def norm(channels: int, side: int) -> Case:
    x, scale, bias = normal(FRAMES, side, side, channels), normal(channels), normal(channels)
    layer = GroupNorm(1e-5, activation=silu)
    image = channels_last(x).contiguous()  # the faster layout of torch
    weights = torch.from_numpy(scale), torch.from_numpy(bias)
    return (
        lambda x, scale, bias: layer.apply({"params": {"scale": scale, "bias": bias}}, x),
        lambda: F.silu(F.group_norm(image, 32, *weights, eps=1e-5)),
        [x, scale, bias],
    )


def feed_forward(channels: int, side: int) -> Case:
    x = normal(FRAMES, side * side, channels)
    inner, outer = normal(channels, 8 * channels, scale=0.02), normal(4 * channels, channels, scale=0.02)
    biases = normal(8 * channels), normal(channels)
    layer, tokens = FeedForward(4, COMPUTE), torch.from_numpy(x)
    first, second = (torch.from_numpy(kernel).T.contiguous() for kernel in (inner, outer))
    first_bias, second_bias = map(torch.from_numpy, biases)

    def theirs():
        value, gate = F.linear(tokens, first, first_bias).chunk(2, dim=-1)
        return F.linear(value * F.gelu(gate), second, second_bias)

    def ours(x, inner, outer, inner_bias, outer_bias):
        params = {
            "net_0": {"proj": {"kernel": inner, "bias": inner_bias}},
            "net_2": {"kernel": outer, "bias": outer_bias},
        }
        return layer.apply({"params": params}, x)

    return ours, theirs, [x, inner, outer, *biases]


def attention(tokens: int) -> Case:
    q, k, v = (normal(5, tokens, 5, 64) for _ in range(3))
    heads = [torch.from_numpy(x).transpose(1, 2).contiguous() for x in (q, k, v)]
    return (
        lambda *qkv: attend(*qkv, COMPUTE),  # pyright: ignore[reportCallIssue]
        lambda: F.scaled_dot_product_attention(*heads),
        [q, k, v],
    )


if __name__ == "__main__":
    main()
