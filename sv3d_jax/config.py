"""Typed settings: one dataclass serves the command line, the TOML file and Python.

The range of a number stands beside its field and is checked whenever settings are made. Neither this module nor any
`config.py` imports jax, so `sv3d --help` and usage errors appear at once.
"""

import dataclasses
import difflib
import functools
import numbers
import reprlib
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sv3d_jax.errors import InputError, SV3DError
from sv3d_jax.io.documents import read_toml

try:
    from tyro import conf as _tyro_conf
except ImportError:  # training hosts may lack it; only the command line reads these marks
    _tyro_conf = None

POSITIONAL = _tyro_conf.Positional if _tyro_conf else None
HIDDEN = _tyro_conf.Suppress if _tyro_conf else None  # for Python and TOML files only


def short(name: str) -> Any:
    """Annotation that gives a field a one-letter flag as well: `output: Annotated[Path, short("-o")]`."""
    return _tyro_conf.arg(aliases=[name]) if _tyro_conf else name


@dataclass(frozen=True)
class Range:
    """Lowest and highest value of a number, or of each number of a list."""

    low: int | float
    high: int | float

    def __str__(self) -> str:
        ends = (f"{end:g}" if isinstance(end, float) else str(end) for end in (self.low, self.high))
        return "{} and {}".format(*ends)

    def __call__(self, default: str) -> str:
        """What `--help` says after the description of a flag."""
        return f"(between {self}; default: {default})"


def within(low: int | float, high: int | float) -> Any:
    """Annotation of a number, or of a list of them, that lies in [low, high]: `size: Annotated[int, within(8, 4096)]`.

    Settings derived from `Settings` refuse other values, and NaN; `--help` shows the range.
    """
    limits = Range(low, high)
    return _tyro_conf.arg(help_behavior_hint=limits) if _tyro_conf else limits


Seed = Annotated[int, within(0, 2**32 - 1)]
"""Seeds of random numbers, which NumPy's generators and jax's keys take alike."""
MAX_STEPS = 1_000_000_000  # of a run, or between two of its reports


class Settings:
    """Base of dataclasses of settings: numbers outside the ranges of their fields raise an InputError that names them.

    A class with further checks calls `super().__post_init__()` first.
    """

    PREFIX: ClassVar[str] = "--"  # what stands before the name of a field in messages

    def __post_init__(self):
        for name, (limits, is_whole) in _ranges(type(self)).items():
            value = getattr(self, name)
            several = isinstance(value, (tuple, list))
            for index, number in enumerate(value if several else [value]):
                if number is not None and not dataclasses.is_dataclass(number):
                    shown = self.flag(f"{name}[{index}]" if several else name)
                    check_range(shown, number, limits.low, limits.high, is_whole)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(item, (str, Path)) and "\0" in str(item):
                    raise InputError(f"{self.flag(field.name)} {item!r}: a name cannot hold a null byte")

    @classmethod
    def flag(cls, name: str) -> str:
        """A field as messages name it: its flag, or its place in a TOML file if it has none."""
        return cls.PREFIX + (name.replace("_", "-") if cls.PREFIX.startswith("--") else name)


@dataclass(frozen=True, kw_only=True)
class CommonConfig(Settings):
    """Settings of every verb. None of them changes the computed numbers."""

    config: Path | None = None
    """TOML file with any of these settings; flags override it"""
    device: str | None = None
    """where to compute: cpu, gpu, tpu, or one of several as gpu:1 (default: the best one available)"""
    dry_run: bool = False
    """resolve the settings, check the inputs, plan the memory, and stop"""
    overwrite: bool = False
    """replace an earlier run in the output folder"""
    json: bool = False
    """print the result as JSON"""
    verbose: Annotated[bool, short("-v")] = False
    """print more messages, and errors with their traceback"""
    quiet: Annotated[bool, short("-q")] = False
    """print results and errors only"""
    compile_cache: bool = True
    """keep compiled programs under the user's cache directory for the next start"""

    def check_inputs(self) -> None:
        """Raise an SV3DError for files that cannot be what the verb needs; called before jax starts."""

    def settings(self) -> dict[str, Any]:
        """The settings that decide the result, as plain JSON values; `run.json` stores them to recognise a run."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _NOT_SETTINGS}
        return to_plain(own)

    def without_inputs(self) -> dict[str, Any]:
        """Those settings without files and the seed: what a run takes from an earlier one with other inputs."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        files = {name for name, value in own.items() if name == "seed" or _names_files(value)}
        return {name: value for name, value in self.settings().items() if name not in files}


def _names_files(value: Any) -> bool:
    items = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(item, Path) for item in items)


_NOT_SETTINGS = {f.name for f in dataclasses.fields(CommonConfig)} | {"output"}

