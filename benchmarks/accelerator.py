"""Measure an accelerator in one run of under ten minutes: `python benchmarks/accelerator.py [-o results.json]`.

Numerics (16 against 32 bits), all stages of sampling, the training step, score distillation, hash grid, rasterizer, the
forms of attention, linear layers in 8 bits and, if torch is installed, diffusers' UNet on the same device, eager and
compiled. The model is sv3d_p with random weights; on a CPU, only to test this script, it has the shape of sv3d-mini.
The results of each part are written as soon as it is done; if a part fails, its error is recorded and the next begins.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peers need memory too

import hash_grid
import jax
import jax.numpy as jnp
import numpy as np
import rasterizer
import unet
from train_step import random_views, training_step

from sv3d_jax.cameras.orbit import static_orbit
from sv3d_jax.cost import step_flop_counter
from sv3d_jax.devices import enable_compile_cache, scatter_seconds, use_native_atomics
from sv3d_jax.diffusion.guidance import triangular_scale
from sv3d_jax.infer.bench import random_params, run_bench
from sv3d_jax.infer.config import BenchConfig
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.fast.attention import KERNELS
from sv3d_jax.models.fast.quantize import FORMATS
from sv3d_jax.models.layers import attend
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.progress import NullProgress
from sv3d_jax.recon.sds import sds_gradient
from sv3d_jax.train.config import DiffusionConfig
from sv3d_jax.train.losses import unet_loss
from sv3d_jax.weights.hub import read_model_config

MINUTES = 10  # no part begins later
ROUNDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("accelerator.json"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="start no part after this time")
    options = parser.parse_args()
    use_native_atomics()
    enable_compile_cache()
    is_cpu = jax.default_backend() == "cpu"
    model = read_model_config("mini") if is_cpu else ModelConfig.published("p")
    start, report = time.monotonic(), {"device": jax.devices()[0].device_kind, "model": model.name}
    report["date"] = time.strftime("%Y-%m-%d")
    for name in options.only:
        if time.monotonic() - start > 60 * options.minutes:
            report[name] = "left out: no time"
            continue
        began = time.monotonic()
        try:
            report[name] = PARTS[name](model, is_cpu)
        except Exception as error:
            traceback.print_exc()
            report[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        report[name]["took_s"] = round(time.monotonic() - began, 1)
        options.output.write_text(json.dumps(report, indent=1))
        print(name, json.dumps(report[name]), flush=True)
    print(table(report))
    return any("error" in part for part in report.values() if isinstance(part, dict))


def numerics(model: ModelConfig, is_cpu: bool) -> dict:
    """Denoised latents of one step in bfloat16 against float32, five frames: error over the spread."""
    params, frames = random_params(model), min(5, model.num_frames)
    results = []
    for dtype in ("float32", "bfloat16"):
        pipe = Pipeline(params, model, dtype=dtype)
        noise, pixel_noise, keys = pipe.noise([0], frames, model.native_size)
        pixels = np.zeros((1, model.native_size, model.native_size, 3), np.float32)
        condition = pipe.condition(pixels, pixel_noise, static_orbit(frames))
        sample = pipe.sampler(noise, condition, triangular_scale(frames), np.float32([1.0, 0.5]), keys=keys)
        results.append(np.asarray(sample(), np.float32))
        del pipe
    exact, rounded = results
    error = float(np.sqrt(np.mean((rounded - exact) ** 2)) / exact.std())
    return {"relative_error": error, "finite": bool(np.isfinite(rounded).all()), "ok": error < 0.05}


def sampling(model: ModelConfig, is_cpu: bool) -> dict:
    """The results of `sv3d bench`."""
    config = BenchConfig(device="cpu") if is_cpu else BenchConfig(model="sv3d_p")
    return run_bench(config, NullProgress())


def training(model: ModelConfig, is_cpu: bool) -> dict:
    """Samples per second with --remat, one orbit per step."""
    dtype, frames, side = _dtype(is_cpu), model.num_frames, model.native_size // model.vae.downsampling
    run, ready = training_step(model, 1, frames, side, jnp.dtype(dtype).name, remat=True)
    seconds = rasterizer.median_seconds(run, ROUNDS)
    loss = unet_loss(model, DiffusionConfig(), Compute(dtype))
    shapes = jax.eval_shape(lambda: {"unet": random_params(model)["unet"]})
    flop = step_flop_counter(loss, shapes)(random_views(model, 1, frames, side))
    return {**ready, "step_s": seconds, "samples_per_s": 1 / seconds, "model_tflops": flop / seconds / 1e12}


def distillation(model: ModelConfig, is_cpu: bool) -> dict:
    """Time of one gradient of score distillation for an orbit: encoder forward and backward, guided UNet."""
    pipe, frames, size = Pipeline(random_params(model), model), model.num_frames, model.native_size
    noise, pixel_noise, _ = pipe.noise([0], frames, size)
    condition = pipe.condition(np.zeros((1, size, size, 3), np.float32), pixel_noise, static_orbit(frames))
    scale = triangular_scale(frames)

    @jax.jit
    def gradient(params, condition, images, key):
        encode = partial(pipe.encode, params["vae_encoder"])
        denoise = pipe.denoiser(params["unet"], condition, scale)
        return sds_gradient(images, jnp.ones(images.shape[:3]), encode, denoise, jnp.float32(5.0), key)

    params = {part: pipe.params[part] for part in ("unet", "vae_encoder")}
    images = jnp.full((frames, size, size, 3), 0.5)
    call = partial(gradient, params, condition, images, jax.random.key(0))
    return {"step_s": rasterizer.median_seconds(call, ROUNDS)}


def hash_encoding(model: ModelConfig, is_cpu: bool) -> dict:
    """Speed of the hash encoding, and milliseconds of one scatter-add with all updates to one row."""
    return hash_grid.measure(2**17, 16, 2**19, ROUNDS) | {"contended_scatter_ms": 1e3 * scatter_seconds()}


def rasterizing(model: ModelConfig, is_cpu: bool) -> dict:
    """Times of rasterizing spheres in one view."""
    sizes = ((5_000, 128),) if is_cpu else ((5_000, 512), (80_000, 512), (500_000, 1024))
    return {
        f"{triangles} at {size} px": rasterizer.measure(triangles, size, ROUNDS) for triangles, size in sizes
    }


def peers(model: ModelConfig, is_cpu: bool) -> dict:
    """Seconds of the same guided step by diffusers' UNet."""
    if not importlib.util.find_spec("diffusers"):
        return {"left_out": "diffusers is not installed"}
    args = argparse.Namespace(
        width=model.unet.model_channels,
        frames=model.num_frames,
        side=model.native_size // model.vae.downsampling,
        batch=2,
        threads=len(os.sched_getaffinity(0)),
        device="cpu" if is_cpu else "gpu",
        dtype="float32" if is_cpu else "bfloat16",
    )
    found = {}
    for side in ("torch",) if is_cpu else ("torch", "torch_compiled"):
        worker = unet.Worker(side, args, "", unet.__file__)
        seconds = [worker.run() for _ in range(2 + ROUNDS)][2:]
        found |= {f"{side}_step_s": float(np.median(seconds)), "versions": worker.ready["versions"]}
        worker.close()
    return found


