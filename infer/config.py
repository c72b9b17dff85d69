"""Settings of `sv3d orbit` and `sv3d generate`; nothing here imports jax."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from sv3d_jax.cameras.config import MAX_FRAMES, Frames, PathConfig
from sv3d_jax.config import POSITIONAL, CommonConfig, short, within
from sv3d_jax.diffusion.config import ChurnAmount, GuidanceName, SamplingConfig, SolverName
from sv3d_jax.errors import InputError
from sv3d_jax.models.families import Model, Variant

if TYPE_CHECKING:
    from sv3d_jax.cameras.orbit import CameraPath
    from sv3d_jax.runner import ComputeConfig

Side = Annotated[int, within(8, 4096)]
Pixel = Annotated[int, within(0, 1_000_000)]
Batch = Annotated[int, within(1, 1024)]


@dataclass(frozen=True, kw_only=True)
class OrbitConfig(SamplingConfig, PathConfig, CommonConfig):
    """Pictures of objects to orbits: frames, cameras.json, a video and a contact sheet, in DIR or in DIR/<name>."""

    images: Annotated[tuple[Path, ...], POSITIONAL]
    """pictures of one object each, or folders of them: cut out (with alpha) or on a plain background; for others see
    --background"""
    output: Annotated[Path, short("-o")]
    """folder of the results; with several pictures, or a folder of them, each gets a subfolder of its name"""
    skip_broken: bool = False
    """leave out pictures that cannot be used and report them at the end; always so for those in folders"""
    weights: str = "mini"
    """mini (shipped: upright figures, small), a folder, a .safetensors file, or a hub id"""
    variant: Variant = "auto"
    """variant that the weights must be: u has no camera conditioning, p has, auto accepts any"""
    cameras: Path | None = None
    """cameras.json whose azimuths and elevations are used in place of --orbit, --elevation and --azimuths"""
    guidance: GuidanceName | None = None
    """how the guidance scale runs over the frames (default: the model's own); triangular is highest at the back,
    constant is --cfg-max"""
    solver: SolverName = "euler"
    """euler is SV3D's own; dpmpp_2m is of second order, which does not help mini"""
    churn: ChurnAmount = 0.0
    """noise added back while sampling, as s_churn of EDM; SV3D uses none"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """precision of computing; auto is bfloat16 on a GPU, a TPU and a CPU that is faster with it, else float32"""
    quantize: Literal["int8", "fp8"] | None = None
    """compute linear layers of the UNet in 8 bits (default: in --dtype); faster on accelerators with 8-bit products"""
    size: Side | None = None
    """side of the frames in pixels (default: the model's own; 576 for SV3D)"""
    background: Literal["auto", "alpha", "remove", "keep"] = "auto"
    """auto: alpha, else a plain border, else rembg; alpha: only alpha; remove: only rembg; keep: unchanged picture"""
    mask: tuple[Path, ...] = ()
    """a mask for each picture: of the same size, white where the object is"""
    box: tuple[Pixel, Pixel, Pixel, Pixel] | None = None
    """bounding box of the object in pixels of the upright picture: x0 y0 x1 y1 (needs OpenCV: the extra photos)"""
    frame_ratio: Annotated[float | None, within(0.05, 1)] = None
    """longer side of the object as a fraction of the frame, up to 1 (default: the object keeps its size)"""
    decode_chunk: Annotated[int | None, within(1, MAX_FRAMES)] = None
    """frames decoded at a time (default: as many as fit into 2 GiB)"""
    batch: Batch | None = None
    """pictures sampled at once (default: one per device)"""
    low_memory: bool = False
    """the same orbit in less memory and more time: parts of the model wait on the host, and CFG is sequential"""
    auto_fit: bool = False
    """when memory runs out, try again with --decode-chunk 1, then --low-memory, then --dtype bfloat16"""
    format: Literal["mp4", "gif", "webp", "png"] = "mp4"
    """format of the orbit's video; png writes frames only"""

    def __post_init__(self):
        super().__post_init__()
        if self.mask and len(self.mask) != len(self.images):
            raise InputError(
                f"--mask: got {len(self.mask)} for {len(self.images)} pictures, expected one for each"
            )
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise InputError(
                    f"--box {x0} {y0} {x1} {y1}: expected x0 y0 x1 y1 in pixels, with x0 < x1 and y0 < y1"
                )
            if len(self.images) > 1:
                raise InputError(
                    f"--box is for one picture, got {len(self.images)}",
                    hint="run the pictures one by one, or give a --mask for each",
                )
        if self.cache_interval > 1 and self.low_memory:
            raise InputError("--cache-interval does not go with --low-memory")

    @property
    def sampling(self) -> SamplingConfig:
        """The options of sampling among these settings."""
        return SamplingConfig(**{field.name: getattr(self, field.name) for field in fields(SamplingConfig)})

    @property
    def compute(self) -> ComputeConfig:
        """How the model computes, without the mesh of devices."""
        from sv3d_jax.runner import ComputeConfig

        return ComputeConfig(dtype=self.dtype, low_memory=self.low_memory, quantize=self.quantize)

    def camera_path(self, trained_frames: int = 21) -> CameraPath:
        """The camera path of --cameras if given, else of the other flags. Raises InputError if it is invalid."""
        if self.cameras is None:
            return super().camera_path(trained_frames)
        from sv3d_jax.io.cameras_file import read_camera_path

        if self.azimuths is not None:
            raise InputError("--azimuths and --cameras cannot both be given")
        return read_camera_path(self.cameras)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(OrbitConfig):
    """Pictures of objects to orbits and meshes: the files of `orbit`, mesh.glb, mesh.ply and a turntable video."""

    preset: Literal["preview", "fast", "quality"] | None = None
    """effort of the reconstruction (default: preview for mini, whose frames are small, else fast; fast with --sds)"""
    sds: bool = False
    """let the model complete surfaces that its orbit does not show (masked score distillation in the fine stage)"""

    @property
    def reconstruction(self) -> Literal["preview", "fast", "quality"]:
        """The preset of the reconstruction: the one given, or its default."""
        return self.preset or ("preview" if self.weights == "mini" and not self.sds else "fast")


@dataclass(frozen=True, kw_only=True)
class BenchConfig(CommonConfig):
    """Measure sampling on this device: seconds of every stage, memory, and speed relative to a large matrix product."""

    weights: str = "mini"
    """mini, a folder, a .safetensors file, or a hub id"""
    model: Model | None = None
    """use random weights of this model in place of --weights; the time does not depend on their values"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """precision of computing; auto is bfloat16 on a GPU, a TPU and a CPU that is faster with it, else float32"""
    size: Side | None = None
    """side of the frames in pixels (default: the model's own)"""
    frames: Frames | None = None
    """frames of an orbit (default: the model's own)"""
    batch: Batch = 1
    """orbits sampled at once"""
    rounds: Annotated[int, within(1, 1000)] = 5
    """timed calls of every stage, of which the median is reported"""
    low_memory: bool = False
    """measure with sequential CFG and parts of the model on the host"""
    quantize: Literal["int8", "fp8"] | None = None
    """compute linear layers of the UNet in 8 bits"""
