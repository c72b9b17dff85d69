"""Estimate of the memory and FLOP of sampling an orbit, from shapes alone; importing it does not import JAX."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sv3d_jax.config import check_range
from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.errors import InputError, OutOfMemory, is_out_of_memory
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.weights.key_map import model_parameters

FULL_SIZE = 200_000_000  # a model with at least this many parameters needs an accelerator
# Live activations of a guided step, as a multiple of the features of the first level (5.3 GB for SV3D in bfloat16).
UNET_FEATURES = 38
# Kernels and embeddings that are prepared once for all steps of a kind, as a share of the UNet's weights.
PREPARED_SHARE = 0.25
REUSE_SHARE = 0.05  # share of the prepared values that a step needs which reuses cached features
QUANTIZED_BYTES = 0.28  # bytes per weight of the UNet that copies in 8 bits take in addition
DECODER_FEATURES = 4  # live activations of a decoded frame, as a multiple of its features at full size
SV3D_FLOP = 69.16e12  # one guided step of SV3D: 21 frames of 72x72 latents
CPU_FLOPS_PER_CORE = 75e9
MAX_CHUNK = 2**20  # frames decoded at a time
DECODE_BUDGET = 2 << 30  # bytes of activations that one decoded chunk may take


@dataclass(frozen=True)
class Plan:
    """Estimated bytes and FLOP of sampling a batch of orbits. `step_flop` is that of one guided step."""

    parameters: int
    weights_bytes: int
    sampling_bytes: int
    decoding_bytes: int
    step_flop: float
    num_steps: int
    decode_chunk: int
    low_memory: bool = False

    @property
    def total_bytes(self) -> int:
        """Weights and the larger of sampling and decoding."""
        return self.weights_bytes + max(self.sampling_bytes, self.decoding_bytes)

    @property
    def is_full_size(self) -> bool:
        """Whether the model is so large that it needs an accelerator."""
        return self.parameters >= FULL_SIZE

    @property
    def cpu_hours(self) -> float:
        """Approximate hours of sampling on the CPU cores of this machine."""
        return self.step_flop * self.num_steps / (CPU_FLOPS_PER_CORE * (os.cpu_count() or 1)) / 3600

    def __str__(self) -> str:
        return (
            f"memory: about {_readable(self.total_bytes)}: weights {_readable(self.weights_bytes)},"
            f" sampling {_readable(self.sampling_bytes)}, decoding {_readable(self.decoding_bytes)}"
            f" ({self.decode_chunk} frames at a time)"
        )


def plan_orbit(
    config: ModelConfig,
    *,
    num_frames: int | None = None,
    size: int | None = None,
    batch: int = 1,
    dtype_bytes: int = 4,
    param_bytes: int | None = None,
    decode_chunk: int | None = None,
    low_memory: bool = False,
    quantized: bool = False,
    sampling: SamplingConfig = SamplingConfig(),
) -> Plan:
    """Estimate for `batch` orbits sampled together; None stands for the model's own value.

    `dtype_bytes` are those of a value of the activations, and of a parameter unless `param_bytes` says otherwise.
    With `low_memory` one part of the model is on the device at a time, the branches of the guidance run one after the
    other, and nothing is prepared for all steps. With `quantized`, linear layers keep a copy in 8 bits. Each kind of
    step (with or without guidance, storing or reusing cached features) prepares its own values.
    """
    check_decode_chunk(decode_chunk)
    param_bytes = param_bytes or dtype_bytes
    num_steps = sampling.num_steps or config.num_steps
    num_frames, size = num_frames or config.num_frames, size or config.native_size
    side = size // config.vae.downsampling
    sizes = Counter()
    for parameter in model_parameters(config):
        sizes[parameter.path[0]] += math.prod(parameter.shape)
    on_device = sizes["unet"] if low_memory else sizes.total()
    features = 2 * batch * num_frames * side**2 * config.unet.model_channels
    chunk = decode_chunk or default_decode_chunk(config, size, dtype_bytes, batch * (num_frames - 1))
    step_flop = (
        SV3D_FLOP * batch * num_frames / 21 * (side / 72) ** 2 * (config.unet.model_channels / 320) ** 2
    )
    activations = UNET_FEATURES * features * dtype_bytes
    prepared = int(PREPARED_SHARE * sizes["unet"]) * param_bytes
    prepared += int(QUANTIZED_BYTES * sizes["unet"] * quantized)
    prepared = int(prepared * _kinds_of_steps(config, sampling, num_steps))
    return Plan(
        parameters=sizes.total(),
        weights_bytes=on_device * param_bytes,
        sampling_bytes=activations // 2 if low_memory else activations + prepared,
        decoding_bytes=chunk * _decoder_bytes(config, size, dtype_bytes),
        step_flop=step_flop,
        num_steps=num_steps,
        decode_chunk=chunk,
        low_memory=low_memory,
    )


def _kinds_of_steps(config: ModelConfig, sampling: SamplingConfig, num_steps: int) -> float:
    """Number of kinds of steps, weighted by the values they prepare: one that reuses features counts a part."""
    if sampling.guidance_interval is None and sampling.cache_interval == 1:
        return 1
    from sv3d_jax.diffusion.schedule import model_sigmas

    kinds = set(sampling.step_kinds(model_sigmas(config, num_steps)))
    return sum(REUSE_SHARE if kind.cache == "reuse" else 1 for kind in kinds)


def default_decode_chunk(config: ModelConfig, size: int, dtype_bytes: int, frames: int) -> int:
    """Frames decoded together: as many as stay within the budget, at least one."""
    return max(1, min(frames, DECODE_BUDGET // _decoder_bytes(config, size, dtype_bytes)))


def checked_size(config: ModelConfig, size: int | None, flag: str = "--size") -> int:
    """The side of the frames, by default the model's own. Raises InputError if the networks cannot halve it."""
    size = config.native_size if size is None else size
    multiple = config.vae.downsampling * 2 ** (len(config.unet.channel_mult) - 1)
    check_range(flag, size, 1, 1_000_000, is_whole=True)
    if size % multiple:
        raise InputError(
            f"{flag} {size}: {config.name} needs a multiple of {multiple}, its own is {config.native_size}"
        )
    return size


