"""Settings of the data verbs; nothing here imports jax."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sv3d_jax.config import POSITIONAL, CommonConfig, check_range, short
from sv3d_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ObjectsConfig(CommonConfig):
    """Make procedural objects, one GLB each, y up; the object with seed 7 is 7.glb. An endless supply."""

    output: Annotated[Path, short("-o")]
    """folder for the meshes"""
    seed: int = 0
    """seed of the first object, the next ones count up; from 10000000 up they are for evaluation"""
    count: int = 1
    """how many objects"""
    family: Literal["figures", "mixed"] = "figures"
    """figures: what the shipped small model knows; mixed: many shapes, poses, colours and patterns"""

    def __post_init__(self):
        check_range("seed", self.seed, 0, 2**62)
        check_range("count", self.count, 1, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class RenderConfig(CommonConfig):
    """Render orbits of meshes (GLB, glTF, OBJ, PLY) with SV3D's camera: frames, cameras and a contact sheet."""

    meshes: Annotated[tuple[Path, ...], POSITIONAL]
    """mesh files, folders of them, or .txt lists of them; of several, each orbit gets a folder in the output folder"""
    output: Annotated[Path, short("-o")]
    """folder for the results"""
    orbit: Literal["static", "sine", "dynamic"] = "sine"
    """static: one elevation; sine: elevation swings by 30 degrees; dynamic: random and smooth, by the seed"""
    frames: int = 21
    """number of views; SV3D sees 21, training takes every fourth of 84"""
    size: int = 576
    """side of the pictures in pixels"""
    elevation: float = 10.0
    """degrees above the object's horizon, up positive"""
    elevation_max: float | None = None
    """with it, each mesh has an elevation between the two, by its seed"""
    seed: int = 0
    """number that light, elevation and a dynamic orbit follow from; counts up from file to file, and in folders and
    lists each mesh adds a number of its name"""
    up: Literal["y", "z"] = "y"
    """axis of the mesh files that points up"""
    light: Literal["soft", "gaussians", "harmonics", "none"] = "soft"
    """soft: an overcast sky; gaussians, harmonics: random lamps and coloured skies; none: the surfaces' own colours"""
    hdr: tuple[Path, ...] = ()
    """Radiance .hdr files in place of the light: each mesh stands in one of them, turned at random"""
    background: Literal["white", "transparent"] = "white"
    """what is behind the object: frames over white have their alphas beside them, transparent ones in them"""
    workers: int = 0
    """processes that render side by side (0: this one)"""

    def __post_init__(self):
        check_range("size", self.size, 16, 4096)
        check_range("seed", self.seed, 0, 2**31)
        check_range("workers", self.workers, 0, 1024)
        if self.elevation_max is not None:
            check_range("elevation_max", self.elevation_max, self.elevation, 90.0)


@dataclass(frozen=True, kw_only=True)
class ImportConfig(CommonConfig):
    """Make orbit folders of RGBA pictures with cameras that Blender, nerfstudio, instant-ngp or COLMAP wrote."""

    orbits: Annotated[tuple[Path, ...], POSITIONAL]
    """transforms .json files, COLMAP models, or folders that hold some; of several, each gets a folder in the output
    folder"""
    output: Annotated[Path, short("-o")]
    """folder for the results"""
    up: Literal["auto", "y", "z"] = "auto"
    """axis of the scene that points up; auto: z, and for COLMAP's models the way up that the cameras have in common"""


@dataclass(frozen=True, kw_only=True)
class PackConfig(CommonConfig):
    """Encode orbits into record shards: latents, image tokens and cameras of every view."""

    orbits: Annotated[tuple[Path, ...], POSITIONAL]
    """orbit folders, or folders that hold some"""
    output: Annotated[Path, short("-o")]
    """folder for the shards"""
    validation: tuple[Path, ...] = ()
    """orbits that validate and are not trained on (default: one in ten of the others, at most 16)"""
    weights: str = "mini"
    """whose autoencoder and image encoder encode: mini, a folder, a .safetensors file, a hub id"""
    size: int | None = None
    """side in pixels that frames are brought to (default: the model's)"""
    backgrounds: tuple[Literal["white", "random"], ...] = ("white",)
    """one record of each orbit before each of these; random is one colour an orbit and needs frames with alpha"""
    seed: int = 0
    """number that random colours and the choice of validation orbits follow from"""
    dtype: Literal["float32", "float16"] = "float32"
    """type of the stored latents and tokens"""
    shard_orbits: int = 64
    """orbits in a shard"""
    batch_size: int = 21
    """views that are encoded at once"""

    def __post_init__(self):
        check_range("shard_orbits", self.shard_orbits, 1, 1_000_000)
        check_range("batch_size", self.batch_size, 1, 4096)
        check_range("seed", self.seed, 0, 2**31)
        if not self.backgrounds or len(set(self.backgrounds)) < len(self.backgrounds):
            raise InputError(
                f"--backgrounds {' '.join(self.backgrounds)}: give white, random or both, once each"
            )


@dataclass(frozen=True, kw_only=True)
class CheckConfig(CommonConfig):
    """Look for every defect of packed shards or of orbit folders; exit code 1 if there is one."""

    folder: Annotated[Path, POSITIONAL]
    """shards, an orbit, or a folder of orbits"""
