"""Settings of a training run: data, optimiser and one of three objectives. Importable without jax."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sv3d_jax.config import CommonConfig, check_range, short
from sv3d_jax.errors import InputError

EVALUATION_SEED = 10_000_000  # objects from this seed on are never trained on


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Rendered orbits of procedural figures: object i has seed i, its orbit is a function of that seed too.

    With `shards`, packed orbits take their place, and `num_frames` alone counts of the rest.
    """

    shards: Path | None = None
    """folder of record shards (sv3d data pack) to train the UNet on"""
    objects: int = 6144
    """objects to train on, seeds 0, 1, .."""
    size: int = 64
    """side of the pictures in pixels"""
    num_frames: int = 21
    """views of an orbit; of records with a multiple of it, every so manieth is taken"""
    elevation_min_deg: float = 5.0
    elevation_max_deg: float = 20.0
    """the mean elevation of an orbit is uniform between the two"""
    varied_share: float = 0.5
    """share of orbits whose elevation follows a sine"""
    amplitude_max_deg: float = 15.0
    """largest amplitude of that sine; a third of it is the smallest"""
    irregular_share: float = 0.5
    """share of orbits with uneven steps of azimuth"""

    def __post_init__(self):
        if not 1 <= self.objects <= EVALUATION_SEED:
            raise InputError(f"data.objects {self.objects}: must lie between 1 and {EVALUATION_SEED}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with warm-up, cosine decay and clipping by the global norm."""

    learning_rate: float = 1e-3
    warmup_steps: int = 200
    final_fraction: float = 0.01
    """rate at the last step, as a part of the peak"""
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.998


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The objective of the UNet (EDM with velocity weighting, one noise level per video)."""

    frames_per_sample: int = 7
    """views of an orbit in one sample, the input view among them"""
    full_orbit_share: float = 0.06
    """last share of the steps in which samples are whole orbits"""
    p_mean: float = 1.2
    p_std: float = 1.3
    dropout: float = 0.08
    """rate of the image token and, independently, of the conditioning latent; the camera is never dropped"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CommonConfig):
    """Train the autoencoder, the image tower or the UNet of a model."""

    output: Annotated[Path, short("-o")]
    """folder of the run: checkpoints, metrics.jsonl"""
    objective: Literal["autoencoder", "tower", "unet"] = "unet"
    model: str = "mini"
    """widths: a name in configs/model, or a file"""
    weights: str = "mini"
    """trained autoencoder and image tower that the UNet builds on"""
    initial: str | None = None
    """weights to start from, as for --weights of other verbs (default: fresh ones)"""
    data_dir: Path | None = None
    """where rendered orbits are kept; several runs may share it (default: data in the output folder)"""
    data_workers: int = 0
    """processes that read record shards ahead (0: threads of this one)"""
    export: Path | None = None
    """write the averaged weights of the last checkpoint into this folder, and stop"""
    resume: str = "auto"
    """auto: go on from the last checkpoint, never: begin anew, N: go on from step N"""
    seed: int = 0
    batch_size: int = 8
    max_steps: int = 1000
    log_every: int = 50
    validate_every: int = 1000
    save_every: int = 500
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    diffusion: DiffusionConfig = DiffusionConfig()

    def __post_init__(self):
        check_range("batch_size", self.batch_size, 1, 4096)
        check_range("max_steps", self.max_steps, 1, 10**9)
        check_range("data_workers", self.data_workers, 0, 256)
        if self.data.shards and self.objective != "unet":
            raise InputError(f"--data.shards: the {self.objective} learns from pictures, shards hold latents")
        if not 2 <= self.diffusion.frames_per_sample <= self.data.num_frames:
            raise InputError(
                f"diffusion.frames_per_sample {self.diffusion.frames_per_sample}: must lie between 2 and "
                f"data.num_frames {self.data.num_frames}"
            )
        if self.resume not in ("auto", "never") and not self.resume.isdigit():
            raise InputError(f"--resume {self.resume}: auto, never or the number of a step")
