"""The mistakes of newcomers: each ends in a sentence and something to do, before jax is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
# Words, exit code, what the sentence says, what the hint says. The folder holds figure.png (cut out), photo.jpg (not),
# the folder `pictures` with one picture, `orbits` with the orbit `one`, `scene` without its picture, and `empty`.
MISTAKES = {
    "no output": ("generate figure.png", 2, "-o DIR is needed", "sv3d generate figure.png -o DIR"),
    "output first": ("generate out figure.png", 2, "-o DIR is needed", "sv3d generate figure.png -o out"),
    "output without its flag": ("reconstruct orbits out", 2, "-o DIR", "sv3d reconstruct orbits -o out"),
    "picture as output": (
        "orbit -o figure.png pictures",
        2,
        "figure.png is a file",
        "after -o goes a folder",
    ),
    "picture as output of training": ("train -o figure.png", 2, "figure.png is a file", "after -o"),
    "picture for an orbit": ("reconstruct figure.png -o out", 2, "is a picture", "sv3d generate figure.png"),
    "pictures for an orbit": ("reconstruct pictures -o out", 2, "cameras.json", "sv3d generate pictures"),
    "folder above an orbit": ("reconstruct orbits -o out", 2, "cameras.json", "an orbit in orbits/one"),
    "folder inside an orbit": (
        "reconstruct orbits/one/frames -o out",
        2,
        "cameras.json",
        "orbit in orbits/one",
    ),
    "orbit for a picture": (
        "generate orbits/one -o out",
        2,
        "orbits/one is an orbit",
        "sv3d reconstruct orbits/one -o DIR",
    ),
    "pictures of an orbit": (
        "orbit orbits/one/frames -o out",
        2,
        "holds the pictures of the orbit orbits/one",
        "sv3d reconstruct orbits/one -o DIR",
    ),
    "orbit to import": (
        "data import orbits/one -o out",
        2,
        "is an orbit already",
        "sv3d data pack orbits/one -o DIR",
    ),
    "orbits to import": ("data import orbits -o out", 2, "holds orbits already", "sv3d data pack orbits -o"),
    "scene without its pictures": (
        "data import scene -o out -q",
        2,
        "does not exist",
        "none of the 1 pictures is there: copy them to where the scene names them",
    ),
    "results into the orbit": (
        "reconstruct orbits/one -o orbits/one",
        2,
        "holds the orbit, results need another folder",
        "sv3d reconstruct orbits/one -o one_mesh",
    ),
    "results into the orbit, overwritten": (
        "reconstruct orbits/one/cameras.json -o orbits/one --overwrite",
        2,
        "holds the orbit, results need another folder",
        "-o one_mesh",
    ),
    "output before the folder": ("reconstruct new orbits", 2, "-o DIR", "sv3d reconstruct orbits -o new"),
    "absent picture": ("generate nofolder -o out", 2, "no nofolder; looked in /", "there: figure.png, photo"),
    "misspelt picture": ("generate figur.png -o out", 2, "no figur.png;", "did you mean figure.png?"),
    "absent orbit": ("reconstruct no -o out", 2, "no no; looked in /", "orbits there: scene"),
    "absent orbit to pack": ("data pack no -o out", 2, "no no; looked in /", "sv3d orbit PICTURE -o DIR"),
    "mesh to pack": (
        "data pack orbits/box.glb -o out",
        2,
        "no orbit",
        "sv3d data render orbits/box.glb -o DIR",
    ),
    "scene to pack": ("data pack scene -o out", 2, "no orbit", "sv3d data import scene -o DIR"),
    "misspelt orbit": ("reconstruct orbits/on -o out", 2, "no orbits/on; ", "did you mean orbits/one?"),
    "absent data": ("data check nofolder", 2, "no nofolder; looked in /", "that sv3d data pack"),
    "nothing to check": ("data check empty", 2, "neither shards nor orbits", "cameras.json"),
    "pictures to check": (
        "data check pictures",
        2,
        "neither shards nor orbits",
        "sv3d orbit pictures -o DIR",
    ),
    "no elevation": (
        "cameras --elevation",
        2,
        "--elevation needs a number, or one for each of 21 frames",
        "--elevation 10",
    ),
    "no azimuths": ("cameras --azimuths", 2, "--azimuths needs a number for each of 21", "steps are even"),
    "empty folder": ("generate empty -o out", 2, "a folder without pictures", "pictures end in .png"),
    "picture for a mesh": ("data render figure.png -o out", 2, "not a mesh file", "sv3d orbit figure.png"),
    "folder without meshes": ("data render pictures -o out", 2, "holds no mesh", ".glb"),
    "no cut-out": ("generate photo.jpg -o out", 2, "neither an alpha channel", "--mask photo_mask.png"),
    "no weights": ("orbit figure.png -o out --weights no.safetensors", 3, "no weights", "hf download"),
    "no weights to convert": (
        "convert no.safetensors x",
        3,
        "no weights no.safetensors; searched: /",
        "hf download",
    ),
    "no weights to train with": ("train -o out --weights nothere", 3, "no weights nothere", "hf download"),
    "misspelt mini": (
        "orbit figure.png -o out --weights minni",
        3,
        "no weights minni; ",
        "did you mean mini?",
    ),
    "misspelt mini to convert": ("convert minni x.safetensors", 3, "no weights minni", "did you mean mini?"),
    "no pickle": (
        "orbit figure.png -o out --weights missing.ckpt",
        3,
        "searched: /",
        "--local-dir .; then the same command with --weights sv3d_p.safetensors",
    ),
    "picture for weights": (
        "orbit figure.png -o out --weights figure.png",
        3,
        "figure.png is a PNG picture, not a file of weights",
        "hf download",
    ),
    "photo to convert": ("convert photo.jpg x", 3, "photo.jpg is a JPEG picture", "hf download"),
    "address of a picture": (
        "orbit https://a.b/c.png -o out",
        2,
        " https://a.b/c.png is a web",
        "download it",
    ),
    "address of weights": (
        "orbit figure.png -o out --weights https://a.b/c",
        3,
        " https://a.b/c is a web",
        "download",
    ),
    "address to convert": (
        "convert https://a.b/c.safetensors out",
        3,
        " https://a.b/c.safetensors is",
        "download",
    ),
    "address of a mesh": (
        "data render https://a.b/c.glb -o out",
        2,
        " https://a.b/c.glb is a web",
        "download it",
    ),
    "no shards": ("train -o out --data.shards nothere", 2, "nothere", "sv3d data pack"),
    "no parent folder": ("orbit figure.png -o not/here", 5, "does not exist", "mkdir -p"),
    "disk full": ("FULL generate figure.png -o out", 5, "MB are free", "free some space"),
    "disk full in training": ("FULL train -o out", 5, "MB are free", "free some space"),
    "disk full in rendering": ("FULL data render orbits/box.glb -o out", 5, "MB are free", "free some space"),
}
SCENE = {"camera_angle_x": 0.6, "frames": [{"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}]}
SCRIPT = """
import contextlib, io, json, sys
sys.modules["jax"] = None  # importing it fails
from sv3d_jax import cutout
from sv3d_jax.cli import main
from sv3d_jax.io import outputs
cutout.has_rembg = lambda: False
free, ends = outputs.free_bytes, {}
for name, words in json.load(sys.stdin).items():
    outputs.free_bytes = (lambda path: 1000) if words[0] == "FULL" else free
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        code = main([word for word in words if word != "FULL"])
    ends[name] = [code, said.getvalue()]
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> tuple[Path, dict[str, tuple[int, str]]]:
    """The folder that all mistakes were made in, and the exit code and stderr of each."""
    place = tmp_path_factory.mktemp("mistakes")
    for folder in ("empty", "pictures", "orbits/one/frames"):
        (place / folder).mkdir(parents=True)
    (place / "orbits" / "one" / "cameras.json").write_text("{}")
    (place / "orbits" / "box.glb").touch()
    (place / "scene").mkdir()
    (place / "scene" / "transforms.json").write_text(json.dumps(SCENE))
    (place / "figure.png").write_bytes((ROOT / "examples" / "figure.png").read_bytes())
    (place / "pictures" / "figure.png").write_bytes((ROOT / "examples" / "figure.png").read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(place / "photo.jpg")
    commands = json.dumps({name: words.split() for name, (words, *_) in MISTAKES.items()})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=commands,
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_a_sentence_and_something_to_do_without_jax(ends, name):
    _, code, sentence, advice = MISTAKES[name]
    found, said = ends[1][name]
    assert found == code, said
    first, hint, *rest = said.splitlines()
    assert first.startswith("sv3d: ") and sentence in first and hint.startswith("hint: ")
    assert advice in "\n".join([hint, *rest])


def test_mistakes_leave_nothing_behind(ends):
    kept = {"empty", "pictures", "orbits", "scene", "figure.png", "photo.jpg"}
    assert {path.name for path in ends[0].iterdir()} == kept
