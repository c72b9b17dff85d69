"""Settings of the data verbs; nothing here imports jax."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sv3d_jax.config import POSITIONAL, CommonConfig, check_range, short


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
    """mesh files; the orbit of one goes to the output folder, orbits of several to a folder each in it"""
    output: Annotated[Path, short("-o")]
    """folder for the results"""
    orbit: Literal["static", "sine", "dynamic"] = "sine"
    """static: one elevation; sine: elevation swings by 30 degrees; dynamic: random and smooth, by the seed"""
    frames: int = 21
    """number of views; SV3D is trained on 21"""
    size: int = 576
    """side of the pictures in pixels"""
    elevation: float = 10.0
    """degrees above the object's horizon, up positive"""
    seed: int = 0
    """number that the light and a dynamic orbit follow from; counts up from mesh to mesh"""
    up: Literal["y", "z"] = "y"
    """axis of the mesh files that points up"""
    light: Literal["soft", "none"] = "soft"
    """soft: a random overcast sky; none: the surfaces' own colours"""
    background: Literal["white", "transparent"] = "white"
    """what is behind the object"""

    def __post_init__(self):
        check_range("size", self.size, 16, 4096)
        check_range("seed", self.seed, 0, 2**31)
