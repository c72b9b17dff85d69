"""Settings from defaults, TOML and overrides."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest

from sv3d_jax.config import POSITIONAL, CommonConfig, Settings, check_range, load_config, short, within
from sv3d_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LevelsConfig(Settings):
    RENAMED: ClassVar[dict[str, str]] = {"steps": "num_steps"}
    PREFIX: ClassVar[str] = "--levels."

    num_steps: Annotated[int, within(1, 1000)] = 50
    sigma_max: float = 700.0


@dataclass(frozen=True, kw_only=True)
class ExampleConfig(CommonConfig):
    images: Annotated[tuple[Path, ...], POSITIONAL]
    output: Annotated[Path, short("-o")] = Path("out")
    orbit: Literal["static", "sine"] = "static"
    azimuths: tuple[float, ...] | None = None
    elevation: float | tuple[float, ...] = 10.0
    levels: LevelsConfig = field(default_factory=lambda: LevelsConfig(num_steps=25))


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return path

    return write


def test_a_file_replaces_defaults_and_overrides_replace_the_file(file):
    path = file('images = ["a.png"]\norbit = "sine"\nazimuths = [0, 180]\n')
    config = load_config(ExampleConfig, path, {"azimuths": [0, 90]})
    assert (config.images, config.orbit, config.azimuths) == ((Path("a.png"),), "sine", (0.0, 90.0))


def test_a_table_changes_only_the_fields_that_it_names(file):
    config = load_config(ExampleConfig, file('images = ["a.png"]\n[levels]\nsigma_max = 80\n'))
    assert config.levels == LevelsConfig(num_steps=25, sigma_max=80.0)


def test_nested_overrides_leave_the_rest_of_the_table(file):
    path = file('images = ["a.png"]\n[levels]\nsigma_max = 80\n')
    config = load_config(ExampleConfig, path, {"levels": {"num_steps": 3}})
    assert config.levels == LevelsConfig(num_steps=3, sigma_max=80.0)


def test_a_union_takes_one_number_or_a_list(file):
    one = load_config(ExampleConfig, None, {"images": ["a"], "elevation": 5})
    many = load_config(ExampleConfig, None, {"images": ["a"], "elevation": [5, 6]})
    assert (one.elevation, many.elevation) == (5.0, (5.0, 6.0))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('orbti = "sine"', "unknown key orbti", "orbit"),
        ("[levels]\nnum_step = 5", "levels: unknown key num_step", "num_steps"),
        ('orbit = "sin"', "orbit = 'sin'", "sine"),
        ('azimuths = ["a"]', r"azimuths\[0\] = 'a': expected a number", None),
        ("levels = 3", "levels = 3: expected a table", None),
        ("elevation = true", "elevation = True: expected a number", None),
        ('elevation = ["a"]', r"elevation\[0\] = 'a': expected a number", None),
        ("dry-run = true\ndry_run = true", "dry_run is given twice, once under another name", None),
        ("overwrite = 1", "overwrite = 1: expected true or false", None),
        ("[levels]\nnum_steps = true", "num_steps = True: expected a whole number", None),
        ("[levels]\nnum_steps = 2.5", "num_steps = 2.5: expected a whole number", None),
        (f"azimuths = [1{'0' * 400}]", r"azimuths\[0\] = 1000\d+\.\.\.0+: expected a number", None),
        ("[levels]\nnum_steps = 0", "--levels.num-steps 0: must lie between 1 and 1000", None),
    ],
)
def test_a_wrong_entry_is_refused_by_name(file, text, message, hint):
    with pytest.raises(InputError, match=message) as caught:
        load_config(
            ExampleConfig, file('images = ["a.png"]\n' + text if "[" != text[0] else text), {"images": ["a"]}
        )
    assert hint is None or hint in caught.value.hint


def test_a_former_name_is_taken_with_a_note_and_not_beside_the_new_one(file):
    former = "[levels]\nsteps = 5\n"
    with pytest.warns(FutureWarning, match="steps is now num_steps"):
        config = load_config(ExampleConfig, file(former), {"images": ["a.png"]})
    assert config.levels.num_steps == 5
    for text in (former + "num_steps = 6", "[levels]\nnum_steps = 6\nsteps = 5"):
        with (
            pytest.raises(InputError, match="levels: .*steps is given twice"),
            pytest.warns(FutureWarning),
        ):
            load_config(ExampleConfig, file(text), {"images": ["a.png"]})


def test_a_required_value_that_is_absent_is_named():
    with pytest.raises(InputError, match="--images is needed"):
        load_config(ExampleConfig)


@pytest.mark.parametrize("name", ["settings.yaml", "settings.py", "settings.json"])
def test_only_toml_files_are_read(tmp_path, name):
    (tmp_path / name).write_text("images = []")
    with pytest.raises(InputError, match="not a TOML file"):
        load_config(ExampleConfig, tmp_path / name)


@pytest.mark.parametrize("text", ["images = [", "\0", "images = __import__('os')"])
def test_a_file_that_is_not_toml_inside_is_refused(file, text):
    with pytest.raises(InputError, match="is not TOML that can be read"):
        load_config(ExampleConfig, file(text))


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.toml does not exist"):
        load_config(ExampleConfig, tmp_path / "absent.toml")


@pytest.mark.parametrize(
    "value", [-1, 11, float("nan"), float("inf"), 10**400, pytest.param(10**5000, id="long")]
)
def test_a_range_refuses_what_is_outside_and_nan(value):
    with pytest.raises(InputError, match=r"cfg_max.*: must lie between 0 and 10"):
        check_range("--cfg-max", value, 0, 10)


@pytest.mark.parametrize("value", ["1", True, None, 1j, (1,)])
def test_a_range_refuses_what_is_no_number(value):
    with pytest.raises(InputError, match="cfg_max.*: must be a number"):
        check_range("--cfg-max", value, 0, 10)


def test_whole_numbers_are_told_from_others():
    check_range("--frames", np.int64(3), 2, 128, is_whole=True)
    with pytest.raises(InputError, match="num_frames=3.0: must be a whole number"):
        check_range("--frames", 3.0, 2, 128, is_whole=True)


def test_settings_are_what_decides_the_result_as_plain_values():
    config = load_config(
        ExampleConfig, None, {"images": ["a.png"], "output": "x", "verbose": True, "device": "cpu"}
    )
    assert config.settings() == {
        "images": ["a.png"],
        "orbit": "static",
        "azimuths": None,
        "elevation": 10.0,
        "levels": {"num_steps": 25, "sigma_max": 700.0},
    }