def check_decode_chunk(chunk: int | None) -> None:
    """Raise InputError for a number of frames that cannot be decoded together; None stands for the default."""
    if chunk is not None:
        check_range("--decode-chunk", chunk, 1, MAX_CHUNK, is_whole=True)


def require_accelerator(
    plan: Plan, platform: str, device: str | None, work: str = "sampling", cost: float = 1.0
) -> None:
    """Raise InputError for a full-size model on a CPU that the user has not chosen: the work takes hours.

    `cost` is the work's arithmetic as a multiple of sampling.
    """
    asked = device == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu"
    if plan.is_full_size and platform == "cpu" and not asked:
        raise InputError(
            f"no accelerator was found, and {work} {plan.parameters / 1e9:.1f} billion parameters on this CPU"
            f" takes about {plan.cpu_hours * cost:.1f} hours",
            hint="--device cpu to run it anyway; the model mini runs on any device",
        )


@contextmanager
def memory_advice(plan: Plan, device: str = "the device") -> Iterator[None]:
    """Turn jax's out-of-memory error into an `OutOfMemory` that lists options to save memory, in the order to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        frame = plan.decoding_bytes // plan.decode_chunk
        saved = plan.sampling_bytes // 2
        remedies = [
            f"--decode-chunk 1 (decoding then takes {_readable(frame)})" if plan.decode_chunk > 1 else "",
            ""
            if plan.low_memory
            else f"--low-memory (the same orbit, slower; saves {_readable(saved)} of sampling and all weights but"
            " the UNet's)",
            f"--dtype bfloat16 (half of {_readable(plan.total_bytes)} if it was float32)",
            "a smaller --size (a quarter of the activations at half the side)",
            "fewer pictures at once, or a device with more memory",
        ]
        raise OutOfMemory(
            f"{device} ran out of memory; {plan}. The error was: {reason}",
            hint="--auto-fit tries the options that keep the size; by hand, in this order: "
            + "; ".join(filter(None, remedies)),
        ) from error


def _decoder_bytes(config: ModelConfig, size: int, dtype_bytes: int) -> int:
    return DECODER_FEATURES * size**2 * config.vae.channels * dtype_bytes


def _readable(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**28 else f"{size / 2**20:.0f} MiB"
