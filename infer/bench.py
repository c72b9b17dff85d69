"""The `bench` verb: how fast a model samples on this device."""

import math
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.arrays import Params
from sv3d_jax.cameras.orbit import static_orbit
from sv3d_jax.cost import product_flop
from sv3d_jax.devices import memory_in_use
from sv3d_jax.diffusion.config import StepKind
from sv3d_jax.diffusion.denoiser import Conditioning
from sv3d_jax.diffusion.guidance import triangular_scale
from sv3d_jax.diffusion.sampler import Sampler, SamplerState
from sv3d_jax.infer.config import BenchConfig
from sv3d_jax.io.outputs import peak_memory
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.fast.products import FACTOR, matmul_16_bit
from sv3d_jax.models.video_unet import init_unet
from sv3d_jax.pipeline import Pipeline
from sv3d_jax.plan import checked_size, memory_advice, plan_orbit, require_accelerator
from sv3d_jax.progress import Progress
from sv3d_jax.runner import ComputeConfig
from sv3d_jax.sampling import SamplingInputs, SamplingSteps, UNetDenoiser
from sv3d_jax.weights.hub import read_model_config
from sv3d_jax.weights.key_map import model_parameters, tree_from_leaves

WARM_UPS = 2
STAGES = ["load", "compile", "condition", "sample", "decode", "product"]


def run_bench(config: BenchConfig, progress: Progress) -> dict[str, Any]:
    """Median seconds of `--rounds` calls of every stage after two to warm up, compile time, and peak memory."""
    progress.stages = STAGES
    model = ModelConfig.named(config.model) if config.model else read_model_config(config.weights)
    size, frames = checked_size(model, config.size), config.frames or model.num_frames
    compute = ComputeConfig(
        dtype=config.dtype, low_memory=config.low_memory, quantize=config.quantize
    ).resolve(model)
    plan = plan_orbit(
        model,
        num_frames=frames,
        size=size,
        batch=config.batch,
        dtype_bytes=compute.itemsize,
        param_bytes=compute.param_itemsize,
        low_memory=config.low_memory,
        quantized=config.quantize is not None,
    )
    require_accelerator(plan, jax.default_backend(), config.device)
    if config.dry_run:
        return {"dry_run": True, "model": model.name, "plan": str(plan)}
    progress.note(str(plan))

    with memory_advice(plan, memory_in_use()):
        progress.stage("load")
        pipeline = _pipeline(config, model, compute)
        seconds = _stages(pipeline, config, size, frames, plan.decode_chunk, progress)
        progress.stage("product")
        peak = product_tflops(pipeline.compute)
    orbit_s = seconds["condition_s"] + plan.num_steps * seconds["step_s"]
    orbit_s += config.batch * (frames - 1) * seconds["decode_frame_s"]
    flop = step_flop(model, config.batch, frames, size)
    step_tflops = flop / seconds["step_s"] / 1e12
    return {
        "device": jax.devices()[0].device_kind,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "sv3d_jax")},
        "model": model.name,
        "dtype": compute.dtype,
        "low_memory": config.low_memory,
        "quantize": config.quantize,
        "batch": config.batch,
        "frames": frames,
        "size": size,
        **{name: round(value, 5) for name, value in seconds.items()},
        "num_steps": plan.num_steps,
        "orbit_s": round(orbit_s, 3),
        "step_tflop": round(flop / 1e12, 4),
        "step_tflops": round(step_tflops, 3),
        "product_tflops": round(peak, 3),
        "share_of_product": round(step_tflops / peak, 3),
        "planned_gib": round(plan.total_bytes / 2**30, 2),
        "peak_gib": round(_peak_bytes() / 2**30, 2),
    }


