"""Settings of the data verbs; nothing here imports jax."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sv3d_jax.cameras.config import Elevation, Frames
from sv3d_jax.config import POSITIONAL, CommonConfig, check_range, short, within
from sv3d_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ObjectsConfig(CommonConfig):
    """Make procedural objects, one GLB each, y up; the object with seed 7 is 7.glb."""

    output: Annotated[Path, short("-o")]
    """folder for the meshes"""
    seed: Annotated[int, within(0, 2**62)] = 0
    """seed of the first object, the next ones count up; from 10000000 up they are for evaluation"""
    count: Annotated[int, within(1, 1_000_000)] = 1
    """how many objects"""
    family: Literal["figures", "mixed"] = "figures"
    """figures: what the shipped small model was trained on; mixed: many shapes, poses, colours and patterns"""


@dataclass(frozen=True, kw_only=True)
class RenderConfig(CommonConfig):
    """Render orbits of meshes (GLB, glTF, OBJ, PLY) with SV3D's camera: frames, cameras and a contact sheet."""

    meshes: Annotated[tuple[Path, ...], POSITIONAL]
    """mesh files, folders of them, or .txt lists of them; with several, each orbit gets a subfolder of the output"""
    output: Annotated[Path, short("-o")]
    """folder for the results"""
    orbit: Literal["static", "sine", "dynamic"] = "sine"
    """static: one elevation; sine: elevation swings by 30 degrees; dynamic: random and smooth, by the seed"""
    frames: Frames = 21
    """number of views; SV3D uses 21, training uses every fourth of 84"""
    size: Annotated[int, within(16, 4096)] = 576
    """side of the pictures in pixels"""
    elevation: Elevation = 10.0
    """degrees above the object's horizon, up positive"""
    elevation_max: Elevation | None = None
    """upper end: each mesh gets a random elevation between the two, from its seed"""
    seed: Annotated[int, within(0, 2**31)] = 0
    """seed of light, elevation and dynamic orbit; increases by one from file to file, and by a hash of the name for
    meshes of folders and lists"""
    up: Literal["y", "z"] = "y"
    """axis of the mesh files that points up"""
    light: Literal["soft", "gaussians", "harmonics", "none"] = "soft"
    """soft: an overcast sky; gaussians, harmonics: random lamps and coloured skies; none: the surfaces' own colours"""
    hdr: tuple[Path, ...] = ()
    """environment maps (.hdr, .exr) in place of the light: each mesh is lit by one of them, rotated at random"""
    background: Literal["white", "transparent"] = "white"
    """background of the frames: white, with alpha in separate files, or transparent, with alpha in the frames"""
    workers: Annotated[int, within(0, 1024)] = 0
    """worker processes that render in parallel (0: this process renders)"""

    def __post_init__(self):
        super().__post_init__()
        if self.elevation_max is not None:
            check_range("--elevation-max", self.elevation_max, self.elevation, 90)

    def check_inputs(self) -> None:
        """Raise an SV3DError for frames that are too large to be read again, an output that cannot be written, a folder
        without meshes or another kind of file.
        """
        from sv3d_jax.io.images import require_readable
        from sv3d_jax.io.meshes import check_mesh_file, mesh_files
        from sv3d_jax.io.outputs import check_output_parent

        files = self.frames * (2 if self.background == "white" else 1)
        require_readable(files, self.size, f"--frames {self.frames} --size {self.size}")
        check_output_parent(self.output)
        for path in self.meshes:
            if path.is_dir():
                mesh_files(path)
            elif len(self.meshes) == 1 and path.suffix != ".txt":
                check_mesh_file(path)


@dataclass(frozen=True, kw_only=True)
class ImportConfig(CommonConfig):
    """Make orbit folders of RGBA pictures with cameras that Blender, nerfstudio, instant-ngp or COLMAP wrote."""

    orbits: Annotated[tuple[Path, ...], POSITIONAL]
    """transforms .json files, COLMAP models, or folders that contain some; with several, each gets its own subfolder of
    the output"""
    output: Annotated[Path, short("-o")]
    """folder for the results"""
    up: Literal["auto", "y", "z"] = "auto"
    """axis of the scene that points up; auto: z, and for COLMAP's models the way up that the cameras have in common"""

    def check_inputs(self) -> None:
        """Raise an SV3DError for an orbit, which needs no import, or an output that cannot be written."""
        from sv3d_jax.io.folders import refuse_orbits
        from sv3d_jax.io.outputs import check_output_parent

        refuse_orbits(self.orbits)
        check_output_parent(self.output)


@dataclass(frozen=True, kw_only=True)
class PackConfig(CommonConfig):
    """Encode orbits into record shards: latents, image tokens and cameras of every view."""

    orbits: Annotated[tuple[Path, ...], POSITIONAL]
    """orbit folders, or folders that contain some"""
    output: Annotated[Path, short("-o")]
    """folder for the shards"""
    validation: tuple[Path, ...] = ()
    """orbits for validation, not trained on (default: one in ten of the orbits, at most 16)"""
    weights: str = "mini"
    """weights of the autoencoder and image encoder: mini, a folder, a .safetensors file, a hub id"""
    size: Annotated[int | None, within(8, 4096)] = None
    """side in pixels that frames are resized to (default: the model's)"""
    backgrounds: tuple[Literal["white", "random"], ...] = ("white",)
    """backgrounds, one record per orbit for each; random: one colour per orbit, needs frames with alpha"""
    seed: Annotated[int, within(0, 2**31)] = 0
    """seed of random colours and of the choice of validation orbits"""
    dtype: Literal["float32", "float16"] = "float32"
    """type of the stored latents and tokens"""
    shard_orbits: Annotated[int, within(1, 1_000_000)] = 64
    """orbits per shard"""
    batch_size: Annotated[int, within(1, 4096)] = 21
    """views encoded at once"""

    def __post_init__(self):
        super().__post_init__()
        if not self.backgrounds or len(set(self.backgrounds)) < len(self.backgrounds):
            raise InputError(
                f"--backgrounds {' '.join(self.backgrounds)}: give white, random or both, once each"
            )

    def check_inputs(self) -> None:
        """Raise an SV3DError for paths without orbits, or an output that cannot be written."""
        from sv3d_jax.io.folders import find_orbits
        from sv3d_jax.io.outputs import check_output_parent

        find_orbits(self.orbits)
        find_orbits(self.validation)
        check_output_parent(self.output)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(CommonConfig):
    """Look for every defect of packed shards or of orbit folders; exit code 1 if there are any."""

    folder: Annotated[Path, POSITIONAL]
    """shards, an orbit, or a folder of orbits"""

    def check_inputs(self) -> None:
        """Raise InputError for a folder that holds neither."""
        from sv3d_jax.io.folders import check_data

        check_data(self.folder)
