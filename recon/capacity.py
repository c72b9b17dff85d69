"""Array sizes that a compiled step must know beforehand, and that grow where they turn out too small.

Shapes are static under jit, so a step works in arrays of given sizes. Where the data need more rows than an array has,
the step leaves some of them out and reports an overflow. The fit then doubles that size and repeats the whole call from
the state before it, so no accepted step ever dropped data.

A `GrowingCapacity` is a field of the fit's state. So it is saved with the state, and a resumed fit goes on with the
sizes that the interrupted one had reached.
"""

import math
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

SMALLEST = 2**12  # rows; below this, sizes are multiples of an eighth of it


class GrowingCapacity(NamedTuple):
    """Sizes of the arrays of a step, and which of them were too small in the current call."""

    sizes: Any  # a named tuple of int32 numbers
    overflow: Any  # the same named tuple of booleans

    @classmethod
    def of(cls, sizes: Any) -> "GrowingCapacity":
        """A capacity of these sizes (a named tuple of integers), without overflow."""
        return cls(
            jax.tree.map(jnp.int32, sizes),
            jax.tree.map(lambda _: jnp.zeros((), bool), sizes),
        )

    def static(self) -> Any:
        """The sizes as Python integers, to be closed over by a compiled step. Not for use under jit."""
        return type(self.sizes)(*map(int, self.sizes))

    def with_overflow(self, overflow: Any) -> "GrowingCapacity":
        """The same sizes, with what one more step found too small."""
        return self._replace(overflow=jax.tree.map(jnp.logical_or, self.overflow, overflow))


class HasCapacity(Protocol):
    """The state of a fit, a named tuple that has a capacity among its fields."""

    @property
    def capacity(self) -> GrowingCapacity:
        """Sizes of the arrays of a step."""
        ...

    def _replace(self, **changes: Any) -> Any: ...


S = TypeVar("S", bound=HasCapacity)


def grow_on_overflow(before: S, after: S) -> S | None:
    """The state before a call with double of each size that overflowed in it, None where nothing did.

    This is the `retry` hook of a fit whose state has a capacity.
    """
    sizes, overflow = before.capacity.sizes, after.capacity.overflow
    if not any(overflow):
        return None
    grown = jax.tree.map(lambda size, is_short: size * (1 + is_short), sizes, overflow)
    return before._replace(capacity=before.capacity._replace(sizes=grown))


def shared_size(count: float) -> int:
    """`count` rounded up to one of few sizes, four to each doubling, so that objects share compiled programs."""
    block = max(SMALLEST, 1 << (math.ceil(count) - 1).bit_length()) // 8
    return block * math.ceil(count / block)


def padded(rows: np.ndarray) -> np.ndarray:
    """The rows, and zeros up to the size of `shared_size`, so that meshes of similar size share compiled programs."""
    return np.concatenate([rows, np.zeros((shared_size(len(rows)) - len(rows), *rows.shape[1:]), rows.dtype)])


def whole_blocks(count: float, block: int = SMALLEST) -> int:
    """`count` rounded up to a multiple of `block`."""
    return block * math.ceil(count / block)
