"""Split a function into parts, so that what depends only on its first arguments is computed once.

A sampler calls its network with the same parameters and conditioning at every step. What depends on these alone, such
as scaled kernels and embeddings, need not be computed again in each step. `hoist` finds these operations in the traced
function (loop-invariant code motion), so the networks need no code for it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend import core

from sv3d_jax.arrays import Array

Part = Callable[..., Any]

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
# Operations that are repeated instead of stored if their result is larger than their inputs: they cost almost nothing.
_CHEAP = {"broadcast_in_dim", "convert_element_type", "iota", "reshape"}


def hoist(function: Callable[..., Any], *groups: tuple) -> list[Part]:
    """Split `function(*groups[0], *groups[1], ...)` into one part for each group of arguments.

    Part k computes what depends on the groups 0 to k only. It takes these groups, then the lists that the parts before
    it returned, and returns a list of the values that later parts need; the last part returns the function's result.
    `groups` hold arrays or their `ShapeDtypeStruct`s.
    """
    flat, result = _flat_jaxpr(function, groups)
    part_of_input = [part for part, group in enumerate(groups) for _ in jax.tree.leaves(group)]
    stage = dict(zip(flat.jaxpr.invars, part_of_input, strict=True)) | dict.fromkeys(flat.jaxpr.constvars, 0)
    maker: dict[core.Var, core.JaxprEqn] = {}
    for eqn in flat.jaxpr.eqns:
        part = len(groups) - 1 if eqn.effects else max((stage[v] for v in _variables(eqn.invars)), default=0)
        for variable in eqn.outvars:
            stage[variable], maker[variable] = part, eqn
    cheap = {variable for variable, eqn in maker.items() if _is_cheap(eqn)}
    inputs = {*flat.jaxpr.invars, *flat.jaxpr.constvars}

    def is_kept(variable: core.Var) -> bool:
        return variable not in inputs and variable not in cheap

    def needs(variables: Iterable[core.Var], part: int) -> Iterable[core.Var]:
        """The values stored by earlier parts that this part needs to compute the variables."""
        todo, seen = list(variables), set()
        while todo:
            variable = todo.pop()
            if variable in seen or variable in inputs:
                continue
            seen.add(variable)
            if stage[variable] < part and is_kept(variable):
                yield variable
            else:
                todo += _variables(maker[variable].invars)

    kept: list[list[core.Var]] = [[] for _ in groups]
    wanted = list(_variables(flat.jaxpr.outvars))
    for part in reversed(range(1, len(groups))):
        # The values that a part returns may in turn need values of still earlier parts.
        for variable in dict.fromkeys(needs([*wanted, *kept[part]], part)):
            if variable not in kept[stage[variable]]:
                kept[stage[variable]].append(variable)
    order = {variable: place for place, variable in enumerate(maker)}
    kept = [sorted(part, key=order.__getitem__) for part in kept]

    def make(part: int) -> Part:
        def run(*args: Any) -> Any:
            given, before = args[: part + 1], args[part + 1 :]
            env = dict(zip(flat.jaxpr.invars, jax.tree.leaves(given), strict=False))
            env |= zip(flat.jaxpr.constvars, flat.consts, strict=True)
            for variables, values in zip(kept, before, strict=False):
                env |= zip(variables, values, strict=True)
            if part < len(groups) - 1:
                return _evaluate(kept[part], maker, env)
            return jax.tree.unflatten(result, _evaluate(flat.jaxpr.outvars, maker, env))

        return run

    return [make(part) for part in range(len(groups))]


def _flat_jaxpr(function: Callable[..., Any], groups: tuple) -> tuple[core.ClosedJaxpr, Any]:
    """The traced function with calls of inner functions inlined, and the tree structure of its result."""
    leaves, structure = jax.tree.flatten(groups)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    result = []

    def of_leaves(*values):
        args = [arg for group in jax.tree.unflatten(structure, values) for arg in group]
        out, tree = jax.tree.flatten(function(*args))
        result.append(tree)
        return out

    closed = jax.make_jaxpr(of_leaves)(*shapes)
    return jax.make_jaxpr(lambda *values: _inline(closed, values))(*shapes), result[0]


def _inline(closed: core.ClosedJaxpr, values: Iterable[Array]) -> list[Array]:
    """Evaluate a traced function; calls of inner functions are replaced by their operations."""
    env = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env |= zip(closed.jaxpr.invars, values, strict=True)
    for eqn in closed.jaxpr.eqns:
        taken = [_read(variable, env) for variable in eqn.invars]
        inner = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
        env |= zip(eqn.outvars, _bind(eqn, taken) if inner is None else _inline(inner, taken), strict=True)
    return [_read(variable, env) for variable in closed.jaxpr.outvars]


def _evaluate(wanted: Iterable[Any], maker: dict[core.Var, core.JaxprEqn], env: dict) -> list[Array]:
    """Values of the wanted variables, from the known ones in `env` and the equations that lead from them."""
    wanted = list(wanted)
    needed, todo = set(), list(_variables(wanted))
    while todo:
        variable = todo.pop()
        if variable not in env and variable not in needed:
            needed.add(variable)
            todo += _variables(maker[variable].invars)
    done = set()
    for variable, eqn in maker.items():  # in the order of the function
        if variable in needed and id(eqn) not in done:
            done.add(id(eqn))
            env |= zip(eqn.outvars, _bind(eqn, [_read(v, env) for v in eqn.invars]), strict=True)
    return [_read(variable, env) for variable in wanted]


def _bind(eqn: core.JaxprEqn, values: list[Array]) -> list[Array]:
    out = eqn.primitive.bind(*values, **eqn.params)
    return out if eqn.primitive.multiple_results else [out]


def _read(variable: Any, env: dict) -> Array:
    return variable.val if isinstance(variable, core.Literal) else env[variable]


def _variables(atoms: Iterable[Any]) -> list[core.Var]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _is_cheap(eqn: core.JaxprEqn) -> bool:
    def size(atoms):
        return sum(atom.aval.size * atom.aval.dtype.itemsize for atom in atoms)

    return eqn.primitive.name in _CHEAP and size(eqn.outvars) > size(_variables(eqn.invars))