def attention(model: ModelConfig, is_cpu: bool) -> dict:
    """Milliseconds of each form of attention at the first two levels of a guided step, and errors against float32."""
    width, side = model.unet.model_channels, model.native_size // model.vae.downsampling
    plain = jax.jit(lambda q, k, v: attend(q, k, v, Compute(q.dtype, reference=True)))
    kernels = KERNELS.get(jax.default_backend(), {})
    forms = {"plain": plain} | {name: jax.jit(kernel) for name, kernel in kernels.items()}
    found = {}
    for level, mult in enumerate(model.unet.channel_mult[:2]):
        heads, tokens = mult * width // model.unet.head_width, (side >> level) ** 2
        shape = (3, 2 * model.num_frames, tokens, heads, model.unet.head_width)
        exact = jax.random.normal(jax.random.key(0), shape)
        expected = plain(*exact[:, :1])
        given = exact.astype(_dtype(is_cpu))
        for name, form in forms.items():
            try:
                error = float(jnp.abs(form(*given[:, :1]).astype(jnp.float32) - expected).max())
                seconds = rasterizer.median_seconds(lambda form=form, given=given: form(*given), ROUNDS)
                found[f"{name}, {tokens} tokens"] = {"ms": 1e3 * seconds, "error": error}
            except Exception as failure:  # a kernel that this device does not run
                found[f"{name}, {tokens} tokens"] = str(failure)[:200]
    return found


def quantized(model: ModelConfig, is_cpu: bool) -> dict:
    """Seconds of a guided step with linear layers in 8 bits."""
    found = {}
    for kind in FORMATS:
        config = (
            BenchConfig(device="cpu", quantize=kind) if is_cpu else BenchConfig(model="sv3d_p", quantize=kind)
        )
        found[f"{kind}_step_s"] = run_bench(config, NullProgress())["step_s"]
    return found


def _dtype(is_cpu: bool):
    return jnp.float32 if is_cpu else jnp.bfloat16


def table(report: dict) -> str:
    """A text table of the main results."""
    step = report.get("sampling", {}).get("step_s")
    lines = [f"{report['model']} on {report['device']}, {report['date']}"]
    for part, names in {
        "numerics": ("relative_error",),
        "sampling": ("compile_s", "step_s", "share_of_product", "decode_frame_s", "orbit_s", "peak_gib"),
        "peers": ("torch_step_s", "torch_compiled_step_s"),
        "training": ("samples_per_s", "model_tflops"),
        "quantized": ("int8_step_s", "fp8_step_s"),
        "distillation": ("step_s",),
    }.items():
        values = report.get(part, {})
        lines += [f"{part:14}{name:24}{values[name]:12.4f}" for name in names if name in values]
        if part == "peers" and step:
            lines += [
                f"{part:14}{name.removesuffix('_step_s') + ' over ours':24}{values[name] / step:12.4f}"
                for name in names
                if name in values
            ]
    return "\n".join(lines)


PARTS: dict[str, Callable[[ModelConfig, bool], dict]] = {
    "numerics": numerics,
    "sampling": sampling,
    "peers": peers,
    "training": training,
    "distillation": distillation,
    "hash_grid": hash_encoding,
    "rasterizer": rasterizing,
    "attention": attention,
    "quantized": quantized,
}

if __name__ == "__main__":
    sys.exit(main())
