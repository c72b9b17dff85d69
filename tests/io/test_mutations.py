"""Whatever happens to a file, reading it ends in a value or in a documented error, and nothing is written."""

import contextlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sv3d_jax.cameras.orbit import sine_orbit
from sv3d_jax.config import load_config
from sv3d_jax.errors import CheckpointError, InputError, WeightsError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.infer.config import OrbitConfig
from sv3d_jax.io.cameras_file import read_camera_path
from sv3d_jax.io.environment import read_environment
from sv3d_jax.io.images import read_mask, read_picture
from sv3d_jax.io.meshes import read_mesh, write_glb, write_obj, write_ply
from sv3d_jax.io.orbits import read_orbit, write_orbit
from sv3d_jax.io.outputs import OutputFolder
from sv3d_jax.io.scenes import read_views
from sv3d_jax.io.scratch import read_arrays, write_arrays
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.progress import NullProgress
from sv3d_jax.train.data.check import shard_defects
from sv3d_jax.train.data.records import DamagedRecord, read_index
from sv3d_jax.train.data.render import _named_meshes
from sv3d_jax.train.data.shards import OrbitShards
from sv3d_jax.weights.checkpoint import SavedTree, save_leaves
from sv3d_jax.weights.safetensors_file import SafetensorsFile
from sv3d_jax.weights.shards import open_files
from tests.io.mutations import damaged, is_finite, listing
from tests.io.scene_files import write_colmap, write_transforms
from tests.weights.files import write_tensors

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 48, 3), np.uint8)
SETTINGS = {"verb": "example", "steps": 50}


@dataclass(frozen=True)
class Format:
    """How a format is written into a folder, which of its files are damaged, and how it is read."""

    write: Callable[[Path], Any]
    damaged: dict[str, str]  # file -> kind of mutations
    read: Callable[[Path], Any]
    error: type[Exception] = InputError


def picture(name: str, **options) -> Format:
    def write(folder: Path) -> None:
        Image.fromarray(PIXELS).save(folder / name, **options)

    return Format(write, {name: "binary"}, lambda folder: read_picture(folder / name).rgb)


def textured_mesh() -> Mesh:
    """A tetrahedron with texture, colours and normals left to the writer."""
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]], np.int32)
    return Mesh(vertices, faces, uv=RNG.random((4, 2)).astype(np.float32), texture=PIXELS[:8, :8])


def write_gltf(folder: Path) -> None:
    """The textured mesh as glTF with its buffer beside it."""
    write_glb(folder / "mesh.glb", textured_mesh())
    data = (folder / "mesh.glb").read_bytes()
    length = int.from_bytes(data[12:16], "little")
    document = json.loads(data[20 : 20 + length])
    document["buffers"][0]["uri"] = "mesh.bin"
    (folder / "mesh.gltf").write_text(json.dumps(document))
    (folder / "mesh.bin").write_bytes(data[20 + length + 8 :])
    (folder / "mesh.glb").unlink()


def write_plain_ply(folder: Path) -> None:
    """A tetrahedron as PLY in text, with colours."""
    mesh, kinds = textured_mesh(), ("x", "y", "z")
    lines = ["ply", "format ascii 1.0", "element vertex 4", *(f"property float {name}" for name in kinds)]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue")]
    lines += ["element face 4", "property list uchar int vertex_indices", "end_header"]
    lines += [f"{x:g} {y:g} {z:g} 10 20 30" for x, y, z in mesh.vertices]
    lines += [f"3 {a} {b} {c}" for a, b, c in mesh.faces]
    (folder / "mesh.ply").write_text("\n".join(lines) + "\n")


def mesh_values(path: Path) -> list[Any]:
    mesh = read_mesh(path)
    return [mesh.vertices[mesh.faces], mesh.vertex_colors, mesh.uv, mesh.normals, mesh.texture]


def mesh(
    name: str, write: Callable[[Path], Any], beside: dict[str, str] | None = None, kind="binary"
) -> Format:
    return Format(write, {name: kind, **(beside or {})}, lambda folder: mesh_values(folder / name))


def write_transforms_orbit(folder: Path) -> None:
    frames = [
        {"transform_matrix": pose.tolist(), "file_path": f"images/{index}.png"}
        for index, pose in enumerate(sine_orbit(4).camera_to_world)
    ]
    write_transforms(folder, {"camera_angle_x": 0.6, "w": 8, "h": 8, "k1": 0.01, "frames": frames})


def write_colmap_text(folder: Path) -> None:
    write_colmap(folder, sine_orbit(4).camera_to_world)
    (folder / "images").mkdir()
    for index in range(4):
        Image.new("RGB", (8, 8), (10 * index, 20, 30)).save(folder / f"images/{index}.png")


