"""A function in parts, so that what depends on its first arguments alone is computed once.

A sampler calls its network with the same parameters and conditioning at every step. Whatever these decide by
themselves, folded kernels as well as embeddings, need not be computed again at each; `hoist` finds it in the traced
function, and the networks stay plain.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend import core

from sv3d_jax.arrays import Array

Part = Callable[..., Any]

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
# Kept results of these would be larger than what they are made of, and making them costs next to nothing.
_CHEAP = {"broadcast_in_dim", "convert_element_type", "iota", "reshape"}


def hoist(function: Callable[..., Any], *groups: tuple) -> list[Part]:
    """`function(*groups[0], *groups[1], ...)` as one part for each group of arguments.

    Part k takes the groups up to the k-th, then the lists that the parts before it returned, and returns the list of
    what later parts need from it; the last part returns the function's result. `groups` are arrays or their shapes.
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
        """Of variables and whatever a part computes for them, those that earlier parts keep."""
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
        # What a part returns may itself need what is still earlier.
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
    """The traced function without calls of inner functions, and the structure of its result."""
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
    """Evaluate, with the inside of calls in their place."""
    env = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env |= zip(closed.jaxpr.invars, values, strict=True)
    for eqn in closed.jaxpr.eqns:
        taken = [_read(variable, env) for variable in eqn.invars]
        inner = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
        env |= zip(eqn.outvars, _bind(eqn, taken) if inner is None else _inline(inner, taken), strict=True)
    return [_read(variable, env) for variable in closed.jaxpr.outvars]


def _evaluate(wanted: Iterable[Any], maker: dict[core.Var, core.JaxprEqn], env: dict) -> list[Array]:
    """The wanted variables, by the equations that make them from what is known."""
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