def _stages(
    pipeline: Pipeline, config: BenchConfig, size: int, frames: int, chunk: int, progress: Progress
) -> dict[str, float]:
    """Seconds of compiling, conditioning, one step of the sampler and one decoded frame."""
    rng, cameras = np.random.default_rng(0), static_orbit(frames)
    pixels = rng.uniform(-1, 1, (config.batch, size, size, 3)).astype(np.float32)
    noise, pixel_noise, keys = pipeline.noise(range(config.batch), frames, size)
    seconds = {}

    progress.stage("compile")
    start = time.perf_counter()
    condition = jax.block_until_ready(pipeline.condition(pixels, pixel_noise, cameras))
    times: list[float] = []

    def after_step(*_: Any) -> None:
        times.append(time.perf_counter())
        progress.advance()

    sample = pipeline.sampler(
        noise,
        condition,
        triangular_scale(frames),
        pipeline.sigmas(WARM_UPS + config.rounds),
        keys=keys,
        after_step=after_step,
    )
    pipeline.decode(noise[:, :1], chunk)
    seconds["compile_s"] = time.perf_counter() - start

    progress.stage("condition", total=config.rounds)
    seconds["condition_s"] = _median(
        lambda: pipeline.condition(pixels, pixel_noise, cameras), config.rounds, progress
    )
    progress.stage("sample", total=WARM_UPS + config.rounds)
    latents = sample()
    seconds["step_s"] = statistics.median(np.diff(times)[WARM_UPS - 1 :])
    progress.stage("decode", total=config.rounds)
    part = np.asarray(latents)[:, :chunk]
    one = _median(lambda: pipeline.decode(part, chunk), config.rounds, progress)
    seconds["decode_frame_s"] = one / (config.batch * part.shape[1])
    return seconds


def _median(function: Callable[[], Any], rounds: int, progress: Progress) -> float:
    jax.block_until_ready(function())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
        progress.advance()
    return statistics.median(times)


def step_flop(model: ModelConfig, batch: int, frames: int, size: int) -> float:
    """FLOP of the matrix products of one guided step in its plain form, without the savings of the fast forms."""

    def shape(*sides):
        return jax.ShapeDtypeStruct(sides, jnp.float32)

    side, width = size // model.vae.downsampling, model.unet.context_width
    x = shape(batch, frames, side, side, model.vae.latent_channels)
    params = jax.eval_shape(lambda: init_unet(model.unet, jax.random.key(0)))
    condition = Conditioning(shape(batch, 1, width), x, shape(batch, frames, model.unet.vector_width))
    inputs = SamplingInputs(params, condition, shape(frames))
    steps = SamplingSteps(UNetDenoiser(model.unet, Compute(reference=True)), Sampler(1), (StepKind(),))
    step = jax.make_jaxpr(lambda *given: steps.step(StepKind(), *given[:2], (), 0, given[2], None))  # pyright: ignore[reportCallIssue]
    return product_flop(step(inputs, shape(2), SamplerState(x)).jaxpr)


def product_tflops(compute: Compute) -> float:
    """TFLOP/s of this device in one large matrix product: 8192^3, or 2048^3 on a CPU."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    in_16_bit = compute.multiplies_in_16_bit(side**3)
    matrix = jnp.ones((side, side), FACTOR if in_16_bit else compute.dtype)
    product = jax.jit(matmul_16_bit if in_16_bit else jnp.matmul)
    times = []
    for _ in range(WARM_UPS + 5):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        times.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(times[WARM_UPS:]) / 1e12


def _pipeline(config: BenchConfig, model: ModelConfig, compute: ComputeConfig) -> Pipeline:
    if config.model is None:
        return Pipeline.from_pretrained(config.weights, compute=compute)
    return Pipeline(random_params(model), model, compute)


def random_params(model: ModelConfig) -> Params:
    """Random parameters at the scale of a trained model; the time of a step does not depend on their values."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal(1 << 20, np.float32)

    def leaf(shape):
        if len(shape) == 1:
            return np.full(shape, 0.5, np.float32)
        values = np.resize(pool, shape)  # repeats the pool: drawing billions of numbers takes a minute
        return values * np.float32(math.prod(shape[:-1]) ** -0.5)

    return tree_from_leaves((p.path, leaf(p.tree_shape)) for p in model_parameters(model))


def _peak_bytes() -> int:
    """Peak memory of the device, or of this process if the device does not report it."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or peak_memory() or 0