def write_colmap_binary(folder: Path) -> None:
    """The same model in COLMAP's binary form."""
    import struct

    write_colmap_text(folder)
    model = folder / "sparse" / "0"
    rows = [line.split() for line in (model / "images.txt").read_text().split("\n")[::2] if line]
    cameras = struct.pack("<QIiQQ4d", 1, 1, 1, 8, 8, 10.0, 10.0, 4.0, 4.0)
    images = struct.pack("<Q", len(rows))
    for number, *pose, camera, name in rows:
        images += struct.pack("<I7dI", int(number), *map(float, pose), int(camera))
        images += name.encode() + b"\0" + struct.pack("<Q", 0)
    for name, content in {"cameras": cameras, "images": images}.items():
        (model / f"{name}.txt").unlink()
        (model / f"{name}.bin").write_bytes(content)


def scene(write: Callable[[Path], Any], names: tuple[str, ...], kind: str) -> Format:
    return Format(write, dict.fromkeys(names, kind), lambda folder: without_hints(read_views(folder, up="z")))


def without_hints(frames: Any) -> list[Any]:
    return [frames.images, frames.alphas, frames.camera_to_world, frames.focal_px, frames.center_px]


def write_stages(folder: Path) -> None:
    with OutputFolder(folder / "out", SETTINGS) as run:
        run.finish_stage("orbit", [], {"seed": 3, "views": [1, 2]})
        run.write_run_json(seeds=[3])


def open_again(folder: Path) -> Any:
    """A run on an earlier folder: finished stages and their facts, or none if their record is damaged."""
    with OutputFolder(folder / "out", SETTINGS) as run:
        return run.stage_facts("orbit") if run.done and run.stage_done("orbit") else None