C = TypeVar("C")


def load_config(
    cls: type[C], file: Path | str | None = None, overrides: Mapping[str, Any] | None = None
) -> C:
    """A `cls` from its defaults, then the TOML file, then the overrides.

    Tables of the file are nested dataclasses. Raises InputError for an unknown key, a value of the wrong type, or a
    required value that is missing.
    """
    values = read_settings(cls, file) if file is not None else {}
    values = _merge(values, checked(cls, overrides or {}, "settings"))
    return build(cls, values)


def read_settings(cls: type, file: Path | str) -> dict[str, Any]:
    """The checked and converted values of a TOML file, nested like the fields of `cls`.

    Where `cls` names a folder of recipes that ship, `file` may be the name of one of them.
    """
    path = _settings_file(cls, Path(file))
    if path.suffix != ".toml":
        raise InputError(f"{path} is not a TOML file", hint="settings are read from files that end in .toml")
    return checked(cls, read_toml(path), str(path))


def _settings_file(cls: type, file: Path) -> Path:
    """The file itself, or the recipe that ships under a name without suffix and folder. Raises InputError for none."""
    folder = getattr(cls, "RECIPES", None)
    if folder is None or file.suffix or file.name != str(file) or file.exists():
        return file
    shipped = Path(str(files("sv3d_jax.configs"))) / folder
    recipe = shipped / f"{file}.toml"
    if not recipe.is_file():
        known = [path.stem for path in shipped.glob("*.toml")]
        raise InputError(f"--config {file}: there is no such recipe", hint=nearest(str(file), known))
    return recipe


