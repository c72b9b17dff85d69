"""Every number among the settings has a range, which is checked before anything is read, imported or written."""

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from sv3d_jax.cli import VERBS, main
from sv3d_jax.config import Range, Settings, build, within
from sv3d_jax.errors import InputError

pytestmark = pytest.mark.usefixtures("command_line")

ROOT = Path(__file__).parents[1]
WRONG = (math.nan, math.inf, -math.inf, 1e300, -1e300, 10**400, -(10**400))
# Values that are allowed all the same, by field.
ALLOWED = {
    "azimuths": (1e300, -1e300),  # taken modulo 360
    "s_tmax": (math.inf, 1e300, 10**400),  # no upper end
}


def settings_classes() -> list[type]:
    """The dataclasses of all modules of settings, and of the verbs."""
    files = (
        file for area in ("sv3d_jax", "infer", "recon", "train") for file in ROOT.glob(f"{area}/**/config.py")
    )
    places = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    places = {"sv3d_jax." + place.removeprefix("sv3d_jax.") for place in places}
    places |= {"sv3d_jax." + verb.config.split(":")[0] for verb in VERBS.values()}
    values = [value for place in sorted(places) for value in vars(importlib.import_module(place)).values()]
    classes = {value for value in values if isinstance(value, type) and dataclasses.is_dataclass(value)}
    return sorted(
        (cls for cls in classes - {Range} if cls.__module__ in places), key=lambda cls: cls.__qualname__
    )


def with_number(hint: Any, number: float) -> Any:
    """A value of an annotated type that holds the number, or None where it holds no numbers."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (int, float):
        return number
    if origin is Annotated:
        return with_number(inner[0], number)
    if origin in (tuple, list):
        items = [with_number(part, number) for part in inner if part is not Ellipsis]
        return None if None in items else tuple(items)
    values = (with_number(part, number) for part in inner) if origin is not dict else ()
    return next((value for value in values if value is not None), None)


def numbers(cls: type) -> dict[str, Any]:
    """The annotations of the fields of a dataclass that hold numbers."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        each.name: hints[each.name]
        for each in dataclasses.fields(cls)
        if each.init and with_number(hints[each.name], 1) is not None
    }


FIELDS = [(cls, name) for cls in settings_classes() for name in numbers(cls)]


def example(cls: type) -> Any:
    """Settings with their defaults, and names of files where there are none."""
    several = (Path("a.png"),)
    needed = {"images": several, "meshes": several, "orbits": several}
    for name in ("output", "input", "orbit_dir", "folder", "pred", "target"):
        needed[name] = Path("there")
    known = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
    return build(cls, {name: value for name, value in needed.items() if name in known})


def test_the_numbers_of_all_verbs_are_among_those_that_are_tried():
    tried = {cls.__name__ for cls, _ in FIELDS}
    assert {
        "GenerateConfig",
        "RenderConfig",
        "OptimizerConfig",
        "NerfConfig",
        "LossWeights",
        "UNetConfig",
    } <= tried
    assert len(FIELDS) > 150


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_number_has_a_range(cls, name):
    assert issubclass(cls, Settings)
    settings, hint = example(cls), numbers(cls)[name]
    for wrong in WRONG:
        given = {name: with_number(hint, wrong)}
        if wrong in ALLOWED.get(name, ()):
            dataclasses.replace(settings, **given)
            continue
        with pytest.raises(InputError, match=cls.flag(name)):
            dataclasses.replace(settings, **given)


def test_a_number_without_a_range_would_be_found():
    @dataclasses.dataclass(frozen=True)
    class Example(Settings):
        size: Annotated[int, within(1, 9)] = 1
        rate: float = 1.0

    assert list(numbers(Example)) == ["size", "rate"]
    with pytest.raises(pytest.fail.Exception):
        test_a_number_has_a_range(Example, "rate")


COMMANDS = (
    "data render x.glb -o out --elevation nan",
    "data render x.glb -o out --workers -1",
    "data pack x -o out --shard-orbits 0",
    "data objects -o out --count -3",
    "bench --frames 0",
    "train -o out --optimizer.learning-rate -1",
    "train -o out --optimizer.learning-rate inf",
    "train -o out --batch-size 0",
    "train -o out --log-every 0",
    "train -o out --diffusion.p-std nan",
    "reconstruct x -o out --texture-size 0",
    f"orbit x.png -o out --seed 1{'0' * 400}",
    "orbit x.png -o out --box 0 0 1 -1",
    "generate x.png -o out --guidance-interval 0 inf",
    "cameras -o out --elevation 10 -inf",
    "eval mesh --pred a --target b --points 0",
)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[:60])
def test_a_flag_out_of_its_range_ends_with_2_before_anything_is_looked_at(
    words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sv3d_jax.cli._check_inputs", lambda *_: pytest.fail("the settings were taken"))
    assert main(words.split()) == 2
    flag = next(word for word in reversed(words.split()) if word.startswith("--"))
    assert flag in (said := capsys.readouterr().err) and "must lie between" in said
    assert not list(tmp_path.iterdir())


def test_help_shows_the_range_of_a_number(capsys):
    assert main(["bench", "--help"]) == 0
    assert "(between 1 and 1000; default: 5)" in " ".join(capsys.readouterr().out.split())
