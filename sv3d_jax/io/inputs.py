"""Input files of a run are kept apart from the files that it writes, so that no run destroys what it was given."""

import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from sv3d_jax.errors import InputError
from sv3d_jax.io.outputs import SCRATCH_FOLDER

# What every orbit folder is given, relative to it; further names may be patterns as well.
ORBIT_FILES = ("frames/*", "alphas/*", "cameras.json", "contact.png", f"{SCRATCH_FOLDER}/*")


def refuse_overwriting(
    inputs: Iterable[Path], directories: Iterable[Path], further: Iterable[str] = ()
) -> None:
    """Raise InputError if one of a run's input files is among those that it will write into its orbit folders.

    These are `ORBIT_FILES`, and `further` names or patterns of the same kind. A link counts at its own place and at
    that of its file. To be called before anything is written.
    """
    outputs = {Path(os.path.realpath(directory)) for directory in directories}
    patterns = [*ORBIT_FILES, *further]
    for file in inputs:
        for place in (Path(os.path.realpath(file.parent), file.name), Path(os.path.realpath(file))):
            for folder in outputs.intersection(place.parents):
                name = place.relative_to(folder).as_posix().casefold()  # some disks ignore case
                if any(fnmatchcase(name, pattern) for pattern in patterns):
                    raise InputError(
                        f"{file} is an input of this run, which would write its own results there",
                        hint="give another folder with -o, or move the input out of the output folder",
                    )
