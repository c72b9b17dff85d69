"""What files and folders hold, told from their names alone, and the errors for those that hold something else."""

import difflib
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sv3d_jax.errors import InputError
from sv3d_jax.io.cameras_file import CAMERAS_FILE
from sv3d_jax.io.images import PICTURE_SUFFIXES
from sv3d_jax.io.meshes import MESH_SUFFIXES
from sv3d_jax.io.names import exists, refuse_address
from sv3d_jax.io.outputs import STAGES_FILE
from sv3d_jax.io.scenes import find_scene, find_scenes

MAX_SHOWN = 3
MAX_SEARCHED = 1000  # files of a folder, for a hint
OF_AN_ORBIT = ("frames", "alphas")  # folders inside an orbit that hold its pictures


@dataclass(frozen=True)
class Kind:
    """A kind of input: whether a path is one, and what to do where there is none."""

    accepts: Callable[[Path], bool]
    advice: str


def orbit_of(path: Path) -> Path | None:
    """The orbit that a folder is, or whose pictures it holds; None if it is no part of one."""
    if exists(path / CAMERAS_FILE) or (path.is_dir() and find_scene(path) is not None):
        return path
    whole = path.resolve()
    if whole.name in OF_AN_ORBIT and exists(whole.parent / CAMERAS_FILE):
        return whole.parent if path.parent == path else path.parent
    return None


def find_orbits(paths: Sequence[Path]) -> dict[str, Path]:
    """Orbit folders by name, sorted within each path; a path is an orbit folder or contains some at any depth.

    Raises InputError if a path contains none, or if two have the same name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if (path / CAMERAS_FILE).is_file():
            orbits = {path.absolute().name: path}
        else:
            places = sorted(file.parent for file in path.rglob(CAMERAS_FILE))
            orbits = {place.relative_to(path).as_posix(): place for place in places}
        if not orbits:
            raise InputError(f"{path} holds no orbit", hint=orbit_advice(path))
        for name, orbit in orbits.items():
            if found.setdefault(name, orbit) != orbit:
                raise InputError(f"two orbits are called {name}: {found[name]} and {orbit}")
    return found


def refuse_orbits(paths: Sequence[Path]) -> None:
    """Raise InputError for a path that holds orbit folders and no scene of another program."""
    for path in paths:
        folder = path.parent if path.name == CAMERAS_FILE else path
        if exists(folder / CAMERAS_FILE) or (not find_scenes(path) and any(folder.rglob(CAMERAS_FILE))):
            what = "is an orbit" if exists(folder / CAMERAS_FILE) else "holds orbits"
            raise InputError(
                f"{path} {what} already and needs no import",
                hint=f"sv3d data pack {shlex.quote(str(folder))} -o DIR reads it as it is",
            )


def check_data(folder: Path) -> None:
    """Raise InputError for what is not a folder of shards or of orbits, finished or not."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", hint="give shards, an orbit, or a folder of orbits")
    if not _is_packed(folder) and not any(folder.rglob(CAMERAS_FILE)) and not any(folder.rglob(STAGES_FILE)):
        raise InputError(f"{folder} holds neither shards nor orbits", hint=orbit_advice(folder))


def orbit_advice(path: Path) -> str:
    """The command that makes orbits of what a path without any holds."""
    files = [path] if path.is_file() else list(islice(path.rglob("*"), MAX_SEARCHED))
    verbs = {"data render": MESH_SUFFIXES, "orbit": PICTURE_SUFFIXES}
    found = [verb for verb, ends in verbs.items() if any(file.suffix.lower() in ends for file in files)]
    if find_scenes(path):
        found.insert(0, "data import")
    if not found:
        return f"an orbit is a folder with a {CAMERAS_FILE}"
    return f"sv3d {found[0]} {shlex.quote(str(path))} -o DIR"


def absent(path: Path, kind: str) -> InputError:
    """The error for an input that does not exist: where was looked, and which inputs of its kind are there.

    Raises InputError for a web address.
    """
    refuse_address(path)
    folder, known = path.parent, KINDS[kind]
    while not folder.is_dir():
        folder = folder.absolute().parent
    beside = islice(folder.iterdir(), MAX_SEARCHED) if folder == path.parent else ()
    names = sorted(item.name for item in beside if item.name[0] != "." and known.accepts(item))
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        hint = f"did you mean {folder / close[0]}?"
    elif names:
        hint = f"{kind} there: {shortened([str(folder / name) for name in names])}"
    else:
        hint = known.advice
    return InputError(f"there is no {path}; looked in {folder.absolute()}", hint=hint)


def shortened(names: Iterable[str], separator: str = ", ") -> str:
    """The first three of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return separator.join(names[:MAX_SHOWN]) + more


def _is_orbit(path: Path) -> bool:
    return path.is_dir() and orbit_of(path) is not None


def _is_packed(path: Path) -> bool:
    return any(path.glob("*.arrayrecord*")) or (path.is_dir() and exists(path / "index.json"))


def _ends(suffixes: Sequence[str]) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes and path.is_file()


def _holds(suffixes: Sequence[str]) -> Callable[[Path], bool]:
    """Whether a path is a file with such an end, or a folder with one that is not an orbit."""
    is_one = _ends(suffixes)
    return lambda path: (
        is_one(path)
        or (
            path.is_dir()
            and orbit_of(path) is None
            and any(map(is_one, islice(path.iterdir(), MAX_SEARCHED)))
        )
    )


KINDS = {
    "pictures": Kind(_holds(PICTURE_SUFFIXES), "name a picture, or a folder of pictures"),
    "masks": Kind(_ends(PICTURE_SUFFIXES), "name a picture that is white where the object is"),
    "orbits": Kind(_is_orbit, "sv3d orbit PICTURE -o DIR makes an orbit"),
    "orbit folders": Kind(
        lambda path: exists(path / CAMERAS_FILE), "sv3d orbit PICTURE -o DIR makes an orbit"
    ),
    "scenes": Kind(
        lambda path: find_scene(path) is not None,
        "name a folder with a transforms.json of Blender or nerfstudio, or a COLMAP model",
    ),
    "meshes": Kind(_holds(MESH_SUFFIXES), "sv3d data objects -o DIR makes meshes"),
    "environment maps": Kind(_ends((".hdr", ".exr")), "name a .hdr or .exr file"),
    "shards and orbits": Kind(
        lambda path: exists(path / CAMERAS_FILE) or _is_packed(path),
        "name a folder that sv3d data pack or sv3d orbit made",
    ),
}
