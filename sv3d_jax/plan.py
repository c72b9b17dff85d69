"""What an orbit costs before it is sampled: memory and arithmetic, estimated from shapes alone, without JAX."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.errors import InputError, OutOfMemory, is_out_of_memory
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.weights.key_map import model_parameters

FULL_SIZE = 200_000_000  # parameters from which a model is one for accelerators
# Live activations of one guided step of SV3D are 5.3 GB in bfloat16: so many times the features of its first level.
UNET_FEATURES = 38
# Kernels and embeddings that are made once for all steps of a kind take so much of what the UNet's weights take.
PREPARED_SHARE = 0.25
REUSE_SHARE = 0.05  # of that, for steps that reuse cached features
QUANTIZED_BYTES = 0.28  # and in 8 bits so many more for each weight
DECODER_FEATURES = 4  # the same for a frame in the decoder
SV3D_FLOP = 69.16e12  # one guided step of SV3D: 21 frames of 72x72 latents
CPU_FLOPS_PER_CORE = 75e9
DECODE_BUDGET = 2 << 30  # bytes of activations that one decoded chunk may take


@dataclass(frozen=True)
class Plan:
    """Bytes and operations of sampling `batch` orbits at once."""

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
        return self.parameters >= FULL_SIZE

    @property
    def cpu_hours(self) -> float:
        """Hours of sampling on the CPU cores of this machine, about."""
        return self.step_flop * self.num_steps / (CPU_FLOPS_PER_CORE * (os.cpu_count() or 1)) / 3600

    def __str__(self) -> str:
        return (
            f"memory: about {_readable(self.total_bytes)}: weights {_readable(self.weights_bytes)},"
            f" sampling {_readable(self.sampling_bytes)}, decoding {_readable(self.decoding_bytes)}"
            f" ({self.decode_chunk} frames at a time)"
        )


def plan_orbit(
    config: ModelConfig,
    num_frames: int | None = None,
    size: int | None = None,
    batch: int = 1,
    dtype_bytes: int = 4,
    decode_chunk: int | None = None,
    low_memory: bool = False,
    quantized: bool = False,
    sampling: SamplingConfig = SamplingConfig(),
) -> Plan:
    """Estimate for `batch` orbits sampled together; what is not given is the model's own.

    With `low_memory` one part of the model is on the device at a time, one branch of the guidance is computed, and
    nothing is prepared for all steps. `quantized` layers keep a copy in 8 bits. Each kind of steps, with guidance or
    without, storing or reusing features, prepares values of its own.
    """
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
    prepared = int(PREPARED_SHARE * sizes["unet"]) * dtype_bytes
    prepared += int(QUANTIZED_BYTES * sizes["unet"] * quantized)
    prepared = int(prepared * _kinds_of_steps(config, sampling, num_steps))
    return Plan(
        parameters=sizes.total(),
        weights_bytes=on_device * dtype_bytes,
        sampling_bytes=activations // 2 if low_memory else activations + prepared,
        decoding_bytes=chunk * _decoder_bytes(config, size, dtype_bytes),
        step_flop=step_flop,
        num_steps=num_steps,
        decode_chunk=chunk,
        low_memory=low_memory,
    )


def _kinds_of_steps(config: ModelConfig, sampling: SamplingConfig, num_steps: int) -> float:
    """How many kinds of steps prepare values for all levels; one that reuses features does so for the first alone."""
    if sampling.guidance_interval is None and sampling.cache_interval == 1:
        return 1
    from sv3d_jax.diffusion.schedule import model_sigmas

    kinds = set(sampling.step_kinds(model_sigmas(config, num_steps)))
    return sum(REUSE_SHARE if kind.cache == "reuse" else 1 for kind in kinds)


def default_decode_chunk(config: ModelConfig, size: int, dtype_bytes: int, frames: int) -> int:
    """Frames decoded together: as many as stay within the budget, at least one."""
    return max(1, min(frames, DECODE_BUDGET // _decoder_bytes(config, size, dtype_bytes)))


def check_size(config: ModelConfig, size: int) -> None:
    """Refuse a side of the picture that the networks cannot halve as often as they must."""
    multiple = config.vae.downsampling * 2 ** (len(config.unet.channel_mult) - 1)
    if size < multiple or size % multiple:
        raise InputError(
            f"--size {size}: {config.name} needs a multiple of {multiple}, its own is {config.native_size}"
        )


def require_accelerator(plan: Plan, platform: str, device: str | None) -> None:
    """Refuse full-size sampling on a CPU that nobody asked for: it takes hours."""
    asked = device == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu"
    if plan.is_full_size and platform == "cpu" and not asked:
        raise InputError(
            f"no accelerator was found, and sampling {plan.parameters / 1e9:.1f} billion parameters on this CPU"
            f" takes about {plan.cpu_hours:.1f} hours",
            hint="--device cpu to do so all the same; --weights mini runs anywhere",
        )


@contextmanager
def memory_advice(plan: Plan, device: str = "the device") -> Iterator[None]:
    """Turn the runtime's out-of-memory error into an `OutOfMemory` that lists what helps, in the order to try it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
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
            f"{device} ran out of memory; {plan}. It said: {str(error).splitlines()[0]}",
            hint="--auto-fit tries by itself what helps without changing the size; in this order: "
            + "; ".join(filter(None, remedies)),
        ) from error


def _decoder_bytes(config: ModelConfig, size: int, dtype_bytes: int) -> int:
    return DECODER_FEATURES * size**2 * config.vae.channels * dtype_bytes


def _readable(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**28 else f"{size / 2**20:.0f} MiB"
