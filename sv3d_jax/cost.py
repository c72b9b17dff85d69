"""The cost of a function from its trace, without running it: FLOP of its matrix products and peak of its memory."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from sv3d_jax.arrays import Array, Params

# Calls of inner functions. Their outputs are values of the inner function, so they must not be counted twice.
CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_lin",
)


def step_flop_counter(loss: Callable[..., Array], params: Params) -> Callable[[Any], float]:
    """A function that counts the model FLOP of a training step on a batch: three times those of the loss.

    The backward pass has two products for each one of the forward pass; what rematerialisation computes again is not
    counted. One multiply-add is two FLOP. The loss is traced once for each shape of batch.
    """
    params, key = jax.eval_shape(lambda: (params, jax.random.key(0)))

    @functools.cache
    def count(structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> float:
        batch = jax.tree.unflatten(structure, leaves)
        return 3.0 * product_flop(jax.make_jaxpr(loss)(params, batch, key).jaxpr)

    def of(batch: Any) -> float:
        leaves, structure = jax.tree.flatten(batch)
        return count(structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves))

    return of


def product_flop(jaxpr: Jaxpr) -> float:
    """FLOP of all matrix products and convolutions, also inside loops and kernels. Other operations are not counted."""
    total = 0.0
    for equation in jaxpr.eqns:
        inner = [product_flop(each) for each in _inside(equation)]
        if equation.primitive.name == "cond":
            total += max(inner)
        elif equation.primitive.name == "pallas_call":
            total += sum(inner) * math.prod(equation.params["grid_mapping"].grid)
        else:
            total += sum(inner) * equation.params.get("length", 1)
        if equation.primitive.name == "dot_general":
            left = equation.invars[0].aval.shape
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
    return total


class LiveBytes(NamedTuple):
    """Bytes of the live values at the moment when they are most, without the arguments.

    `weights` are the results (gradients) and what depends on the parameters alone (copies in another precision).
    """

    activations: int
    weights: int

    @property
    def total(self) -> int:
        """Bytes of both."""
        return self.activations + self.weights


def live_bytes(function: Callable, params: Any, *arguments: Any) -> LiveBytes:
    """The peak of the live bytes of `function(params, *arguments)`, in the order in which it was traced.

    A value is live from the operation that computes it to its last use. The compiled program differs: fused operations
    store fewer values, and padding adds some bytes.
    """
    closed = jax.make_jaxpr(function)(params, *arguments)
    weights = set(closed.jaxpr.invars[: len(jax.tree.leaves(params))])
    return _peak(closed.jaxpr, weights)


def _peak(jaxpr: Jaxpr, weights: set) -> LiveBytes:
    """Peak of one jaxpr; `weights` are the arguments that are parameters."""
    last_use = {v: i for i, e in enumerate(jaxpr.eqns) for v in e.invars if not isinstance(v, Literal)}
    results = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    last_use |= dict.fromkeys(results, len(jaxpr.eqns))
    ends: dict[int, list] = {}
    for variable, index in last_use.items():
        ends.setdefault(index, []).append(variable)

    weights = weights | results  # and, below, what is computed from weights alone
    made: set = set()
    live = top = LiveBytes(0, 0)
    for index, equation in enumerate(jaxpr.eqns):
        sources = {v for v in equation.invars if not isinstance(v, Literal)}
        if sources and sources <= weights:
            weights |= set(equation.outvars)
        kept = [v for v in equation.outvars if v in last_use]
        outputs = _split(kept, weights)
        inner = _inner_peak(equation)
        if equation.primitive.name in CALLS:
            inner = max(0, inner - outputs.total)
        now = LiveBytes(live.activations + outputs.activations + inner, live.weights + outputs.weights)
        top = max(top, now, key=lambda at: at.total)
        made |= set(kept)
        ended = _split([v for v in ends.get(index, ()) if v in made], weights)
        live = LiveBytes(
            live.activations + outputs.activations - ended.activations,
            live.weights + outputs.weights - ended.weights,
        )
    return top


def _inner_peak(equation: Any) -> int:
    """Peak of the live bytes inside a call or one iteration of a loop, including its outputs."""
    return max((_peak(each, set()).total for each in _inside(equation)), default=0)


def _split(variables: list, weights: set) -> LiveBytes:
    shared = sum(_bytes(v) for v in variables if v in weights)
    return LiveBytes(sum(map(_bytes, variables)) - shared, shared)


def _inside(equation: Any) -> Iterator[Jaxpr]:
    """The jaxprs inside an equation: a called function, the body of a loop, branches."""
    for value in equation.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def _bytes(variable: Any) -> int:
    aval = variable.aval
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):  # keys of random numbers
        return 16
    return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize
