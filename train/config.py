"""Settings of a training run: data, optimiser and one of three objectives. Importable without jax."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sv3d_jax.cameras.config import Elevation, Frames
from sv3d_jax.config import MAX_STEPS, CommonConfig, Seed, Settings, check_range, short, within
from sv3d_jax.errors import InputError

EVALUATION_SEED = 10_000_000  # objects with this seed or a higher one are never trained on
Steps = Annotated[int, within(1, MAX_STEPS)]
Share = Annotated[float, within(0, 1)]
Decay = Annotated[float, within(0, 1 - 1e-9)]  # of a running average, which would stand still at 1
# How messages name what an objective trains.
OBJECTIVE_NAMES = {"autoencoder": "autoencoder", "tower": "image encoder", "unet": "UNet"}


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Rendered orbits of procedural objects: object and orbits are functions of a seed.

    With `shards`, packed orbits replace them, and all other settings except `num_frames` and `any_input` are ignored.
    """

    PREFIX: ClassVar[str] = "--data."

    shards: Path | None = None
    """folder of record shards (sv3d data pack) to train the UNet on"""
    family: Literal["figures", "mixed"] = "figures"
    """kind of the objects, as for sv3d data objects"""
    first_seed: Annotated[int, within(0, 2**62)] = 0
    """seed of the first object, the next ones count up; from 10000000 up they are for evaluation"""
    objects: Annotated[int, within(1, EVALUATION_SEED)] = 6144
    """objects to train on"""
    orbits_per_object: Annotated[int, within(1, 10_000)] = 1
    """orbits of each object, each with its own random elevations and azimuths"""
    any_input: bool = True
    """the input view is a random view of the orbit; false: it is always the last"""
    validation: Literal["objects", "orbits"] = "objects"
    """objects: validate on objects kept for evaluation; orbits: on further orbits of the objects trained on"""
    size: Annotated[int, within(8, 4096)] = 64
    """side of the pictures in pixels"""
    num_frames: Frames = 21
    """views of an orbit; of record shards with k times as many views, every k-th is used"""
    elevation_min_deg: Elevation = 5.0
    elevation_max_deg: Elevation = 20.0
    """the mean elevation of an orbit is uniform between the two"""
    varied_share: Share = 0.5
    """share of orbits whose elevation follows a sine"""
    amplitude_max_deg: Annotated[float, within(0, 90)] = 15.0
    """largest amplitude of that sine; a third of it is the smallest"""
    irregular_share: Share = 0.5
    """share of orbits with uneven steps of azimuth"""

    def __post_init__(self):
        super().__post_init__()
        steepest = 90 - self.amplitude_max_deg * (self.varied_share > 0)
        check_range("--data.elevation-min-deg", self.elevation_min_deg, -steepest, self.elevation_max_deg)
        check_range("--data.elevation-max-deg", self.elevation_max_deg, self.elevation_min_deg, steepest)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings):
    """Adam with warm-up, cosine decay and clipping by the global norm."""

    PREFIX: ClassVar[str] = "--optimizer."

    learning_rate: Annotated[float, within(1e-12, 1e3)] = 1e-3
    warmup_steps: Annotated[int, within(0, MAX_STEPS)] = 200
    final_fraction: Share = 0.01
    """learning rate at the last step, as a fraction of the peak"""
    b1: Decay = 0.9
    b2: Decay = 0.99
    weight_decay: Annotated[float, within(0, 1e3)] = 0.0
    clip_norm: Annotated[float, within(1e-9, 1e9)] = 1.0
    ema_decay: Decay = 0.998


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(Settings):
    """The objective of the UNet: noise levels, dropout of the conditioning, weighting of the error."""

    PREFIX: ClassVar[str] = "--diffusion."

    frames_per_sample: Frames = 7
    """views of an orbit in one sample, the input view among them"""
    full_orbit_share: Share = 0.06
    """fraction of the steps, at the end of the run, in which samples are whole orbits"""
    p_mean: Annotated[float, within(-10, 10)] = 1.2
    p_std: Annotated[float, within(0, 10)] = 1.3
    """noise levels are exp(p_mean + p_std n), n standard normal"""
    levels: Literal["video", "frame"] = "video"
    """one noise level for all frames of a video, as in sampling, or one for each frame"""
    weighting: Literal["v", "edm", "eps", "unit"] = "v"
    """weight of the squared error at level s: (1 + s^2) / s^2, (s^2 + 1/4) / (s/2)^2, 1 / s^2 or 1"""
    token_dropout: Share = 0.08
    """probability that the image token of a video is zeroed; the camera is never dropped"""
    latent_dropout: Share = 0.08
    """probability that the conditioning latent of a video is zeroed, independent of the token"""
    cond_aug_mean: Annotated[float | None, within(-20, 10)] = None
    """mean of the logarithm of the noise on the input picture, SVD: -3 (default: the model's fixed cond_aug)"""
    cond_aug_std: Annotated[float, within(0, 10)] = 0.5
    """standard deviation of that logarithm; 0: one level for all pictures"""
    near_weight: Share = 1.0
    """weight of a frame at the input view's azimuth, as a fraction of the weight of the opposite frame"""
    near_power: Annotated[float, within(0, 100)] = 1.0
    """the weight rises between the two like ((1 - cos azimuth) / 2)^near_power"""