def checked(
    cls: type,
    values: Any,
    where: str,
    error: type[SV3DError] = InputError,
    stored_names: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Plain values of TOML or JSON converted to the types of the fields of the dataclass `cls`, for `build`.

    `stored_names` are the keys of fields that have another name in files. Raises `error`, whose message begins with
    `where`, for an unknown key or a value of the wrong type.
    """
    return _Converter(error, stored_names).value(cls, values, where)


def build(cls: type[C], values: Mapping[str, Any]) -> C:
    """A `cls` from checked values, including its nested dataclasses. Raises InputError if a required one is missing."""
    hints = get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        nested = _dataclass_of(hints[field.name])
        if field.name in values:
            value = values[field.name]
            if nested and isinstance(value, Mapping):
                default = field.default_factory() if field.default_factory is not MISSING else field.default
                value = _nested(nested, default, value)
            arguments[field.name] = value
        elif field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"--{field.name.replace('_', '-')} is needed")
    return cls(**arguments)


def one_config(cls: type[C], given: C | None, options: Mapping[str, Any]) -> C:
    """The `cls` in `given` (default: a new one) with the fields in `options` replaced.

    Raises TypeError for an option that is not a field, as Python does for an unknown keyword argument.
    """
    if given is not None and not isinstance(given, cls):
        raise TypeError(
            f"expected a {cls.__name__}, got {given!r}: single settings go by name, as name=value"
        )
    known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    if unknown := [name for name in options if name not in known]:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}: {nearest(unknown[0], known)}")
    return dataclasses.replace(cls() if given is None else given, **options)  # type: ignore[type-var]


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name: the most similar known name, or a list of all known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def check_range(flag: str, value: Any, low: int | float, high: int | float, is_whole: bool = False) -> None:
    """Raise an InputError that names the flag if a value is no number, NaN, or outside [low, high]."""
    kind = "__index__" if is_whole else "__float__"
    if isinstance(value, bool) or not hasattr(value, kind):
        raise InputError(f"{flag} {_shown(value)}: must be {_EXPECTED[int if is_whole else float]}")
    if not low <= value <= high:
        raise InputError(f"{flag} {_shown(value)}: must lie between {Range(low, high)}")


def is_number(value: Any) -> bool:
    """Whether a value is a real number, of Python's or NumPy's types, and not a truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def to_plain(value: Any) -> Any:
    """`value` in JSON types: dataclasses become dicts, paths text, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _nested(cls: type, current: Any, values: Mapping[str, Any]) -> Any:
    """A nested `cls`: `current` with the given fields replaced, or a new one if there is no `current`."""
    if not isinstance(current, cls):
        return build(cls, values)
    hints = get_type_hints(cls)
    changes = dict(values)
    for name, value in values.items():
        inner = _dataclass_of(hints[name])
        if inner and isinstance(value, Mapping):
            changes[name] = _nested(inner, getattr(current, name), value)
    return dataclasses.replace(current, **changes)  # type: ignore[type-var]


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


@dataclass(frozen=True)
class _Converter:
    """Converts plain values to annotated types; `stored_names` are the keys of fields that have others in files."""

    error: type[SV3DError]
    stored_names: Mapping[str, str]

    def table(self, cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The values of the fields of `cls`; those of nested dataclasses stay mappings."""
        hints = get_type_hints(cls)
        known = {self.stored_names.get(f.name, f.name): f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        renamed = getattr(cls, "RENAMED", {})
        converted = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name not in known and name in renamed:
                warnings.warn(f"{where}: {key} is now {renamed[name]}", FutureWarning, stacklevel=2)
                name = renamed[name]
            if name not in known:
                shown = key if key.isprintable() and len(key) <= 80 else _shown(key)
                raise self.error(f"{where}: unknown key {shown}", hint=nearest(name, sorted(known)))
            if known[name] in converted:
                raise self.error(f"{where}: {key} is given twice, once under another name")
            converted[known[name]] = self.value(hints[known[name]], value, f"{where}: {key}")
        return converted

    def value(self, hint: Any, value: Any, where: str) -> Any:
        """`value` as the annotated type: TOML has neither paths nor tuples, and a float may be written as 2."""
        origin, inner = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self.value(inner[0], value, where)
        if origin in (Union, types.UnionType):
            errors = []
            for option in inner:
                try:
                    return self.value(option, value, where)
                except self.error as error:
                    fits = isinstance(value, (list, tuple)) == (get_origin(option) in (list, tuple))
                    errors.append((option is not type(None), fits, error))
            raise max(reversed(errors), key=lambda error: error[:2])[2]
        if hint is Any or (isinstance(hint, type) and isinstance(value, hint) and hint not in (int, float)):
            return value
        if origin is Literal:
            if value in inner:
                return value
            choices = [str(item) for item in inner]
            raise self.error(f"{where} = {_shown(value)}", hint=nearest(str(value), choices))
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            return self.table(hint, value, where)  # type: ignore[arg-type]
        if origin in (tuple, list) and isinstance(value, (list, tuple)):
            variadic = origin is list or (len(inner) == 2 and inner[1] is Ellipsis)
            if variadic or len(inner) == len(value):
                kinds = [inner[0]] * len(value) if variadic else inner
                pairs = enumerate(zip(kinds, value, strict=True))
                return origin(self.value(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)
        if origin is dict and isinstance(value, Mapping):
            return {key: self.value(inner[1], item, f"{where}.{key}") for key, item in value.items()}
        if not isinstance(value, bool):
            if hint is Path and isinstance(value, str):
                return Path(value)
            if hint is float and isinstance(value, (int, float)) and not _is_too_large(value):
                return float(value)
            if hint is int and isinstance(value, int):
                return value
        raise self.error(f"{where} = {_shown(value)}: expected {_expected(hint)}")


def _expected(hint: Any) -> str:
    """What a file should hold for an annotation, in words."""
    if dataclasses.is_dataclass(hint):
        return "a table"
    kind = get_origin(hint) or hint
    return _EXPECTED.get(kind, getattr(kind, "__name__", str(kind)))


_EXPECTED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    bool: "true or false",
    tuple: "a list",
    list: "a list",
    dict: "a table",
    type(None): "nothing",
}


def _is_too_large(value: int | float) -> bool:
    """Whether a whole number is beyond the range of floats."""
    return isinstance(value, int) and abs(value) > sys.float_info.max


def _shown(value: Any) -> str:
    """A value for a message, cut where it is long or deeply nested."""
    short_repr = reprlib.Repr()
    short_repr.maxstring = short_repr.maxother = 80
    if isinstance(value, int) and value.bit_length() > 4000:  # Python refuses to print very long numbers
        return f"a whole number of {value.bit_length()} bits"
    return " ".join(short_repr.repr(value).split())


@functools.cache
def _ranges(cls: type) -> dict[str, tuple[Range, bool]]:
    """The fields of `cls` that have a range, with it and whether they are whole numbers."""
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        parts = list(_parts(hint))
        # `within` hands a range over to the parser of flags, which shows it.
        marks = (getattr(part, "help_behavior_hint", part) for part in parts)
        if limits := next((mark for mark in marks if isinstance(mark, Range)), None):
            found[name] = (limits, float not in parts)
    return found


def _parts(hint: Any) -> Iterator[Any]:
    """What an annotation is made of: types and marks, to any depth."""
    yield hint
    for part in get_args(hint):
        yield from _parts(part)


def _dataclass_of(hint: Any) -> type | None:
    """The dataclass inside an annotation such as `Annotated[T, ...]` or `T | None`, or None."""
    if dataclasses.is_dataclass(hint):
        return hint  # type: ignore[return-value]
    return next((found for part in get_args(hint) if (found := _dataclass_of(part))), None)
