"""Settings of a verb from the words of its command line: defaults, then the file of --config, then flags."""

import contextlib
import dataclasses
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sv3d_jax.config import build, read_settings
from sv3d_jax.errors import InputError


def read_flags(cls: type, name: str, arguments: Sequence[str]) -> Any:
    """The settings, a `cls`, of the verb `name`. Raises InputError, or SystemExit for what the parser has printed."""
    import tyro

    arguments = _with_current_names(cls, arguments)
    file = _config_file(arguments)
    with _warnings_as_notes():
        settings = read_settings(cls, file) if file else {}
    _check_output_given(name, cls, arguments, settings)
    with _respect_no_color():
        config = tyro.cli(
            cls,
            prog=f"sv3d {name}",
            description=cls.__doc__,
            args=list(arguments),
            default=_defaults(cls, settings),
            config=(tyro.conf.FlagCreatePairsOff,),
            registry=_optional_without_none(),
        )
    for field in dataclasses.fields(cls):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and getattr(config, field.name) == ():
            raise InputError(f"{field.name.upper()} is needed, at least one", hint=f"sv3d {name} --help")
    return config


def _check_output_given(name: str, cls: type, arguments: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Raise InputError where the folder of the results is not given, as the command with it in its place."""
    needed = any(f.name == "output" and f.default is dataclasses.MISSING for f in dataclasses.fields(cls))
    is_given = any(word.startswith(("-o", "--output", "-h", "--help")) for word in arguments)
    if not needed or is_given or "output" in settings or name == "convert":
        return
    words = [*arguments, "-o", "DIR"]
    if len(arguments) == 2 and not any(word.startswith("-") for word in arguments):
        given, place = sorted(arguments, key=_is_no_input)  # either may come first
        words = [given, "-o", place]
    raise InputError("-o DIR is needed, the folder of the results", hint=" ".join(["sv3d", name, *words]))


def _is_no_input(word: str) -> tuple[bool, bool]:
    """A key that sorts files first, then folders, then what does not exist."""
    return not os.path.isfile(word), not os.path.isdir(word)


def _with_current_names(cls: type, arguments: Sequence[str]) -> list[str]:
    """The arguments with renamed flags of earlier versions replaced; a note on stderr names each."""
    renamed = {f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}" for old, new in _renamed(cls)}
    words = []
    for word in arguments:
        flag, *value = word.split("=", 1)
        if flag in renamed:
            print(f"note: {flag} is now {renamed[flag]}", file=sys.stderr)
        words.append("=".join([renamed.get(flag, flag), *value]))
    return words


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Warnings as notes on stderr, as those of flags."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        print(f"note: {warning.message}", file=sys.stderr)


def _renamed(cls: type) -> Iterator[tuple[str, str]]:
    """Old and new names of the fields of `cls` that were renamed, except old names that are fields again."""
    known = {field.name for field in dataclasses.fields(cls)}
    return ((old, new) for old, new in getattr(cls, "RENAMED", {}).items() if old not in known)


def _config_file(arguments: Sequence[str]) -> str | None:
    """The value of --config, which is needed before the other flags are parsed."""
    for index, word in enumerate(arguments):
        if word == "--config" and index + 1 < len(arguments):
            return arguments[index + 1]
        if word.startswith("--config="):
            return word.removeprefix("--config=")
    return None


@contextmanager
def _respect_no_color() -> Iterator[None]:
    """Make the parser print without colour if NO_COLOR is set: it ignores that, but respects TERM=dumb."""
    term = os.environ.get("TERM")
    if term and os.environ.get("NO_COLOR"):
        os.environ["TERM"] = "dumb"
    try:
        yield
    finally:
        if term:
            os.environ["TERM"] = term


def _defaults(cls: type, values: Mapping[str, Any]) -> Any:
    """A `cls` for the parser to start from: values of the file, else defaults, else a mark for "missing".

    It is not validated, as the flags are still to come.
    """
    import tyro

    marks = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    unchecked = object.__new__(cls)
    complete = build(_without_checks(cls), {**marks, **values})
    for field in dataclasses.fields(cls):
        object.__setattr__(unchecked, field.name, getattr(complete, field.name))
    return unchecked


def _without_checks(cls: type) -> type:
    """A subclass of `cls` without its `__post_init__`, which validates the values."""
    return type(cls.__name__, (cls,), {"__post_init__": lambda self: None})


def _optional_without_none() -> Any:
    """Rule for the parser: `T | None` is parsed and shown as T, and an absent flag gives None."""
    import types
    from typing import Union, get_args, get_origin

    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        inner = [option for option in get_args(info.type) if option is not type(None)]
        if get_origin(info.type) not in (Union, types.UnionType) or len(inner) == len(get_args(info.type)):
            return None
        one = Union[tuple(inner)]  # noqa: UP007
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(one, info.markers))
        if not isinstance(spec, PrimitiveConstructorSpec):
            return None
        return dataclasses.replace(
            spec,
            is_instance=lambda value: value is None or spec.is_instance(value),
            str_from_instance=lambda value: ["none"] if value is None else spec.str_from_instance(value),
        )

    return registry