def write_weights(folder: Path) -> None:
    write_tensors(folder / "a.safetensors", {"x.weight": np.ones((2, 3), np.float32), "x.bias": np.zeros(2)})
    weight_map = {"x.weight": "a.safetensors", "x.bias": "a.safetensors"}
    (folder / "a.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def tensors_of(folder: Path) -> list[Any]:
    file = SafetensorsFile(folder / "a.safetensors")
    return [file.read(name).nbytes for name in file.tensors]


def write_packed(folder: Path) -> None:
    from tests.train.data.packed import numbered_record, write_shards

    write_shards(folder, [numbered_record(number, 5) for number in range(3)], per_shard=2)


def shard_values(folder: Path) -> list[str]:
    """What `data check` finds; a whole record of a damaged file is still read by its checksum."""
    defects = list(shard_defects(folder, NullProgress()))
    with contextlib.suppress(InputError):
        shards = OrbitShards(folder)
        for number in range(len(shards)):
            with contextlib.suppress(DamagedRecord):
                assert is_finite(shards[number].latents)
    return defects


def write_checkpoint(folder: Path) -> None:
    from sv3d_jax.train.checkpoints import Checkpoints

    with Checkpoints(folder / "checkpoints") as checkpoints:
        state = {"ema": {"kernel": np.ones((2, 3), np.float32)}, "step": np.int32(3)}
        checkpoints.save(
            3, jax.tree.map(jnp.asarray, state), {"objective": "unet", "model": {"name": "tiny"}}
        )
        checkpoints.wait()


def checkpoint_values(folder: Path) -> Any:
    from sv3d_jax.train.checkpoints import checkpoint_steps, read_checkpoint

    steps = checkpoint_steps(folder / "checkpoints")
    return read_checkpoint(folder / "checkpoints", steps[-1]) if steps else None


def orbax_values(folder: Path) -> list[Any]:
    tree = SavedTree(folder / "params")
    return list(tree.read(tree.leaves))


def write_hdr(folder: Path) -> None:
    rows = b"".join(
        bytes([2, 2, 0, 16]) + b"".join(bytes([128 + 16, value]) for value in (row + 1, 64, 32, 129))
        for row in range(6)
    )
    (folder / "sky.hdr").write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 6 +X 16\n" + rows)


def write_list(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / f"{name}.glb").write_bytes(b"glTF")
    (folder / "list.txt").write_text("one.glb\n\ntwo.glb\n")


def masked_orbit(folder: Path) -> None:
    images = RNG.integers(0, 256, (4, 12, 12, 4), np.uint8)
    write_orbit(folder, images, sine_orbit(4))


MODEL_TOML = ModelConfig().to_toml()
SETTINGS_TOML = 'orbit = "sine"\nelevation = 12.5\nframes = 2\nseed = 3\nazimuths = [1.0, 2.5]\n'
PICTURE = {"images": ["a.png"], "output": "out"}
FORMATS = {
    "png": picture("a.png"),
    "jpeg": picture("a.jpg"),
    "webp": picture("a.webp"),
    "avif": picture("a.avif"),
    "tiff": picture("a.tif"),
    "jpeg2000": picture("a.jp2"),
    "mask": Format(
        lambda folder: Image.fromarray(PIXELS[..., 0]).save(folder / "a.png"),
        {"a.png": "binary"},
        lambda folder: read_mask(folder / "a.png").coverage,
    ),
    "glb": mesh("mesh.glb", lambda folder: write_glb(folder / "mesh.glb", textured_mesh())),
    "gltf": mesh("mesh.gltf", write_gltf, {"mesh.bin": "binary"}, "json"),
    "obj": mesh(
        "mesh.obj",
        lambda folder: write_obj(folder / "mesh.obj", textured_mesh()),
        {"mesh.mtl": "text", "mesh.png": "binary"},
        "text",
    ),
    "ply": mesh("mesh.ply", lambda folder: write_ply(folder / "mesh.ply", textured_mesh())),
    "ply in text": mesh("mesh.ply", write_plain_ply, kind="text"),
    "hdr": Format(write_hdr, {"sky.hdr": "binary"}, lambda folder: read_environment(folder / "sky.hdr")),
    "orbit": Format(masked_orbit, {"cameras.json": "json"}, read_orbit),
    "camera path": Format(
        masked_orbit, {"cameras.json": "json"}, lambda folder: vars(read_camera_path(folder))
    ),
    "transforms.json": scene(write_transforms_orbit, ("transforms.json",), "json"),
    "colmap text": scene(write_colmap_text, ("sparse/0/cameras.txt", "sparse/0/images.txt"), "text"),
    "colmap binary": scene(write_colmap_binary, ("sparse/0/cameras.bin", "sparse/0/images.bin"), "binary"),
    "mesh list": Format(write_list, {"list.txt": "text"}, lambda folder: _named_meshes(folder / "list.txt")),
    "safetensors": Format(write_weights, {"a.safetensors": "binary"}, tensors_of, WeightsError),
    "weights index": Format(
        write_weights,
        {"a.safetensors.index.json": "json"},
        lambda folder: list(open_files(folder).tensors),
        WeightsError,
    ),
    "model.toml": Format(
        lambda folder: (folder / "model.toml").write_text(MODEL_TOML),
        {"model.toml": "text"},
        lambda folder: ModelConfig.from_file(folder / "model.toml").name,
        WeightsError,
    ),
    "settings": Format(
        lambda folder: (folder / "a.toml").write_text(SETTINGS_TOML),
        {"a.toml": "text"},
        lambda folder: vars(load_config(OrbitConfig, folder / "a.toml", PICTURE).camera_path()),
    ),
    "shard index": Format(write_packed, {"index.json": "json"}, read_index),
    "shard": Format(write_packed, {"orbits-00000.arrayrecord": "binary"}, shard_values),
    "checkpoint": Format(
        write_checkpoint,
        {
            f"checkpoints/3/{name}": "json"
            for name in (
                "record/metadata",
                "state/_METADATA",
                "state/array_metadatas/process_0",
                "_CHECKPOINT_METADATA",
            )
        },
        checkpoint_values,
        CheckpointError,
    ),
    "orbax": Format(
        lambda folder: save_leaves(folder / "params", [(("unet", "kernel"), np.ones((2, 3), np.float32))]),
        {"params/state/_METADATA": "json", "params/_CHECKPOINT_METADATA": "json"},
        orbax_values,
        WeightsError,
    ),
    "stages": Format(write_stages, {"out/.stages.json": "json", "out/run.json": "json"}, open_again),
    "scratch": Format(
        lambda folder: write_arrays(folder / "a.npz", {"x": np.ones((3, 4)), "y": np.arange(5)}),
        {"a.npz": "binary"},
        lambda folder: read_arrays(folder / "a.npz"),
    ),
}
OWN_FILES = (
    "stages",
    "scratch",
)  # files of our own that are made again, so that they may be removed or written


@cache
def content(name: str) -> dict[str, bytes]:
    """The files of a format, undamaged."""
    with TemporaryDirectory() as folder:
        FORMATS[name].write(Path(folder))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", FORMATS)
def test_undamaged_files_are_read(name, tmp_path):
    FORMATS[name].write(tmp_path)
    assert is_finite(FORMATS[name].read(tmp_path))


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_ends_in_a_value_or_a_documented_error(name, count, tmp_path):
    files, form = content(name), FORMATS[name]
    folder = tmp_path / "files"

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data):
        target = data.draw(st.sampled_from(sorted(form.damaged)))
        for file, original in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.draw(damaged(original, form.damaged[file])) if file == target else original)
        before = listing(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                value = form.read(folder)
            except form.error as error:
                value = None
                str(error).encode("utf-8", "surrogateescape")  # what is printed
        assert is_finite(value)
        assert listing(tmp_path) == before or name in OWN_FILES

    check()
