"""Compare computed arrays with the stored ones of a reference file, tensor by tensor."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Measure = Callable[[np.ndarray, np.ndarray], float]


def relative(got: np.ndarray, stored: np.ndarray) -> float:
    """Largest difference over the largest stored magnitude."""
    return absolute(got, stored) / (np.abs(stored).max() or 1.0)


def relative_per_step(got: np.ndarray, stored: np.ndarray) -> float:
    """The worst `relative` of the entries along the first axis, which differ in scale."""
    return max(relative(*pair) for pair in zip(got, stored, strict=True))


def relative_per_value(got: np.ndarray, stored: np.ndarray) -> float:
    """Largest difference over the magnitude of the same stored value; a stored zero must be met exactly."""
    difference = np.abs(got - stored)
    scale = np.where(stored == 0, np.where(difference == 0, 1.0, 0.0), np.abs(stored))
    return float(
        np.max(np.divide(difference, scale, out=np.full(difference.shape, np.inf), where=scale != 0))
    )


def absolute(got: np.ndarray, stored: np.ndarray) -> float:
    """Largest difference."""
    return float(np.abs(got - stored).max())


@dataclass(frozen=True)
class Tolerance:
    """The largest error allowed, and how the error is measured."""

    limit: float
    measure: Measure = relative


EXACT = Tolerance(0.0, absolute)


@dataclass(frozen=True)
class Record:
    """One line of `parity.json`."""

    file: str
    tensor: str
    path: str
    error: float
    tolerance: float

    @property
    def failed(self) -> bool:
        return not self.error <= self.tolerance


def compare(got: np.ndarray, stored: np.ndarray, tolerance: Tolerance) -> float:
    """The error of `got`; a wrong shape or a value that is not a number counts as the largest error there is."""
    if np.shape(got) != stored.shape:
        return sys.float_info.max
    error = tolerance.measure(np.asarray(got, np.float64), stored.astype(np.float64)) if stored.size else 0.0
    return float(error) if np.isfinite(error) else sys.float_info.max
