"""Settings of a training run: data, optimiser and one of three objectives. Importable without jax."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sv3d_jax.config import CommonConfig, check_range, short
from sv3d_jax.errors import InputError

EVALUATION_SEED = 10_000_000  # objects with this seed or a higher one are never trained on
# How messages name what an objective trains.
OBJECTIVE_NAMES = {"autoencoder": "autoencoder", "tower": "image encoder", "unet": "UNet"}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Rendered orbits of procedural objects: object and orbits are functions of a seed.

    With `shards`, packed orbits replace them, and all other settings except `num_frames` and `any_input` are ignored.
    """

    shards: Path | None = None
    """folder of record shards (sv3d data pack) to train the UNet on"""
    family: Literal["figures", "mixed"] = "figures"
    """kind of the objects, as for sv3d data objects"""
    first_seed: int = 0
    """seed of the first object, the next ones count up; from 10000000 up they are for evaluation"""
    objects: int = 6144
    """objects to train on"""
    orbits_per_object: int = 1
    """orbits of each object, each with its own random elevations and azimuths"""
    any_input: bool = True
    """the input view is a random view of the orbit; false: it is always the last"""
    validation: Literal["objects", "orbits"] = "objects"
    """objects: validate on objects kept for evaluation; orbits: on further orbits of the objects trained on"""
    size: int = 64
    """side of the pictures in pixels"""
    num_frames: int = 21
    """views of an orbit; of record shards with k times as many views, every k-th is used"""
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
        check_range("data.first_seed", self.first_seed, 0, 2**62)
        check_range("data.orbits_per_object", self.orbits_per_object, 1, 10_000)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with warm-up, cosine decay and clipping by the global norm."""

    learning_rate: float = 1e-3
    warmup_steps: int = 200
    final_fraction: float = 0.01
    """learning rate at the last step, as a fraction of the peak"""
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.998


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The objective of the UNet: noise levels, dropout of the conditioning, weighting of the error."""

    frames_per_sample: int = 7
    """views of an orbit in one sample, the input view among them"""
    full_orbit_share: float = 0.06
    """fraction of the steps, at the end of the run, in which samples are whole orbits"""
    p_mean: float = 1.2
    p_std: float = 1.3
    """noise levels are exp(p_mean + p_std n), n standard normal"""
    levels: Literal["video", "frame"] = "video"
    """one noise level for all frames of a video, as in sampling, or one for each frame"""
    weighting: Literal["v", "edm", "eps", "unit"] = "v"
    """weight of the squared error at level s: (1 + s^2) / s^2, (s^2 + 1/4) / (s/2)^2, 1 / s^2 or 1"""
    token_dropout: float = 0.08
    """probability that the image token of a video is zeroed; the camera is never dropped"""
    latent_dropout: float = 0.08
    """probability that the conditioning latent of a video is zeroed, independent of the token"""
    cond_aug_mean: float | None = None
    """mean of the logarithm of the noise on the input picture, SVD: -3 (default: the model's fixed cond_aug)"""
    cond_aug_std: float = 0.5
    """standard deviation of that logarithm; 0: one level for all pictures"""
    near_weight: float = 1.0
    """weight of a frame at the input view's azimuth, as a fraction of the weight of the opposite frame"""
    near_power: float = 1.0
    """the weight rises between the two like ((1 - cos azimuth) / 2)^near_power"""

    def __post_init__(self):
        for name in ("token_dropout", "latent_dropout", "near_weight"):
            check_range(f"diffusion.{name}", getattr(self, name), 0.0, 1.0)
        check_range("diffusion.near_power", self.near_power, 0.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class TrainableConfig:
    """Which parameters are trained; the others stay frozen."""

    layers: Literal["all", "temporal", "lora"] = "all"
    """all; temporal: only the temporal layers; lora: low-rank adapters of the linear layers of all transformers"""
    rank: int = 8
    """rank of the low-rank adapters"""
    alpha: float = 8.0
    """their scale is alpha / rank"""

    def __post_init__(self):
        check_range("trainable.rank", self.rank, 1, 4096)


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What a run reports besides metrics.jsonl; none of it changes the result."""

    tensorboard: bool = False
    """write TensorBoard events into the folder tensorboard of the run (extra `log`)"""
    wandb: str | None = None
    """project of Weights & Biases that metrics and sheets are sent to (extra `log`)"""
    samples_every: int = 1000
    """steps between sheets of a sampled held-out orbit, samples/step-N.png; 0: none"""
    profile: str | None = None
    """START:STOP, steps that jax.profiler records into the folder profile of the run, counted from 0"""

    def __post_init__(self):
        check_range("watch.samples_every", self.samples_every, 0, 10**9)
        if self.profile is not None and not self.profile_steps:
            raise InputError(f"--watch.profile {self.profile}: expected START:STOP, for example 20:25")

    @property
    def profile_steps(self) -> range:
        """The steps to record."""
        match = re.fullmatch(r"(\d+):(\d+)", self.profile or "")
        return range(int(match[1]), int(match[2])) if match else range(0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CommonConfig):
    """Train the autoencoder, the image encoder or the UNet of a model."""

    output: Annotated[Path, short("-o")]
    """folder of the run: checkpoints, metrics.jsonl"""
    objective: Literal["autoencoder", "tower", "unet"] = "unet"
    model: str = "mini"
    """model configuration: a name in configs/model, or a .toml file"""
    weights: str = "mini"
    """trained autoencoder and image encoder that the UNet builds on"""
    initial: str | None = None
    """weights to start from, as for --weights of other verbs (default: random initialisation)"""
    data_dir: Path | None = None
    """where rendered orbits are kept; several runs may share it (default: data in the output folder)"""
    data_workers: int = 0
    """worker processes that prefetch record shards (0: threads of this process)"""
    export: Path | None = None
    """write the averaged weights of the last checkpoint into this folder, and stop"""
    plan: bool = False
    """print bytes per device of parameters, optimizer and activations, and stop; the mesh need not exist here"""
    resume: str = "auto"
    """auto: resume from the last checkpoint, never: start over, N: resume from step N"""
    cast: bool = False
    """resume from a checkpoint of another precision"""
    mesh: str = ""
    """how devices share the work: data=2,fsdp=4,tensor=1; data defaults to the remaining devices"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """precision of the activations; weights, EMA and optimiser stay float32"""
    remat: bool = False
    """recompute the activations inside the blocks of the UNet in the backward pass instead of storing them"""
    accumulate: int = 1
    """gradient accumulation: number of equal parts that a batch is processed in, one after the other"""
    seed: int = 0
    batch_size: int = 8
    """samples of a step, over all devices"""
    max_steps: int = 1000
    log_every: int = 50
    validate_every: int = 1000
    save_every: int = 500
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    watch: WatchConfig = WatchConfig()
    trainable: TrainableConfig = TrainableConfig()

    def __post_init__(self):
        check_range("batch_size", self.batch_size, 1, 4096)
        check_range("max_steps", self.max_steps, 1, 10**9)
        check_range("save_every", self.save_every, 1, 10**9)
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise InputError(f"--accumulate {self.accumulate}: must divide --batch-size {self.batch_size}")
        check_range("data_workers", self.data_workers, 0, 256)
        if self.data.shards and self.objective != "unet":
            name = OBJECTIVE_NAMES[self.objective]
            raise InputError(f"--data.shards: the {name} is trained on pictures, but shards hold latents")
        if self.data.shards and self.diffusion.cond_aug_mean is not None:
            raise InputError(
                "--diffusion.cond-aug-mean: noise on pictures needs pictures, but --data.shards holds latents"
            )
        if not 2 <= self.diffusion.frames_per_sample <= self.data.num_frames:
            raise InputError(
                f"diffusion.frames_per_sample {self.diffusion.frames_per_sample}: must lie between 2 and "
                f"data.num_frames {self.data.num_frames}"
            )
        if self.objective != "unet" and self.trainable.layers != "all":
            raise InputError(f"trainable.layers {self.trainable.layers}: only the UNet is trained in part")
        if self.resume not in ("auto", "never") and not self.resume.isdigit():
            raise InputError(f"--resume {self.resume}: expected auto, never or the number of a step")
