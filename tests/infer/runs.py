"""Runs of the orbit verb on a tiny model, and what they leave in a folder."""

from pathlib import Path

from sv3d_jax.cli import main

FRAMES = ("--frames", "5", "--num-steps", "2", "--format", "gif", "--quiet")


def orbit(place: Path, *words: str | Path) -> int:
    """The exit status of `sv3d orbit` with these words, on the weights in `place`."""
    return main(["orbit", "--weights", str(place / "tiny"), *FRAMES, *map(str, words)])


def files_with_times(folder: Path) -> dict[Path, int]:
    """Files of a run and when each was last written."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {file: file.stat().st_mtime_ns for file in files}
