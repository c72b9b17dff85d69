"""Metrics of a run as it goes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Meter:
    """Speed since the last reading."""

    steps: int = 0
    images: int = 0
    waited_s: float = 0.0
    spent_s: float = 0.0

    def add(self, images: int, waited_s: float, spent_s: float) -> None:
        """Count a step that took spent_s, waited_s of them for its data."""
        self.steps += 1
        self.images += images
        self.waited_s += waited_s
        self.spent_s += spent_s

    def take(self) -> dict[str, float]:
        """Images a second, and mean seconds a step; then begin anew."""
        report = {
            "images_per_s": round(self.images / self.spent_s, 2),
            "step_s": round(self.spent_s / self.steps, 4),
            "data_s": round(self.waited_s / self.steps, 4),
        }
        self.__init__()
        return report


class MetricsLog:
    """`metrics.jsonl` of a run; lines beyond the step that a run resumes from are dropped."""

    def __init__(self, directory: Path, step: int):
        self._path = directory / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        self._path.write_text("".join(f"{line}\n" for line in kept))

    def __enter__(self) -> "MetricsLog":
        self._file = open(self._path, "a", buffering=1)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, **values: Any) -> None:
        """Add one line."""
        self._file.write(json.dumps(values) + "\n")
