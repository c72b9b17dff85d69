"""Folders of pictures, and pictures that cannot be used among others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.errors import InputError
from sv3d_jax.infer.pictures import find_pictures
from tests.infer.runs import files_with_times, orbit
from tests.tiny_model import picture

BROKEN = {
    "cut_short.png": lambda file: file.write_bytes(file.read_bytes()[:60]),
    "empty.png": lambda file: file.write_bytes(b""),
    "no_cut_out.png": lambda file: Image.fromarray(noise()).save(file),
    "small.png": lambda file: Image.new("RGB", (8, 8)).save(file),
    "transparent.png": lambda file: Image.new("RGBA", (64, 64)).save(file),
}


def noise() -> np.ndarray:
    """A picture without a plain border."""
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def no_remover(monkeypatch):
    monkeypatch.setattr("sv3d_jax.cutout.has_rembg", lambda: False)


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A folder of two good pictures, five broken ones, and files that are no pictures."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("ball.png", "box.PNG", *BROKEN):
        Image.fromarray(picture(name == "ball.png")).save(folder / name)
    for name, damage in BROKEN.items():
        damage(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "._box.png").write_bytes(b"what macOS leaves")
    (folder / "below").mkdir()
    Image.fromarray(picture()).save(folder / "below" / "other.png")
    return folder


def test_a_folder_stands_for_the_pictures_directly_inside_by_name(mixed):
    found = find_pictures([mixed])
    names = sorted(["ball", "box", *(name.removesuffix(".png") for name in BROKEN)])
    assert [each.name for each in found] == names and not any(each.others for each in found)


def test_of_two_pictures_with_one_name_in_a_folder_the_one_that_may_have_alpha_is_taken(tmp_path):
    for name in ("a.jpg", "a.png", "a.JPEG", "b.jpg"):
        (tmp_path / name).touch()
    found = find_pictures([tmp_path])
    assert [each.path.name for each in found] == ["a.png", "b.jpg"]
    assert [path.name for path in found[0].others] == ["a.jpg", "a.JPEG"] and not found[1].others


def test_a_picture_that_opens_is_taken_in_place_of_a_broken_one_of_its_name(place, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"broken")
    for name in ("a.jpg", "a.webp"):
        Image.fromarray(picture()).convert("RGB").save(folder / name, quality=95)
    assert orbit(place, folder, "-o", tmp_path / "out", "--dry-run", "--json") == 0
    broken, unused = json.loads(capsys.readouterr().out)["left_out"]
    assert str(folder / "a.png") in broken
    assert unused == f"{folder / 'a.jpg'}: a.webp is taken, which has the same name"


def test_one_name_in_two_places_is_refused_with_both(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    with pytest.raises(InputError, match=r"one/a.png and .*two/a.png"):
        find_pictures([tmp_path / "one", tmp_path / "two"])


@pytest.mark.parametrize("name", ["...png", "..png", "run.json.png"])
def test_a_name_with_another_meaning_becomes_no_folder(tmp_path, name):
    [found] = find_pictures([tmp_path / name])
    assert found.name == name


def test_named_pictures_that_cannot_be_used_are_all_said_before_any_work(mixed, place, tmp_path, capsys):
    files = [mixed / "ball.png", *(mixed / name for name in BROKEN)]
    assert orbit(place, *files, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "5 of 6 pictures cannot be used" in said and "--skip-broken" in said
    assert all(str(mixed / name) in said for name in BROKEN)
    assert not (tmp_path / "out").exists()


def test_broken_pictures_of_a_folder_are_left_out_and_reported(mixed, place, made, tmp_path, capsys):
    (mixed / "box.PNG").unlink()
    assert orbit(place, mixed, "-o", tmp_path / "out", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["ball", "left_out"] and len(result["left_out"]) == len(BROKEN)
    assert (tmp_path / "out" / "ball" / "orbit.gif").is_file()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["pictures"] == ["ball"] and record["left_out"] == result["left_out"]
    assert all(any(name in text for text in record["left_out"]) for name in BROKEN)

    before = files_with_times(tmp_path / "out")
    assert orbit(place, mixed, "-o", tmp_path / "out") == 0
    assert files_with_times(tmp_path / "out") == before


def test_named_pictures_are_left_out_if_asked(mixed, place, tmp_path, capsys):
    files = [mixed / "ball.png", *(mixed / name for name in BROKEN)]
    assert orbit(place, *files, "-o", tmp_path / "out", "--skip-broken", "--dry-run", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["directories"] == [str(tmp_path / "out" / "ball")] and len(result["left_out"]) == 5


@pytest.mark.parametrize("as_folder", [True, False])
def test_without_any_usable_picture_the_run_ends_with_2(mixed, place, tmp_path, capsys, as_folder):
    for name in ("ball.png", "box.PNG"):
        (mixed / name).unlink()
    given = [mixed] if as_folder else [*(mixed / name for name in BROKEN), "--skip-broken"]
    assert orbit(place, *given, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert all(str(mixed / name) in said for name in BROKEN)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pictures_says_what_it_holds(made, place, tmp_path, capsys):
    assert orbit(place, tmp_path, "-o", tmp_path / "out") == 2
    assert "without pictures" in (said := capsys.readouterr().err) and ".png, " in said
    (tmp_path / "cameras.json").write_bytes((made / "box" / "cameras.json").read_bytes())
    assert orbit(place, tmp_path, "-o", tmp_path / "out") == 2
    assert f"sv3d reconstruct {tmp_path}" in capsys.readouterr().err


def test_the_folder_of_a_single_picture_is_not_taken_for_many(made, place, mixed, capsys):
    before = files_with_times(made)
    assert orbit(place, mixed, "-o", made / "box") == 2
    assert "single picture" in capsys.readouterr().err and files_with_times(made) == before


def test_a_box_belongs_to_no_folder(place, mixed, tmp_path, capsys):
    assert orbit(place, mixed, "-o", tmp_path / "out", "--box", "1", "1", "9", "9") == 2
    assert "--box is for pictures that are named" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["5", "[]", '{"pic', "\xff"])
@pytest.mark.parametrize("words", [[], ["--overwrite"]])
def test_a_damaged_record_of_a_folder_of_many_is_written_again(made, place, tmp_path, content, words):
    folder = shutil.copytree(made, tmp_path / "out")
    before = (folder / "run.json").read_bytes()
    (folder / "run.json").write_text(content, "latin-1")
    files = [] if words else files_with_times(folder / "box")
    assert orbit(place, place / "box.png", place / "ball.png", "-o", folder, *words) == 0
    assert (folder / "run.json").read_bytes() == before
    assert words or files_with_times(folder / "box") == files


def test_frames_that_could_not_be_read_again_are_refused_before_sampling(
    place, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("sv3d_jax.io.images.MAX_TOTAL_PIXELS", 1000)
    assert orbit(place, place / "box.png", "-o", tmp_path / "out", "--dry-run") == 2
    assert "is not read again" in (said := capsys.readouterr().err) and "hint: --size 14 at most" in said