@dataclass(frozen=True, kw_only=True)
class TrainableConfig(Settings):
    """Which parameters are trained; the others stay frozen."""

    PREFIX: ClassVar[str] = "--trainable."

    layers: Literal["all", "temporal", "lora"] = "all"
    """all; temporal: only the temporal layers; lora: low-rank adapters of the linear layers of all transformers"""
    rank: Annotated[int, within(1, 4096)] = 8
    """rank of the low-rank adapters"""
    alpha: Annotated[float, within(1e-9, 1e9)] = 8.0
    """their scale is alpha / rank"""


@dataclass(frozen=True, kw_only=True)
class WatchConfig(Settings):
    """What a run reports besides metrics.jsonl; none of it changes the result."""

    PREFIX: ClassVar[str] = "--watch."

    tensorboard: bool = False
    """write TensorBoard events into the folder tensorboard of the run (extra `log`)"""
    wandb: str | None = None
    """project of Weights & Biases that metrics and sheets are sent to (extra `log`)"""
    samples_every: Annotated[int, within(0, MAX_STEPS)] = 1000
    """steps between sheets of a sampled held-out orbit, samples/step-N.png; 0: none"""
    profile: str | None = None
    """START:STOP, steps that jax.profiler records into the folder profile of the run, counted from 0"""

    def __post_init__(self):
        super().__post_init__()
        if self.profile is not None and not self.profile_steps:
            raise InputError(f"--watch.profile {self.profile}: expected START:STOP, for example 20:25")

    @property
    def profile_steps(self) -> range:
        """The steps to record."""
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", self.profile or "")
        return range(int(match[1]), int(match[2])) if match else range(0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CommonConfig):
    """Train the autoencoder, the image encoder or the UNet of a model.

    --config takes a TOML file or the name of a recipe that ships, as sv3d_p or finetune_mini.
    """

    RECIPES: ClassVar[str] = "train"

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
    data_workers: Annotated[int, within(0, 256)] = 0
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
    """precision of the activations, on a CPU of the factors of products; weights, EMA and optimiser stay float32"""
    remat: bool = False
    """recompute the activations inside the blocks of the UNet in the backward pass instead of storing them"""
    accumulate: Annotated[int, within(1, 4096)] = 1
    """gradient accumulation: number of equal parts that a batch is processed in, one after the other"""
    seed: Seed = 0
    batch_size: Annotated[int, within(1, 4096)] = 8
    """samples of a step, over all devices"""
    max_steps: Steps = 1000
    log_every: Steps = 50
    validate_every: Steps = 1000
    save_every: Steps = 500
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    watch: WatchConfig = WatchConfig()
    trainable: TrainableConfig = TrainableConfig()

    def __post_init__(self):
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise InputError(f"--accumulate {self.accumulate}: must divide --batch-size {self.batch_size}")
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
        self._check_resume()

    def check_inputs(self) -> None:
        """Raise an SV3DError for absent weights or shards, or a folder of the run that cannot be written."""
        from sv3d_jax.io.outputs import check_output_parent
        from sv3d_jax.weights.hub import find_weights

        if self.plan or self.export:
            return
        check_output_parent(self.output)
        if self.objective == "unet":
            find_weights(self.weights)
        if self.data.shards and not self.data.shards.is_dir():
            raise InputError(
                f"--data.shards {self.data.shards}: there is no such folder",
                hint="sv3d data pack ORBITS -o DIR makes one",
            )

    def _check_resume(self) -> None:
        if self.resume not in ("auto", "never") and not re.fullmatch("[0-9]{1,9}", self.resume):
            raise InputError(f"--resume {self.resume}: expected auto, never or the number of a step")
