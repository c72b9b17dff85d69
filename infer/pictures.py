"""The pictures of a run: those that are named and those in folders, prepared for a model; unusable ones told apart."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from sv3d_jax.cutout import Remover
from sv3d_jax.errors import InputError
from sv3d_jax.infer.config import OrbitConfig
from sv3d_jax.io.folders import orbit_of
from sv3d_jax.io.images import PICTURE_SUFFIXES, read_mask, read_picture
from sv3d_jax.io.outputs import RUN_FILE
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.preprocess import PreparedImage, prepare_for
from sv3d_jax.progress import Progress


@dataclass(frozen=True)
class FoundPicture:
    """A picture file, and whether it was found in a folder rather than named."""

    path: Path
    in_folder: bool = False
    others: tuple[Path, ...] = ()  # of the same folder and name, in the order in which they are taken instead

    @property
    def name(self) -> str:
        """The name of its results among those of others: its own without the suffix, unless that has a meaning."""
        stem = self.path.stem
        return stem if stem.strip(".") and stem != RUN_FILE else self.path.name


@dataclass(frozen=True)
class RunPicture:
    """A picture of a run as the model sees it. `folder` is below the output folder: empty for a single picture."""

    path: Path
    mask: Path | None
    folder: str
    prepared: PreparedImage


def prepare_pictures(
    config: OrbitConfig, model: ModelConfig, size: int, progress: Progress
) -> tuple[list[RunPicture], list[str]]:
    """The pictures of a run, and why others are left out: unusable ones of folders, or all such with --skip-broken.

    Raises an InputError that says of every other unusable picture what is wrong with it, or of all if none is usable.
    """
    found, left_out = find_pictures(config.images), []
    _check_one_each(config, found)
    several = len(found) > 1 or found[0].in_folder
    if len(found) > 1:
        progress.stage("read", total=len(found))
    usable, refused, remover = [], [], Remover()
    for picture, mask in zip_longest(found, config.mask):
        try:
            path, prepared = _first_usable(config, model, size, picture, mask, remover, left_out)
            usable.append(RunPicture(path, mask, picture.name if several else "", prepared))
        except InputError as error:
            if len(found) == 1 and not left_out:
                raise
            refused.append(error) if not (picture.in_folder or config.skip_broken) else left_out.append(
                error.message
            )
        progress.advance()
    if refused or not usable:
        reasons = [error.message for error in refused] + left_out
        raise InputError(
            "\n  ".join([f"{len(found) - len(usable)} of {len(found)} pictures cannot be used:", *reasons]),
            hint="--skip-broken goes on with the others"
            if usable
            else "none is left: see what is wrong with each",
        )
    for reason in left_out:
        progress.note(f"left out: {reason}")
    return usable, left_out


def find_pictures(given: Sequence[Path]) -> list[FoundPicture]:
    """The picture files that paths stand for; those of one name in a folder are one picture.

    A folder stands for the pictures directly inside, sorted by name; hidden files are no pictures. Raises InputError
    for a folder without pictures, or if two results would have the same name.
    """
    found: dict[str, FoundPicture] = {}
    for path in given:
        for picture in _in_folder(path) if path.is_dir() else [FoundPicture(path)]:
            other = found.setdefault(picture.name, picture)
            if other is picture:
                continue
            if picture.in_folder and other.path.parent == picture.path.parent:
                found[picture.name] = replace(other, others=(*other.others, picture.path))
                continue
            raise InputError(
                f"several pictures are named {picture.name}, so their folders would have the same name:"
                f" {other.path} and {picture.path}",
                hint="rename one, or run the pictures one by one",
            )
    return list(found.values())


def _in_folder(folder: Path) -> Iterator[FoundPicture]:
    """The pictures directly inside a folder, by name; of the same name the suffix that comes first in the list."""
    if (orbit := orbit_of(folder)) is not None:
        what = "is an orbit" if orbit == folder else f"holds the pictures of the orbit {orbit}"
        raise InputError(f"{folder} {what}", hint=f"sv3d reconstruct {shlex.quote(str(orbit))} -o DIR")
    files = [
        file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.name[0] != "."
    ]
    if not files:
        raise InputError(
            f"{folder} is a folder without pictures",
            hint=f"pictures end in {', '.join(PICTURE_SUFFIXES)}",
        )
    for file in sorted(
        files, key=lambda file: (file.stem, PICTURE_SUFFIXES.index(file.suffix.lower()), file.name)
    ):
        yield FoundPicture(file, in_folder=True)


def _check_one_each(config: OrbitConfig, found: list[FoundPicture]) -> None:
    """Raise InputError for a box or masks that cannot belong to the pictures that were found."""
    flag = "--mask" if config.mask else "--box" if config.box else ""
    if flag and any(picture.in_folder for picture in found):
        raise InputError(
            f"{flag} is for pictures that are named, {found[0].path.parent} is a folder",
            hint="name the pictures; or save them with a transparent background",
        )


def _first_usable(
    config: OrbitConfig,
    model: ModelConfig,
    size: int,
    picture: FoundPicture,
    mask: Path | None,
    remover: Remover,
    left_out: list[str],
) -> tuple[Path, PreparedImage]:
    """The first file of a picture that can be used, prepared; `left_out` is told why each of the others is not.

    Raises the InputError of the last file if none can be used.
    """
    *before, last = (picture.path, *picture.others)
    for index, path in enumerate(before):
        try:
            prepared = _prepared(config, model, size, path, mask, remover)
        except InputError as error:
            left_out.append(error.message)
            continue
        unused = [*before[index + 1 :], last]
        left_out += [f"{other}: {path.name} is taken, which has the same name" for other in unused]
        return path, prepared
    return last, _prepared(config, model, size, last, mask, remover)


def _prepared(
    config: OrbitConfig, model: ModelConfig, size: int, path: Path, mask: Path | None, remover: Remover
) -> PreparedImage:
    """The picture as the model sees it. Raises InputError where it cannot be used."""
    given = None if mask is None else read_mask(mask)
    how = (config.background, config.frame_ratio, given, config.box, remover)
    return prepare_for(model, read_picture(path), size, *how)
